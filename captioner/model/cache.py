"""The key/value cache of self-attention.   R rows · H heads · S tokens so far · T new tokens · d head width"""

import torch
from torch import Tensor


class LayerCache:
    """Keys and values of one layer for up to `capacity` tokens, of which the first `length` are filled.

    Tokens are the first dimension of the storage, so that the filled part is contiguous.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.length = 0
        self._stored: Tensor | None = None  # (capacity, 2, R, H, d)
        self.mask: Tensor | None = None
        """(1, S + T) bool: which of the tokens that `append` returns are filled; None if all are."""

    @property
    def stored(self) -> Tensor:
        """(capacity, 2, R, H, d): the keys and values of a cache that has been filled at least in part."""
        assert self._stored is not None
        return self._stored

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append keys and values (R, H, T, d); return all so far, (R, H, S + T, d). Raises ValueError when full."""
        if self.length + keys.shape[2] > self.capacity:
            # Checked here, because a single token would broadcast silently into an empty slice.
            raise ValueError(f"the cache has room for {self.capacity} tokens, not {self.length + keys.shape[2]}")
        if self._stored is None:
            rows, heads, _, width = keys.shape
            self._stored = keys.new_empty(self.capacity, 2, rows, heads, width)
        start, self.length = self.length, self.length + keys.shape[2]
        self._stored[start : self.length, 0] = keys.permute(2, 0, 1, 3)
        self._stored[start : self.length, 1] = values.permute(2, 0, 1, 3)
        filled = self._stored[: self.length].permute(1, 2, 3, 0, 4)  # (2, R, H, S, d)
        return filled[0], filled[1]

    def select(self, rows: Tensor, spare: Tensor | None = None) -> Tensor | None:
        """Keep these rows (R',), in this order; a row may be named more than once.

        They are copied into `spare` where it fits; returns the previous storage for reuse. Not differentiable.
        """
        stored = self._stored
        if stored is None:
            return spare
        if spare is None or spare.shape[2] != len(rows):
            spare = stored.new_empty(self.capacity, 2, len(rows), *stored.shape[3:])
        torch.index_select(stored[: self.length], 2, rows, out=spare[: self.length])
        self._stored = spare
        return stored


class CaptionCache:
    """The self-attention keys and values of every layer; owned by the caller."""

    def __init__(self, *, layers: int, capacity: int, layer: type[LayerCache] = LayerCache) -> None:
        self.layers = tuple(layer(capacity) for _ in range(layers))
        self._spare: Tensor | None = None

    @property
    def length(self) -> int:
        """Tokens so far."""
        return self.layers[0].length

    def select(self, rows: Tensor) -> None:
        """Keep these rows (R',) of every layer, in this order; a row may be named more than once."""
        rows = rows.to(torch.long)
        for layer in self.layers:  # each copies into the buffer that the one before it left
            self._spare = layer.select(rows, self._spare)
