"""Search: equal to searches written with plain lists, to brute force, and to itself in any batch."""

import itertools
import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from captioner.config import DecoderConfig
from captioner.errors import ConfigError
from captioner.generation import BeamSearch, Greedy, Hypothesis, Sampling, Search, generate, mask_choices
from captioner.model.decoder import TextDecoder

PAD, BOS, EOS = 0, 1, 2
V, E, N = 9, 6, 5
EVEN = 33
"""The seed of a network that finds many first and second words likely."""
SPECIAL = {"bos": BOS, "eos": EOS, "pad": PAD, "suppressed": (PAD, BOS)}
STRATEGIES = [
    Greedy(max_length=10),
    Greedy(max_length=10, no_repeat_ngram=2, min_length=4),
    Sampling(max_length=10, samples=3, seed=5),
    Sampling(max_length=10, temperature=0.7, top_k=4, top_p=0.8),
    BeamSearch(max_length=10),
    BeamSearch(max_length=10, width=3, captions=3, length_penalty=0.0, consensus=False),
    BeamSearch(max_length=10, width=4, captions=2, length_penalty=2.0, no_repeat_ngram=2),
]


def network(seed, vocabulary=V):
    """A decoder with opinions: the standard initialization would make all words equally probable."""
    config = DecoderConfig(width=16, layers=1, heads=2, feed_forward=2, max_length=12)
    decoder = TextDecoder(config, vocabulary=vocabulary, encoder_width=E, dropout=0.1)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.45)
            if "norm.weight" in name:
                parameter.add_(1.0)
    return decoder.eval()


def see(decoder, images=3, seed=0):
    return decoder.project(torch.randn(images, N, E, generator=torch.Generator().manual_seed(seed))).mask(
        torch.ones(images, N + 1, dtype=torch.bool)
    )


@torch.no_grad()
def next_log_probs(decoder, memory, tokens):
    """(V,) of one image, the whole caption read again."""
    return decoder(torch.tensor([[BOS, *tokens]]), memory).logits[0, -1].log_softmax(-1).tolist()


def forced_log_probs(decoder, memory, tokens):
    return [next_log_probs(decoder, memory, tokens[:t])[token] for t, token in enumerate(tokens)]


def allowed_choices(log_probs, tokens, strategy, suppressed, once=()):
    choices = dict(enumerate(log_probs))
    for token in {*suppressed, *(set(once) & set(tokens))}:
        choices.pop(token, None)
    size = strategy.no_repeat_ngram
    if size and len(tokens) >= size:
        seen = {tuple(tokens[start : start + size]) for start in range(len(tokens) - size + 1)}
        last = tuple(tokens[len(tokens) - size + 1 :])
        choices = {token: value for token, value in choices.items() if (*last, token) not in seen}
    if len(tokens) < strategy.min_length and set(choices) != {EOS}:
        choices.pop(EOS, None)
    return choices


def slow_greedy(decoder, memory, strategy, prefix=(), suppressed=(PAD, BOS), once=()):
    tokens = list(prefix)
    while len(tokens) < strategy.max_length and EOS not in tokens:
        choices = allowed_choices(next_log_probs(decoder, memory, tokens), tokens, strategy, suppressed, once)
        tokens.append(max(choices, key=choices.get))
    return tokens


def slow_beam(decoder, memory, strategy, prefix=(), suppressed=(PAD, BOS), once=()):
    """Plain lists, no cache, no early end: [(penalized score, tokens)], best first."""
    running, finished = [(0.0, list(prefix))], []
    for length in range(len(prefix), strategy.max_length):
        candidates = []
        for score, tokens in running:
            log_probs = next_log_probs(decoder, memory, tokens)
            for token, value in allowed_choices(log_probs, tokens, strategy, suppressed, once).items():
                candidates.append((score + value, [*tokens, token]))
        candidates.sort(key=lambda candidate: -candidate[0])
        penalty = (length + 1 - len(prefix)) ** strategy.length_penalty
        best = candidates[: strategy.width]
        finished += [(score / penalty, tokens) for score, tokens in best if tokens[-1] == EOS]
        running = [each for each in candidates if each[1][-1] != EOS][: strategy.width]
        if finished and strategy.width == 1:
            return finished
    finished += [(score / penalty, tokens) for score, tokens in running]
    finished.sort(key=lambda each: -each[0])
    return finished[: strategy.captions]


