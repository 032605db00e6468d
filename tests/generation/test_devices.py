"""Searches on an accelerator: everything stays there, and the host waits as rarely as is stated here."""

from dataclasses import replace

import pytest
import torch
from torch import is_tensor

from captioner.config import DecoderConfig
from captioner.generation import BeamSearch, Greedy, Sampling, Search, strategies
from captioner.generation.search import CHECK_STEPS
from captioner.model.decoder import TextDecoder
from tests import test_generation
from tests.fake_cuda import FakeCuda, on_cuda, to_fake_cuda

B, N, E, V, LENGTH = 8, 5, 6, 9, 12
STRATEGIES = [
    Greedy(max_length=LENGTH, min_length=4, no_repeat_ngram=2),
    Sampling(max_length=LENGTH, samples=3),
    BeamSearch(max_length=LENGTH, width=5, captions=2, min_length=4),
]


def begin(strategy, hidden=False):
    """A search on fake CUDA; inside the mode."""
    config = DecoderConfig(width=32, layers=2, heads=2, max_length=16)
    decoder = to_fake_cuda(TextDecoder(config, vocabulary=V, encoder_width=E).eval())
    memory = decoder.project(torch.zeros(B, N, E, device="cuda"))
    if hidden:
        keep = torch.ones(B, memory.positions, dtype=torch.bool, device="cuda")
        memory = replace(memory, layers=tuple(each._replace(keep=keep) for each in memory.layers))
    return Search(decoder, memory, strategy, bos=1, eos=2, suppressed=(0, 1), once=(5, 6), control=(7,), prefix=(4, 3))


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
def test_a_search_reads_one_number_every_few_steps(strategy, hidden):
    """How many images have finished, which `answer` tells: none, or some, which are left out without another wait."""
    for finished in (0, 3):
        with FakeCuda(answer=finished) as cuda:
            search, images = begin(strategy, hidden), B
            for length in range(3, LENGTH + 1):
                cuda.waits.clear()
                search.step()
                checked = length % CHECK_STEPS == 0 and length < LENGTH
                assert cuda.waits == ["aten._local_scalar_dense.default"] * checked
                images -= finished * checked
                assert search.done == (length == LENGTH)
                assert search._log_probs.shape == (images * strategy.rows, V)
                assert on_cuda(search._log_probs, *(each for each in vars(search._state).values() if is_tensor(each)))
            found = search.sequences()
            assert on_cuda(*found)
            assert found.tokens.shape == (
                B,
                strategy.captions if test_generation.is_beam(strategy) else strategy.rows,
                LENGTH,
            )


@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
def test_a_search_ends_at_the_check_that_finds_all_images_finished(strategy):
    with FakeCuda(answer=B) as cuda:
        search = begin(strategy)
        cuda.waits.clear()
        while not search.done:
            search.step()
        assert cuda.waits == ["aten._local_scalar_dense.default"]
        assert search.sequences().tokens.shape[2] == CHECK_STEPS


@pytest.mark.parametrize("strategy", test_generation.STRATEGIES, ids=str)
@pytest.mark.parametrize("seed", range(6))
def test_fewer_checks_find_the_same_captions(strategy, seed, monkeypatch):
    """A CPU that checks as rarely as an accelerator, and that never skips a step without finished beams."""
    decoder = test_generation.network(seed)
    memory = test_generation.see(decoder, images=6, seed=seed)
    expected = search_all(decoder, memory, strategy)
    monkeypatch.setattr(strategies, "bool", lambda anything: True, raising=False)
    found = search_all(decoder, memory, strategy, check_steps=CHECK_STEPS)
    test_generation.assert_same(found.captions(), expected.captions())
    assert 0 <= found._state.length - expected._state.length < CHECK_STEPS


def search_all(decoder, memory, strategy, check_steps=1):
    search = Search(decoder, memory, strategy, **test_generation.SPECIAL)
    assert search._check_steps == 1
    search._check_steps = check_steps
    while not search.done:
        search.step()
    return search
