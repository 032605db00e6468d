"""The decoder's equalities: causality, cache, chunks, folding, fused and explicit attention."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from captioner.config import DecoderConfig
from captioner.errors import ConfigError
from captioner.model.attention import KeyValues
from captioner.model.decoder import INITIAL_STD, TextDecoder
from captioner.model.memory import Memory

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
B, C, T, N, E, V = 2, 3, 8, 5, 6, 11


@pytest.fixture
def decoder(build):
    return build()


@pytest.fixture
def features():
    return torch.randn(B, N, E)


@pytest.fixture
def tokens():
    return torch.randint(V, (B * C, T))


def copied(memory, times):
    return Memory(
        tuple(
            KeyValues(each.keys.repeat_interleave(times, 0), each.values.repeat_interleave(times, 0))
            for each in memory.layers
        ),
        memory.sources,
    )


def test_a_later_token_changes_nothing_before_it(decoder, features, tokens):
    memory = decoder.project(features)
    logits = decoder(tokens, memory).logits
    for t in range(T):
        changed = tokens.clone()
        changed[:, t] = (changed[:, t] + 1) % V
        others = decoder(changed, memory).logits
        assert torch.equal(others[:, :t], logits[:, :t])
        assert (others[:, t:] - logits[:, t:]).abs().amax(dim=(0, 2)).min() > 1e-3


def test_padding_on_the_right_needs_no_mask(decoder, features, tokens):
    memory = decoder.project(features)
    padded = F.pad(tokens, (0, 3), value=0)
    assert_close(decoder(padded, memory).logits[:, :T], decoder(tokens, memory).logits, **CLOSE)


def test_token_by_token_with_a_cache_equals_all_at_once(decoder, features, tokens):
    memory, cache = decoder.project(features), decoder.new_cache()
    with torch.no_grad():
        full = decoder(tokens, memory, return_weights=True)
        for t in range(T):
            step = decoder(tokens[:, t : t + 1], memory, cache, return_weights=True)
            assert cache.length == t + 1
            assert_close(step.logits[:, 0], full.logits[:, t], **CLOSE)
            assert_close(step.weights[:, :, :, 0], full.weights[:, :, :, t], **CLOSE)


@pytest.mark.parametrize("cuts", [(3,), (1,), (7,), (2, 5), (1, 2, 6)])
def test_prefix_and_chunks_equal_all_at_once(decoder, features, tokens, cuts):
    memory, cache = decoder.project(features), decoder.new_cache(capacity=T)
    with torch.no_grad():
        parts = [decoder(part, memory, cache).logits for part in tokens.tensor_split(cuts, dim=1)]
        assert_close(torch.cat(parts, dim=1), decoder(tokens, memory).logits, **CLOSE)


@pytest.mark.parametrize("rows", [[0, 0, 1, 1], [1, 0], [1, 1, 1, 0, 0, 0]])
def test_a_selected_cache_goes_on_as_its_rows(decoder, features, rows):
    chosen = images = torch.tensor(rows)
    prefix, rest = torch.randint(V, (B, 4)), torch.randint(V, (len(rows), 3))
    with torch.no_grad():
        memory, cache = decoder.project(features), decoder.new_cache()
        decoder(prefix, memory, cache)
        cache.select(chosen)
        continued = decoder(rest, memory.select(images), cache).logits
        whole = decoder(torch.cat([prefix[chosen], rest], dim=1), memory.select(images)).logits
    assert_close(continued, whole[:, 4:], **CLOSE)


@pytest.mark.parametrize("return_weights", [False, True])
def test_folded_equals_copied_gradients_too(decoder, features, tokens, return_weights):
    gradients, logits = [], []
    for times in (1, C):
        decoder.zero_grad()
        inputs = features.clone().requires_grad_()
        memory = decoder.project(inputs)
        output = decoder(tokens, memory if times == 1 else copied(memory, C), return_weights=return_weights)
        output.logits.log_softmax(-1)[..., 0].sum().backward()
        logits.append(output.logits.detach())
        gradients.append([inputs.grad, *(p.grad.clone() for p in decoder.parameters())])
    assert_close(logits[0], logits[1], **CLOSE)
    for folded, copies in zip(*gradients, strict=True):
        assert_close(folded, copies, atol=1e-4, rtol=1e-4)


def test_one_image_of_many_rows_equals_each_row_alone(decoder, features, tokens):
    logits = decoder(tokens, decoder.project(features)).logits
    for row in range(B * C):
        alone = decoder(tokens[row : row + 1], decoder.project(features[row // C][None])).logits
        assert_close(logits[row : row + 1], alone, **CLOSE)


def test_fused_equals_explicit_gradients_too(decoder, features, tokens):
    logits, gradients = [], []
    for return_weights in (False, True):
        decoder.zero_grad()
        inputs = features.clone().requires_grad_()
        output = decoder(tokens, decoder.project(inputs), return_weights=return_weights)
        output.logits.log_softmax(-1)[..., 0].sum().backward()
        logits.append(output.logits.detach())
        gradients.append([inputs.grad, *(p.grad.clone() for p in decoder.parameters())])
        assert (output.weights is None) == (not return_weights)
    assert_close(logits[0], logits[1], **CLOSE)
    for fused, explicit in zip(*gradients, strict=True):
        assert_close(fused, explicit, atol=1e-4, rtol=1e-4)


def test_weights_of_each_word_sum_to_one(decoder, features, tokens):
    weights = decoder(tokens, decoder.project(features), return_weights=True).weights
    assert weights.shape == (B * C, 2, 4, T, N + 1)
    assert weights.min() >= 0
    assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))


def test_the_null_patch_takes_the_mass_that_its_key_earns(decoder, features, tokens):
    assert decoder.project(features).sources == (*["image"] * N, "null")
    with torch.no_grad():
        for block in decoder.blocks:
            block.cross_attention.null[0].zero_()  # as probable as exp(0)
            block.cross_attention.key_value.weight.zero_()
            block.cross_attention.key_value.bias.zero_()
    even = decoder(tokens, decoder.project(features), return_weights=True).weights
    assert_close(even[..., -1], torch.full(even.shape[:-1], 1 / (N + 1)))


def test_every_parameter_is_trained(decoder, features, tokens):
    F.cross_entropy(
        decoder(tokens[:, :-1], decoder.project(features)).logits.flatten(0, 1), tokens[:, 1:].flatten()
    ).backward()
    assert [name for name, p in decoder.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_states_are_what_logits_are_made_of(decoder, features, tokens):
    memory = decoder.project(features)
    states, weights = decoder.states(tokens, memory)
    assert weights is None
    assert torch.equal(decoder.logits(states), decoder(tokens, memory).logits)
    expected = states[:, 2] @ decoder.token_embedding.weight.T
    assert_close(decoder.logits(states[:, 2]), expected, **CLOSE)


def test_features_pass_a_norm_and_one_linear_map(decoder, features):
    normed = F.layer_norm(features, (E,), decoder.feature_norm.weight, decoder.feature_norm.bias, 1e-5)
    key_value = decoder.blocks[1].cross_attention.key_value(decoder.feature_projection(normed))
    keys = key_value[..., :16].view(B, N, 4, 4).transpose(1, 2)
    assert_close(decoder.project(features).layers[1].keys[:, :, :N], keys, **CLOSE)


def test_no_feature_projection_where_widths_are_equal(build):
    with pytest.raises(ConfigError, match=r"decoder\.feature_projection: false needs decoder\.width 6"):
        build(feature_projection=False)
    plain = TextDecoder(DecoderConfig(width=6, heads=2, feature_projection=False), vocabulary=V, encoder_width=6)
    assert not any("feature_projection" in name for name in plain.state_dict())
    assert plain.project(torch.randn(1, N, 6)).positions == N + 1


def test_an_empty_cache_has_room_for_every_position(decoder, features):
    memory, cache = decoder.project(features), decoder.new_cache()
    with torch.no_grad():
        decoder(torch.randint(V, (B, 12)), memory, cache)
    assert cache.length == 12
    with pytest.raises(IndexError):
        decoder(torch.randint(V, (B, 13)), memory)


def test_a_grown_vocabulary_leaves_the_known_words_alone(decoder, features, tokens):
    memory = decoder.project(features)
    before, embeddings = decoder(tokens, memory).logits, decoder.token_embedding.weight.detach().clone()
    decoder.grow(V + 4)
    after = decoder(tokens, memory).logits
    assert decoder.vocabulary == V + 4
    assert after.shape == (B * C, T, V + 4)
    assert torch.equal(decoder.token_embedding.weight[:V], embeddings)
    assert_close(after[..., :V], before, **CLOSE)
    new = decoder.token_embedding.weight[V:]
    assert new.requires_grad
    assert (new - embeddings.mean(0)).abs().max() < 6 * INITIAL_STD
    assert not torch.equal(new[0], new[1])


def test_dropout_can_be_changed(build, features, tokens):
    decoder = build(dropout=0.5)
    decoder.set_dropout(0.0)
    memory = decoder.project(features)
    assert torch.equal(decoder.train()(tokens, memory).logits, decoder.eval()(tokens, memory).logits)
    decoder.set_dropout(0.9)
    assert not torch.equal(decoder.train()(tokens, memory).logits, decoder.eval()(tokens, memory).logits)


def test_the_initialization_is_gpt_2s():
    decoder = TextDecoder(DecoderConfig(width=64, layers=3, heads=4, null_patch=True), vocabulary=500, encoder_width=32)
    state = decoder.state_dict()
    assert state["token_embedding.weight"].std() == pytest.approx(0.02, rel=0.05)
    assert state["blocks.0.self_attention.query_key_value.weight"].std() == pytest.approx(0.02, rel=0.05)
    for name in ("self_attention.output", "cross_attention.output", "feed_forward.2"):
        assert state[f"blocks.1.{name}.weight"].std() == pytest.approx(0.02 / 3, rel=0.1)
    assert all(
        (value == 0).all() for name, value in state.items() if name.endswith("bias") and "projection" not in name
    )