def penalized(hypothesis, strategy, prefix=0):
    logs = hypothesis.token_log_probs[prefix:]
    return math.fsum(logs) / len(logs) ** strategy.length_penalty


def assert_same(found, expected):
    """The same tokens, and log-probabilities within float32."""
    assert [[each.tokens for each in image] for image in found] == [
        [each.tokens for each in image] for image in expected
    ]
    for one, other in zip(itertools.chain(*found), itertools.chain(*expected), strict=True):
        assert one.token_log_probs == pytest.approx(other.token_log_probs, abs=1e-5)


# Searches against slow ones


@pytest.mark.parametrize("seed", range(12))
def test_greedy_equals_a_loop_without_cache(seed):
    decoder = network(seed)
    memory = see(decoder, seed=seed)
    for strategy in (Greedy(max_length=9), Greedy(max_length=9, min_length=5, no_repeat_ngram=1 + seed % 3)):
        for prefix, once in (((), ()), ((4, 3), ()), ((4, 3), range(3, V))):
            found = generate(decoder, memory, strategy, **SPECIAL, prefix=prefix, once=once)
            for image, [hypothesis] in enumerate(found):
                alone = memory.select(torch.tensor([image]))
                assert hypothesis.tokens == slow_greedy(decoder, alone, strategy, prefix, once=once)


