"""Decoding steps of fixed shapes, which CUDA graphs can capture.   B images · R rows · S capacity in tokens · L layers

A step of a small decoder is a hundred kernels, which take longer to launch than to run; a graph launches them at once.
"""

from collections import OrderedDict
from dataclasses import replace

import torch
from torch import Tensor

from captioner.model.attention import KeyValues
from captioner.model.cache import CaptionCache, LayerCache
from captioner.model.decoder import TextDecoder
from captioner.model.memory import Memory
from captioner.model.packed import PackedDecoder, PackedLinear

KEPT = 4
"""Number of idle states that are kept for later searches, each for batches of one shape."""


class StaticLayer(LayerCache):
    """Writes one token a row at `position` (1,) of a storage (S, 2, R, H, d); `append` returns all S of each row."""

    def __init__(self, stored: Tensor, position: Tensor, mask: Tensor) -> None:
        super().__init__(capacity=len(stored))
        self._stored, self.mask, self.position = stored, mask, position
        self.length = position  # type: ignore[assignment]  # a number would be frozen in the graph

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        self.stored.index_copy_(0, self.position, torch.stack([keys, values]).permute(3, 0, 1, 2, 4))
        filled = self.stored.permute(1, 2, 3, 0, 4)  # (2, R, H, S, d)
        return filled[0], filled[1]


class StaticState:
    """The tensors that a step reads and writes, for batches of one shape, and on CUDA the graph of a step."""

    def __init__(self, memory: Memory, cache: CaptionCache, rows: int) -> None:
        first = cache.layers[0].stored
        capacity, pair, _, heads, width = first.shape
        self.shape = _shape(memory, cache, rows)
        self.searches = 0
        self.memory = replace(memory, layers=tuple(_copy(each) for each in memory.layers))
        self.stored = first.new_zeros(len(cache.layers), capacity, pair, rows, heads, width)
        self.position = torch.zeros(1, dtype=torch.long, device=first.device)
        self.places = torch.arange(capacity, device=first.device)
        self.mask = torch.zeros(1, capacity, dtype=torch.bool, device=first.device)
        self.cache = CaptionCache(layers=0, capacity=0)
        self.cache.layers = tuple(StaticLayer(each, self.position, self.mask) for each in self.stored)
        self.tokens = torch.zeros(rows, 1, dtype=torch.long, device=first.device)
        self.logits = first.new_zeros(0)
        self.graph: torch.cuda.CUDAGraph | None = None

    def load(self, memory: Memory, cache: CaptionCache, rows: Tensor) -> None:
        """Start a search with its memory and the cached tokens of these rows (R,)."""
        for mine, given in zip(self.memory.layers, memory.layers, strict=True):
            mine.keys.copy_(given.keys)
            mine.values.copy_(given.values)
            if mine.keep is not None and given.keep is not None:
                mine.keep.copy_(given.keep)
        self.stored.zero_()  # a hidden token has weight zero, but zero times infinity is NaN
        for stored, layer in zip(self.stored, cache.layers, strict=True):
            stored[: cache.length] = layer.stored[: cache.length].index_select(2, rows)
        self.position.fill_(cache.length)
        self.searches += 1


class StaticDecoder(PackedDecoder):
    """A decoder for searches in steps of fixed shapes; it shares another's weights and is in evaluation mode.

    On CUDA, the second search of a shape captures its step as a graph, and later searches launch it. Searches may be
    interleaved: each has its own state, which `release` keeps for a later search.
    """

    def __init__(self, decoder: TextDecoder) -> None:
        super().__init__(decoder, PackedLinear)
        self._idle: OrderedDict[tuple[object, ...], StaticState] = OrderedDict()

    def begin(self, memory: Memory, cache: CaptionCache, rows: Tensor) -> StaticState:
        """The state of a search that continues from these rows (R,) of a cache."""
        state = self._idle.pop(_shape(memory, cache, len(rows)), None) or StaticState(memory, cache, len(rows))
        state.load(memory, cache, rows)
        return state

    def step(self, state: StaticState, tokens: Tensor, rows: Tensor | None = None) -> Tensor:
        """tokens (R, 1), which follow these rows (R,) of the state -> logits (R, 1, V), until the next step."""
        if rows is not None:
            state.stored.copy_(state.stored.index_select(3, rows))
        state.tokens.copy_(tokens)
        if state.graph is None and state.searches > 1 and tokens.device.type == "cuda":
            graph = torch.cuda.CUDAGraph()
            with (
                torch.cuda.device(tokens.device),
                torch.cuda.graph(graph, stream=torch.cuda.Stream(), capture_error_mode="thread_local"),
            ):
                self._decode(state)
            state.graph = graph
        if state.graph is not None:
            state.graph.replay()
        else:
            self._decode(state)
        return state.logits

    def release(self, state: StaticState) -> None:
        """Keep the state of a finished search for a later one of the same shape."""
        self._idle[state.shape] = state
        while len(self._idle) > KEPT:
            self._idle.popitem(last=False)

    def _decode(self, state: StaticState) -> None:
        state.mask.copy_(state.places <= state.position)
        state.logits = self(state.tokens, state.memory, state.cache).logits
        state.position += 1


def _copy(memory: KeyValues) -> KeyValues:
    keys, values, keep = memory
    return KeyValues(keys.clone(), values.clone(), None if keep is None else keep.clone())


def _shape(memory: Memory, cache: CaptionCache, rows: int) -> tuple[object, ...]:
    """What is fixed in a state."""
    parts = cache.layers[0].stored, *memory.layers[0]
    return rows, *(None if part is None else (part.shape, part.dtype) for part in parts)
