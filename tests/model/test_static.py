"""Steps of fixed shapes find what ordinary searches find, in the same places of memory, and read nothing."""

from contextlib import contextmanager, nullcontext
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from captioner.config import DecoderConfig
from captioner.generation import BeamSearch, Greedy, Sampling, Search, generate
from captioner.generation.search import CHECK_STEPS
from captioner.model.decoder import TextDecoder
from captioner.model.static import KEPT, StaticDecoder
from tests.fake_cuda import FakeCuda, on_cuda, to_fake_cuda
from tests.test_generation import SPECIAL, STRATEGIES, E, N, assert_same, is_beam, network

FORCED = [{}, {"control": (7, 5), "prefix": (4,), "once": (3, 4, 5)}]


def shown(decoder, images, seed, hidden=False):
    generator = torch.Generator().manual_seed(seed)
    memory = decoder.project(torch.randn(images, N, E, generator=generator))
    if not hidden:
        return memory
    keep = torch.rand(images, memory.positions, generator=generator) < 0.5
    return memory.mask(keep.index_fill(1, torch.tensor([seed % N]), True))


def short(strategy):
    return replace(strategy, max_length=9)


@pytest.mark.parametrize("options", FORCED, ids=["plain", "forced"])
@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
def test_captions_and_log_probs_equal_those_of_ordinary_searches(strategy, hidden, options):
    decoder = network(7)
    static = StaticDecoder(decoder)
    for seed in range(3):  # all but the first reuse a state
        memory, strategy = shown(decoder, 5, seed, hidden), short(strategy)
        found = generate(static, memory, strategy, **SPECIAL, **options)
        assert_same(found, generate(decoder, memory, strategy, **SPECIAL, **options))
    [state] = static._idle.values()
    assert state.searches == 3
    assert torch.isfinite(state.stored).all()


@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
def test_without_a_null_patch(strategy):
    config = DecoderConfig(width=16, layers=3, heads=4, max_length=12, null_patch=False)
    decoder = TextDecoder(config, vocabulary=9, encoder_width=E).eval()
    with torch.no_grad():
        for weight in decoder.parameters():
            weight.add_(torch.randn_like(weight) * 0.3)
    memory = shown(decoder, 3, 0)
    assert_same(
        generate(StaticDecoder(decoder), memory, strategy, **SPECIAL), generate(decoder, memory, strategy, **SPECIAL)
    )


@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
def test_searches_may_alternate_and_be_left(strategy):
    decoder = network(7)
    static = StaticDecoder(decoder)
    memories = [shown(decoder, 3, seed) for seed in range(3)]
    left, *searches = [Search(static, memory, strategy, **SPECIAL) for memory in memories]
    left.step()
    while not all(search.done for search in searches):
        for search in searches:
            if not search.done:
                search.step()
    for search, memory in zip(searches, memories[1:], strict=True):
        assert_same(search.captions(), generate(decoder, memory, strategy, **SPECIAL))
    assert left._static[1] not in static._idle.values()


def test_states_of_the_latest_shapes_are_kept():
    decoder = network(0)
    static = StaticDecoder(decoder)
    for images in (1, 2, 3, 1, 4, 5, 6):
        generate(static, shown(decoder, images, 0), Greedy(max_length=6), **SPECIAL)
    assert [len(each.tokens) for each in static._idle.values()] == [1, 4, 5, 6][-KEPT:]


class Recorder(TorchDispatchMode):
    """The operations, with the sizes and strides of the tensors that they are given."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = [(each.shape, each.stride(), each.dtype) for each in args if isinstance(each, torch.Tensor)]
        self.operations.append((str(func), given))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
def test_every_step_is_the_same_operations_on_the_same_buffers(strategy, monkeypatch):
    """Also those of later searches."""
    decoder = network(7)
    static, steps, buffers = StaticDecoder(decoder), [], set()
    decode = static._decode

    def record(state):
        with Recorder() as recorder:
            decode(state)
        steps.append(recorder.operations)
        parts = [state.stored, state.position, state.mask, state.tokens, *(each.keys for each in state.memory.layers)]
        buffers.add(tuple(each.data_ptr() for each in parts))

    monkeypatch.setattr(static, "_decode", record)
    for seed in range(2):
        generate(static, shown(decoder, 3, seed), strategy, **SPECIAL)
    assert len(steps) > 4
    assert all(step == steps[0] for step in steps)
    assert len(buffers) == 1


@contextmanager
def fake_graphs(monkeypatch):
    """PyTorch's CUDA graphs without CUDA: how often one was captured and launched."""
    counts = {"captured": 0, "launched": 0}

    class Graph:
        def replay(self):
            counts["launched"] += 1

    @contextmanager
    def capture(graph, *, stream, capture_error_mode):
        assert (stream, capture_error_mode) == ("stream", "thread_local")
        counts["captured"] += 1
        yield

    for name, each in {
        "CUDAGraph": Graph,
        "graph": capture,
        "Stream": lambda: "stream",
        "device": lambda device: nullcontext(),
    }.items():
        monkeypatch.setattr(torch.cuda, name, each)
    yield counts


@pytest.mark.parametrize(
    "strategy", [Greedy(max_length=9), Sampling(max_length=9, samples=2), BeamSearch(max_length=9)]
)
@pytest.mark.parametrize("hidden", [False, True])
def test_on_cuda_the_second_search_captures_a_step_and_none_is_waited_for(strategy, hidden, monkeypatch):
    config = DecoderConfig(width=16, layers=2, heads=2, max_length=12)
    with fake_graphs(monkeypatch) as counts, FakeCuda(answer=0) as cuda:
        static = StaticDecoder(to_fake_cuda(TextDecoder(config, vocabulary=9, encoder_width=E).eval()))
        memory = shown_on_cuda(static, hidden)
        for number in range(3):
            search = Search(static, memory, strategy, **SPECIAL)
            steps = 0
            while not search.done:
                cuda.waits.clear()
                search.step()
                steps += 1
                checked = steps % CHECK_STEPS == 0 and not search.done
                assert cuda.waits == ["aten._local_scalar_dense.default"] * checked
            assert steps == 9
            assert on_cuda(*search.sequences())
            assert counts == {"captured": min(number, 1), "launched": number * (steps - 1)}
        assert search.sequences().tokens.shape == (4, 1 if is_beam(strategy) else strategy.rows, 9)


def shown_on_cuda(decoder, hidden):
    memory = decoder.project(torch.zeros(4, N, E, device="cuda"))
    keep = torch.ones(4, memory.positions, dtype=torch.bool, device="cuda")
    return replace(memory, layers=tuple(each._replace(keep=keep) for each in memory.layers)) if hidden else memory