@pytest.mark.parametrize("seed", range(16))
def test_beam_search_equals_one_of_plain_lists(seed):
    decoder = network(100 + seed)
    memory = see(decoder, images=2, seed=seed)
    width = 1 + seed % 5
    strategy = BeamSearch(
        width=width,
        captions=1 + seed % width,
        max_length=4 + seed % 5,
        min_length=seed % 3,
        length_penalty=(0.0, 0.7, 1.0, 2.0, -0.5)[seed // 2 % 5],
        no_repeat_ngram=seed % 4,
        consensus=False,
    )
    prefix, once = ((), (5,), (3, 4))[seed % 3], ((), (3, 4, 5))[seed // 2 % 2]
    found = generate(decoder, memory, strategy, **SPECIAL, prefix=prefix, once=once)
    for image, hypotheses in enumerate(found):
        expected = slow_beam(decoder, memory.select(torch.tensor([image])), strategy, prefix, once=once)
        assert [each.tokens for each in hypotheses] == [tokens for _, tokens in expected]
        scores = [penalized(each, strategy, len(prefix)) for each in hypotheses]
        assert scores == pytest.approx([score for score, _ in expected], abs=1e-4)


@pytest.mark.parametrize("length_penalty", [-2.0, -1.0, 3.0])
def test_the_search_ends_no_earlier_than_it_may(length_penalty):
    for seed in range(8):
        decoder = network(200 + seed)
        memory = see(decoder, images=1, seed=seed)
        strategy = BeamSearch(
            width=3, captions=3, max_length=8, min_length=0, length_penalty=length_penalty, consensus=False
        )
        [found] = generate(decoder, memory, strategy, **SPECIAL)
        assert [each.tokens for each in found] == [tokens for _, tokens in slow_beam(decoder, memory, strategy)]


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_wide_beam_equals_brute_force(length_penalty, seed):
    decoder = network(seed, vocabulary=5)
    memory = see(decoder, images=1, seed=seed)
    words, most = (3, 4), 4
    strategy = BeamSearch(width=40, captions=40, max_length=most, length_penalty=length_penalty, consensus=False)
    everything = [[*body, EOS] for size in range(1, most) for body in itertools.product(words, repeat=size)]
    everything += [list(body) for body in itertools.product(words, repeat=most)]
    scored = [Hypothesis(tokens, forced_log_probs(decoder, memory, tokens)) for tokens in everything]
    scored.sort(key=lambda each: -penalized(each, strategy))
    [found] = generate(decoder, memory, strategy, **SPECIAL)
    assert len(found) == len(everything) == 30
    assert_same([found], [scored])
    [best] = generate(decoder, memory, replace(strategy, captions=1), **SPECIAL)
    assert_same([best], [scored[:1]])


@pytest.mark.parametrize("seed", range(6))
def test_a_beam_of_one_equals_greedy(seed):
    decoder = network(seed)
    memory = see(decoder, images=4, seed=seed)
    for options in ({}, {"no_repeat_ngram": 2}, {"min_length": 6}):
        greedy = generate(decoder, memory, Greedy(max_length=10, **options), **SPECIAL)
        for length_penalty in (-1.0, 0.0, 1.0, 2.0):
            beam = BeamSearch(width=1, max_length=10, length_penalty=length_penalty, **options)
            assert_same(generate(decoder, memory, beam, **SPECIAL), greedy)


# Equalities of every search


@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_batch_equals_its_images_one_by_one_in_any_order(strategy, seed):
    decoder = network(seed)
    memory, keys = see(decoder, images=5, seed=seed), [f"photo {number}" for number in range(5)]
    together = generate(decoder, memory, strategy, **SPECIAL, keys=keys)
    for image in range(5):
        alone = generate(
            decoder, memory.select(torch.tensor([image])), strategy, **SPECIAL, keys=keys[image : image + 1]
        )
        assert_same(alone, together[image : image + 1])
    order = [3, 0, 4, 2, 1]
    shuffled = generate(decoder, memory.select(torch.tensor(order)), strategy, **SPECIAL, keys=[keys[i] for i in order])
    assert_same(shuffled, [together[image] for image in order])


@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
@pytest.mark.parametrize("prefix", [(), (4,), (5, 3, 6)], ids=len)
def test_log_probs_are_those_of_a_forced_pass(strategy, prefix):
    decoder = network(7)
    memory = see(decoder)
    for image, hypotheses in enumerate(generate(decoder, memory, strategy, **SPECIAL, prefix=prefix)):
        assert len(hypotheses) == (strategy.captions if isinstance(strategy, BeamSearch) else strategy.rows)
        for hypothesis in hypotheses:
            assert tuple(hypothesis.tokens[: len(prefix)]) == prefix
            forced = forced_log_probs(decoder, memory.select(torch.tensor([image])), hypothesis.tokens)
            assert hypothesis.token_log_probs == pytest.approx(forced, abs=1e-5)
            assert hypothesis.log_prob == pytest.approx(sum(forced), abs=1e-4)


@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
@pytest.mark.parametrize("prefix", [(), (4,)], ids=len)
def test_control_tokens_come_before_the_caption_and_are_no_part_of_it(strategy, prefix):
    """As with another start of the model: a decoder whose first position reads the control token."""
    decoder = network(3)
    memory = see(decoder)
    search = replace(strategy, max_length=9)
    found = generate(decoder, memory, search, **SPECIAL, control=(7, 5), prefix=prefix)
    for image, captions in enumerate(found):
        one = memory.select(torch.tensor([image]))
        for tokens, log_probs in captions:
            assert tokens[: len(prefix)] == list(prefix)
            assert_close(log_probs, forced_log_probs(decoder, one, [7, 5, *tokens])[2:], atol=1e-5, rtol=0)
    assert found != generate(decoder, memory, search, **SPECIAL, prefix=prefix)
    assert generate(decoder, memory, search, **SPECIAL, control=()) == generate(decoder, memory, search, **SPECIAL)


def test_control_tokens_take_positions():
    with pytest.raises(ConfigError, match="this model takes captions of at most 9 tokens"):
        generate(network(0), see(network(0)), Greedy(max_length=10), **SPECIAL, control=(7, 5))


@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
def test_suppressed_tokens_never_come_and_the_end_comes_last(strategy):
    suppressed = (PAD, BOS, 4, 7)
    for seed in range(4):
        decoder = network(seed)
        found = generate(decoder, see(decoder), strategy, bos=BOS, eos=EOS, pad=PAD, suppressed=suppressed)
        for hypothesis in itertools.chain(*found):
            assert not set(hypothesis.tokens) & set(suppressed)
            assert EOS not in hypothesis.tokens[:-1]
            assert len(hypothesis.tokens) == len(hypothesis.token_log_probs)
            assert hypothesis.tokens[-1] == EOS or len(hypothesis.tokens) == strategy.max_length


@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
def test_without_an_end_token_captions_are_cut_off(strategy):
    decoder = network(0)
    found = generate(decoder, see(decoder), strategy, bos=BOS, eos=EOS, pad=PAD, suppressed=(PAD, BOS, EOS))
    for hypothesis in itertools.chain(*found):
        assert len(hypothesis.tokens) == strategy.max_length
        assert EOS not in hypothesis.tokens


@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
@pytest.mark.parametrize(("least", "most"), [(0, 1), (1, 2), (4, 5), (6, 11)])
def test_lengths(strategy, least, most):
    strategy, lengths = replace(strategy, min_length=least, max_length=most, no_repeat_ngram=0), []
    for seed in range(4):
        decoder = network(seed)
        for hypothesis in itertools.chain(*generate(decoder, see(decoder), strategy, **SPECIAL)):
            words = len(hypothesis.tokens) - (hypothesis.tokens[-1] == EOS)
            assert words >= least
            assert len(hypothesis.tokens) <= most
            lengths.append(words)
    assert isinstance(strategy, BeamSearch) or least == 0 or min(lengths) == least


@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
@pytest.mark.parametrize("size", [1, 2, 3])
def test_no_run_of_tokens_comes_twice(strategy, size):
    repeats = Counter()
    for allowed in (size, 0):
        chosen = replace(strategy, no_repeat_ngram=allowed, min_length=8)
        for seed in range(5):
            decoder = network(seed)
            for hypothesis in itertools.chain(*generate(decoder, see(decoder), chosen, **SPECIAL, prefix=(3, 4, 3))):
                tokens = hypothesis.tokens[3:] if size == 1 else hypothesis.tokens
                runs = [tuple(tokens[start : start + size]) for start in range(len(tokens) - size + 1)]
                repeats[allowed] += len(runs) - len(set(runs))
    assert repeats[size] == 0
    assert repeats[0] > 0


@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
def test_tokens_of_once_come_once(strategy):
    repeats = Counter()
    for once in ((3, 4, 5), ()):
        chosen = replace(strategy, no_repeat_ngram=None, min_length=8)
        for seed in range(5):
            decoder = network(seed)
            for hypothesis in itertools.chain(*generate(decoder, see(decoder), chosen, **SPECIAL, once=once)):
                found = [token for token in hypothesis.tokens if token in (3, 4, 5)]
                repeats[once] += len(found) - len(set(found))
    assert repeats[3, 4, 5] == 0
    assert repeats[()] > 0


@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
def test_a_caption_that_has_no_word_left_ends(strategy):
    decoder = network(0, vocabulary=5)
    found = generate(decoder, see(decoder), replace(strategy, no_repeat_ngram=1, min_length=9), **SPECIAL)
    for hypothesis in itertools.chain(*found):
        assert sorted(hypothesis.tokens) == [EOS, 3, 4]
        assert hypothesis.tokens[-1] == EOS


@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
def test_hidden_positions_equal_positions_that_are_not_there(strategy):
    decoder, features = network(3), torch.randn(2, N, E)
    keep = torch.tensor([[True, False, True, True, False, True]]).expand(2, -1)
    hidden = generate(decoder, decoder.project(features).mask(keep), strategy, **SPECIAL)
    assert_same(hidden, generate(decoder, decoder.project(features[:, [0, 2, 3]]), strategy, **SPECIAL))


def test_one_token_may_be_start_end_and_padding_as_in_gpt_2():
    decoder = network(4)
    memory = see(decoder)
    for strategy in STRATEGIES:
        for [hypothesis, *_] in generate(decoder, memory, strategy, bos=BOS, eos=BOS, pad=BOS):
            assert BOS not in hypothesis.tokens[:-1]
            assert hypothesis.tokens[-1] == BOS or len(hypothesis.tokens) == strategy.max_length


def test_a_decoder_in_training_is_searched_without_dropout_and_goes_on_training():
    decoder = network(0)
    memory = see(decoder)
    expected = generate(decoder, memory, Greedy(max_length=10), **SPECIAL)
    decoder.train()
    assert_same(generate(decoder, memory, Greedy(max_length=10), **SPECIAL), expected)
    assert all(module.training for module in decoder.modules())


# Step by step


@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
@pytest.mark.parametrize("prefix", [(), (5, 3)], ids=len)
def test_stepping_equals_generating(strategy, prefix):
    decoder = network(7)
    memory = see(decoder, images=4)
    search, steps = Search(decoder, memory, strategy, **SPECIAL, prefix=prefix), 0
    while not search.done:
        search.step()
        steps += 1
    expected = generate(decoder, memory, strategy, **SPECIAL, prefix=prefix)
    assert search.captions() == expected
    assert steps <= strategy.max_length - len(prefix)
    found = search.sequences()
    assert found.tokens.shape == found.log_probs.shape == (4, len(expected[0]), len(prefix) + steps)
    for image, hypotheses in enumerate(expected):
        assert found.counts[image] == len(hypotheses)
        for row, hypothesis in enumerate(hypotheses):
            length = len(hypothesis.tokens)
            assert found.tokens[image, row].tolist() == hypothesis.tokens + [PAD] * (len(prefix) + steps - length)
            assert found.log_probs[image, row, :length].tolist() == hypothesis.token_log_probs
            assert not found.log_probs[image, row, length:].any()


@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
def test_a_search_may_be_left_after_any_step(strategy):
    """What it has then are the captions of a search with that longest length."""
    decoder = network(7)
    memory = see(decoder, images=4)
    if is_beam(strategy):
        strategy = replace(strategy, length_penalty=0.0, consensus=False)
    search = Search(decoder, memory, strategy, **SPECIAL)
    before = search.captions()
    assert all(not hypothesis.tokens for hypothesis in itertools.chain(*before))
    for length in range(1, 10):
        if search.done:
            break
        search.step()
        partial = search.captions()
        assert max(len(hypothesis.tokens) for hypothesis in itertools.chain(*partial)) <= length
        if not is_beam(strategy) and length > strategy.min_length:
            whole = generate(decoder, memory, strategy, **SPECIAL)
            for some, everything in zip(itertools.chain(*partial), itertools.chain(*whole), strict=True):
                assert some.tokens == everything.tokens[:length]
        if is_beam(strategy) and length > strategy.min_length:
            shorter = replace(strategy, max_length=length)
            assert_same(partial, generate(decoder, memory, shorter, **SPECIAL))


def is_beam(strategy):
    return isinstance(strategy, BeamSearch)


def test_sequences_can_be_trained_on():
    decoder = network(3)
    features = torch.randn(2, N, E)
    search = Search(decoder, decoder.project(features), Sampling(samples=2, max_length=6, top_p=1.0), **SPECIAL)
    while not search.done:
        search.step()
    found = search.sequences()
    tokens = found.tokens.flatten(0, 1)
    inputs = torch.nn.functional.pad(tokens[:, :-1], (1, 0), value=BOS)
    log_probs = decoder(inputs, decoder.project(features)).logits.log_softmax(-1).gather(2, tokens[:, :, None])[..., 0]
    real = found.log_probs.flatten(0, 1) != 0
    assert_close(log_probs[real], found.log_probs.flatten(0, 1)[real], atol=1e-5, rtol=1e-5)
    (log_probs * real).sum().backward()
    assert decoder.token_embedding.weight.grad.any()


@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
def test_choices_are_masked_as_in_the_search(strategy):
    """What a search chose, and nothing that it may not choose, is left by the pure function."""
    decoder, strategy = network(7), replace(strategy, no_repeat_ngram=2, min_length=4)
    suppressed = torch.tensor((PAD, BOS))
    memory = see(decoder)
    for image, hypotheses in enumerate(generate(decoder, memory, strategy, **SPECIAL)):
        for hypothesis in hypotheses:
            for length, token in enumerate(hypothesis.tokens):
                before = hypothesis.tokens[:length]
                log_probs = next_log_probs(decoder, memory.select(torch.tensor([image])), before)
                given = torch.tensor([log_probs])
                tokens = torch.tensor([before], dtype=torch.long)
                options = {"no_repeat_ngram": 2, "min_length": 4}
                masked = mask_choices(given, tokens, eos=EOS, suppressed=suppressed, **options)
                assert given.tolist() == [log_probs]  # nothing is written into what is given
                allowed = {place: value for place, value in enumerate(masked[0].tolist()) if value > -math.inf}
                expected = allowed_choices(log_probs, before, strategy, (PAD, BOS))
                assert allowed == pytest.approx(expected)
                assert token in allowed


def test_gradients_go_through_the_mask():
    choices = torch.randn(2, V, requires_grad=True)
    tokens = torch.tensor([[3, 4, 3], [5, 6, 5]])
    masked = mask_choices(choices, tokens, eos=EOS, suppressed=torch.tensor([PAD]), no_repeat_ngram=2, min_length=5)
    masked.softmax(dim=1).square().sum().backward()
    blocked = torch.zeros(2, V, dtype=torch.bool)
    blocked[:, [PAD, EOS]] = blocked[0, 4] = blocked[1, 6] = True
    assert torch.equal(masked.isneginf(), blocked)
    assert torch.equal(choices.grad != 0, ~blocked)


# Beams


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0])
def test_several_captions_are_distinct_and_sorted(length_penalty):
    strategy = BeamSearch(width=6, captions=6, max_length=9, length_penalty=length_penalty, consensus=False)
    for seed in range(5):
        decoder = network(seed)
        for hypotheses in generate(decoder, see(decoder), strategy, **SPECIAL):
            assert len({tuple(each.tokens) for each in hypotheses}) == 6
            scores = [penalized(each, strategy) for each in hypotheses]
            assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("consensus", [False, True])
