"""What self-attention remembers.   R rows · H heads · S tokens so far · T new tokens · d head width"""

import torch
from torch import Tensor


class LayerCache:
    """Keys and values of one layer, (R, H, capacity, d), of which the first `length` are filled."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.length = 0
        self._stored: Tensor | None = None  # (2, R, H, capacity, d)

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store (R, H, T, d) after what is there; return all keys and values so far, (R, H, S + T, d).

        Raises ValueError where they do not fit.
        """
        if self.length + keys.shape[2] > self.capacity:
            # Said aloud: a slice beyond the end is empty, and one token broadcasts into it without a word.
            raise ValueError(f"the cache has room for {self.capacity} tokens, not {self.length + keys.shape[2]}")
        if self._stored is None:
            rows, heads, _, width = keys.shape
            self._stored = keys.new_empty(2, rows, heads, self.capacity, width)
        start, self.length = self.length, self.length + keys.shape[2]
        self._stored[0, :, :, start : self.length] = keys
        self._stored[1, :, :, start : self.length] = values
        filled = self._stored[:, :, :, : self.length]
        return filled[0], filled[1]

    def select(self, rows: Tensor) -> None:
        """Keep these rows (R',), in this order; a row may be named more than once."""
        if self._stored is None:
            return
        filled = self._stored[:, :, :, : self.length].index_select(1, rows)
        if len(rows) > self._stored.shape[1]:
            self._stored = self._stored.new_empty(2, len(rows), *self._stored.shape[2:])
        self._stored = self._stored[:, : len(rows)]
        self._stored[:, :, :, : self.length] = filled


class CaptionCache:
    """The self-attention keys and values of every layer; the caller holds it, passes it in, and drops it."""

    def __init__(self, *, layers: int, capacity: int) -> None:
        self.layers = tuple(LayerCache(capacity) for _ in range(layers))

    @property
    def length(self) -> int:
        """Tokens so far."""
        return self.layers[0].length

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store new keys and values (R, H, T, d) of a layer; return all of that layer so far."""
        return self.layers[layer].append(keys, values)

    def select(self, rows: Tensor) -> None:
        """Keep these rows (R',) of every layer, in this order; a row may be named more than once."""
        rows = rows.to(torch.long)
        for layer in self.layers:
            layer.select(rows)