@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 1.0, 2.0])
def test_asking_for_fewer_captions_gives_the_best_of_them(length_penalty, consensus):
    """The search then stops earlier, which must not change what it finds."""
    for seed in range(5):
        decoder = network(seed)
        memory = see(decoder)
        many, one = (
            generate(
                decoder,
                memory,
                BeamSearch(width=5, captions=n, max_length=10, length_penalty=length_penalty, consensus=consensus),
                **SPECIAL,
            )
            for n in (5, 1)
        )
        assert_same(one, [image[:1] for image in many])


def test_the_length_penalty_favors_long_captions():
    means = []
    for length_penalty in (-1.0, 0.0, 1.0, 3.0):
        lengths = []
        for seed in range(8):
            decoder = network(seed)
            strategy = BeamSearch(width=4, max_length=11, length_penalty=length_penalty, consensus=False)
            lengths += [len(best.tokens) for [best] in generate(decoder, see(decoder), strategy, **SPECIAL)]
        means.append(sum(lengths) / len(lengths))
    assert means == sorted(means)
    assert means[0] < means[-1]


def test_fewer_captions_exist_than_are_asked_for():
    decoder = network(0, vocabulary=5)
    [found] = generate(decoder, see(decoder, images=1), BeamSearch(max_length=1, min_length=0, captions=5), **SPECIAL)
    assert sorted(each.tokens for each in found) == [[EOS], [3], [4]]
    assert math.fsum(math.exp(each.log_prob) for each in found) < 1


def similarity(one, other):
    """CIDEr-D of two captions whose n-grams weigh the sum of the logarithms of their tokens' ranks."""
    total = 0.0
    for size in (1, 2, 3, 4):
        vectors = []
        for tokens in (one, other):
            counts = Counter(tuple(tokens[start : start + size]) for start in range(len(tokens) - size + 1))
            weights = {gram: sum(math.log(token - EOS) for token in gram) for gram in counts}
            vectors.append({gram: count * weights[gram] for gram, count in counts.items()})
        first, second = vectors
        norm = math.hypot(*first.values()) * math.hypot(*second.values())
        clipped = sum(min(value, second.get(gram, 0)) * second.get(gram, 0) for gram, value in first.items())
        total += clipped / norm if norm else 0
    return total * math.exp(-((len(one) - len(other)) ** 2) / 72)


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_consensus_sorts_the_beams_by_what_they_share(length_penalty):
    """The same captions as without consensus, where all of them must finish, in another order."""
    strategy = BeamSearch(width=5, captions=5, max_length=9, length_penalty=length_penalty)
    changed = 0
    for seed in range(8):
        decoder = network(seed)
        memory = see(decoder)
        found, plain = (generate(decoder, memory, each, **SPECIAL) for each in (strategy, probable(strategy)))
        for hypotheses, others in zip(found, plain, strict=True):
            bodies = [[token for token in each.tokens if token != EOS] for each in hypotheses]
            means = [sum(similarity(body, other) for other in bodies) for body in bodies]
            assert means == pytest.approx(sorted(means, reverse=True), abs=1e-6)
            changed += hypotheses != others
            if all(EOS in each.tokens for each in others):
                assert others[0] in hypotheses
    assert changed > 8


def probable(strategy):
    return replace(strategy, consensus=False)


# Sampling


def test_the_whole_distribution_is_drawn_from_without_sorting(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "sort", None)
    probabilities = torch.tensor([[0.5, 0.0, 0.2, 0.3], [0.0, 0.0, 1.0, 0.0]])
    drawn = [Sampling(top_p=1.0).draw(probabilities.log(), torch.full((2,), u)) for u in (0.0, 0.49, 0.51, 0.69, 0.71)]
    assert [each.tolist() for each in drawn] == [[0, 2], [0, 2], [2, 2], [2, 2], [3, 2]]
    last = math.nextafter(1.0, 0.0)
    assert Sampling(top_p=1.0).draw(probabilities.log(), torch.full((2,), last)).tolist() == [3, 2]


def draw(decoder, memory, **options):
    return generate(decoder, memory, Sampling(**{"max_length": 10, "top_p": 1.0, **options}), **SPECIAL)


@pytest.mark.parametrize(
    "options", [{"temperature": 1e-4}, {"temperature": 1e-30}, {"top_k": 1}, {"top_p": 1e-6}], ids=str
)
def test_the_sharpest_sampling_equals_greedy(options):
    for seed in range(5):
        decoder = network(seed)
        memory = see(decoder)
        assert_same(draw(decoder, memory, **options), generate(decoder, memory, Greedy(max_length=10), **SPECIAL))


def frequencies_agree(tokens, probabilities):
    """Pearson's chi-square, below its 99.9th percentile for as many classes as there are."""
    counts, total = Counter(tokens), len(tokens)
    assert set(counts) <= {token for token, p in probabilities.items() if p > 0}
    expected = {token: p * total for token, p in probabilities.items() if p * total >= 5}
    statistic = sum((counts[token] - e) ** 2 / e for token, e in expected.items())
    limit = {2: 13.8, 3: 16.3, 4: 18.5, 5: 20.5, 6: 22.5, 7: 24.3}[max(2, len(expected) - 1)]
    return statistic < limit


@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 0.5}, {"temperature": 2.0}, {"top_k": 3}, {"top_p": 0.7}, {"top_k": 4, "top_p": 0.5}],
    ids=str,
)
@pytest.mark.parametrize("by_key", [False, True])
def test_samples_follow_the_distribution(options, by_key):
    decoder, count = network(EVEN), 3000
    one = see(decoder, images=1)
    if by_key:  # many images that look the same, one sample each
        memory, samples = one.select(torch.zeros(count, dtype=torch.long)), 1
    else:
        memory, samples = one, count
    found = draw(decoder, memory, max_length=1, min_length=0, samples=samples, **options)
    tokens = [hypothesis.tokens[0] for hypothesis in itertools.chain(*found)]

    log_probs = next_log_probs(decoder, one, [])
    weights = {t: math.exp(p / options.get("temperature", 1.0)) for t, p in enumerate(log_probs) if t not in (PAD, BOS)}
    shares = {token: weight / sum(weights.values()) for token, weight in weights.items()}
    kept, mass = {}, 0.0
    for token in sorted(shares, key=lambda token: -shares[token])[: options.get("top_k") or V]:
        if mass < options.get("top_p", 1.0):
            kept[token] = shares[token]
        mass += shares[token]
    assert frequencies_agree(tokens, {token: share / sum(kept.values()) for token, share in kept.items()})


def test_the_nucleus_is_the_smallest_set_that_reaches_top_p():
    decoder = network(EVEN)
    memory = see(decoder, images=1)
    shares = {t: math.exp(p) for t, p in enumerate(next_log_probs(decoder, memory, [])) if t not in (PAD, BOS)}
    ranked = sorted(shares, key=lambda token: -shares[token])
    reached = 0.0
    for count, token in enumerate(ranked[:4], start=1):
        reached += shares[token] / sum(shares.values())
        for top_p, size in ((reached - 0.001, count), (reached + 0.001, count + 1)):
            [found] = draw(decoder, memory, max_length=1, min_length=0, samples=400, top_p=top_p)
            assert {hypothesis.tokens[0] for hypothesis in found} == set(ranked[:size])


def test_later_words_follow_the_distribution_too():
    decoder = network(EVEN)
    memory = see(decoder, images=1)
    found = draw(decoder, memory, max_length=2, min_length=1, samples=6000)
    pairs = [tuple(hypothesis.tokens) for hypothesis in found[0]]
    first = Counter(pair[0] for pair in pairs).most_common(1)[0][0]
    shares = {t: math.exp(p) for t, p in enumerate(next_log_probs(decoder, memory, [first])) if t not in (PAD, BOS)}
    total = sum(shares.values())
    seconds = [pair[1] for pair in pairs if pair[0] == first]
    assert len(seconds) > 500
    assert frequencies_agree(seconds, {token: share / total for token, share in shares.items()})


def test_noise_depends_on_seed_and_key_alone():
    decoder = network(EVEN)
    memory = see(decoder, images=1).select(torch.zeros(2, dtype=torch.long))
    strategy = Sampling(max_length=10, samples=4, temperature=2.0, top_p=1.0)

    def found(seed=0, keys=("a", "b")):
        return generate(decoder, memory, replace(strategy, seed=seed), **SPECIAL, keys=keys)

    torch.manual_seed(1)
    a, b = found()
    torch.manual_seed(2)
    assert found() == [a, b]
    assert a != b
    assert_same(found(keys=("b", "a")), [b, a])
    assert_same(found(keys=("a", "a")), [a, a])
    assert found(seed=1)[0] != a
    assert len({tuple(each.tokens) for each in a}) > 1
    state = torch.get_rng_state()
    found()
    assert torch.equal(torch.get_rng_state(), state)


def test_without_keys_images_are_told_apart_by_their_place():
    decoder = network(EVEN)
    memory = see(decoder, images=1).select(torch.zeros(2, dtype=torch.long))
    strategy = Sampling(max_length=10, temperature=2.0, top_p=1.0)
    by_place = generate(decoder, memory, strategy, **SPECIAL)
    assert by_place == generate(decoder, memory, strategy, **SPECIAL, keys=["0", "1"])
    assert by_place[0] != by_place[1]


# What is refused


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (Greedy, {"max_length": 0}, "0 <= min < max"),
        (Greedy, {"min_length": -1}, "0 <= min < max"),
        (Greedy, {"min_length": 5, "max_length": 5}, "min_length 5 and max_length 5"),
        (Greedy, {"no_repeat_ngram": -1}, "no_repeat_ngram -1"),
        (Sampling, {"temperature": 0.0}, "temperature must be above 0"),
        (Sampling, {"temperature": math.nan}, "temperature nan"),
        (Sampling, {"temperature": math.inf}, "temperature inf"),
        (Sampling, {"top_p": 0.0}, r"top_p in \(0, 1\]"),
        (Sampling, {"top_p": 1.1}, "top_p 1.1"),
        (Sampling, {"top_k": -1}, "top_k at least 0"),
        (Sampling, {"samples": 0}, "samples at least 1"),
        (Sampling, {"min_length": -1}, "0 <= min < max"),
        (BeamSearch, {"width": 0}, "ask for 1 to 0"),
        (BeamSearch, {"captions": 0}, "captions 0"),
        (BeamSearch, {"captions": 4, "width": 3}, "ask for 1 to 3"),
        (BeamSearch, {"length_penalty": math.nan}, "length_penalty nan"),
        (BeamSearch, {"min_length": -1}, "0 <= min < max"),
    ],
)
def test_options_that_make_no_sense(make, options, message):
    with pytest.raises(ConfigError, match=message):
        make(**options)


@pytest.mark.parametrize(
    ("most", "prefix"), [(12, ()), (3, (3, 4, 5)), (3, (3, 4, 5, 6))], ids=["positions", "prefix", "longer prefix"]
)
def test_lengths_that_do_not_fit_the_model(most, prefix):
    decoder = network(0)
    with pytest.raises(ConfigError, match=f"max_length {most} with a prefix of {len(prefix)} tokens"):
        generate(decoder, see(decoder), Greedy(max_length=most), **SPECIAL, prefix=prefix)
    assert generate(decoder, see(decoder), Greedy(max_length=11), **SPECIAL, prefix=prefix)


def test_captions_are_searched_without_gradients():
    decoder = network(0)
    features = torch.randn(1, N, E, requires_grad=True)
    [[hypothesis]] = generate(decoder, decoder.project(features), Greedy(max_length=5), **SPECIAL)
    assert isinstance(hypothesis.tokens[0], int)
    assert isinstance(hypothesis.log_prob, float)
    assert_close(features.grad, None)


def test_weights_that_change_behind_autograds_back_are_used():
    """As averages of weights are swapped in for a validation."""
    decoder, other = network(0), network(1)
    strategy = BeamSearch(max_length=10)
    generate(decoder, see(decoder), strategy, **SPECIAL)
    for weight, new in zip(decoder.parameters(), other.parameters(), strict=True):
        weight.data.copy_(new.data)
    assert generate(decoder, see(decoder), strategy, **SPECIAL) == generate(other, see(other), strategy, **SPECIAL)


@pytest.mark.parametrize("strategy", [Greedy(max_length=11), BeamSearch(max_length=11), Sampling(max_length=11)])
@pytest.mark.parametrize("steps", [0, 1, 4])
def test_a_search_that_is_stopped_gives_what_it_has(strategy, steps):
    decoder = network(0)
    search = Search(decoder, see(decoder), strategy, **SPECIAL)
    for _ in range(steps):
        search.step()
    calls = iter([False] * steps + [True])
    assert generate(decoder, see(decoder), strategy, **SPECIAL, stop=lambda: next(calls)) == search.captions()
    assert next(calls, None) is None
