"""What the decoder attends to.   B images · R rows · N memory positions · H heads · d head width"""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from captioner.model.attention import KeyValues


@dataclass(frozen=True)
class Memory:
    """One `KeyValues` per layer over the same N positions, all with the same mask."""

    layers: tuple[KeyValues, ...]
    sources: tuple[str, ...]
    """The origin of each position: `image` or `null`."""

    @property
    def images(self) -> int:
        """B, the number of images."""
        return self.layers[0].keys.shape[0]

    @property
    def positions(self) -> int:
        """N, the positions that a word can attend to."""
        return self.layers[0].keys.shape[2]

    def select(self, images: Tensor) -> Self:
        """The memory of these images (B',), in this order, with the mask of all their rows."""

        def rows(part: Tensor) -> Tensor:
            return part.unflatten(0, (self.images, -1))[images].flatten(0, 1)  # type: ignore[no-any-return]

        layers = tuple(
            KeyValues(keys[images], values[images], None if keep is None else rows(keep))
            for keys, values, keep in self.layers
        )
        return replace(self, layers=layers)

    def take(self, positions: Tensor) -> Self:
        """The memory of these positions (N',) only, in this order."""
        layers = tuple(
            KeyValues(keys[:, :, positions], values[:, :, positions], None if keep is None else keep[:, positions])
            for keys, values, keep in self.layers
        )
        return replace(self, layers=layers, sources=tuple(self.sources[position] for position in positions.tolist()))

    def mask(self, keep: Tensor) -> Self:
        """Hide from each row the positions where `keep` (B or R, N) is false, in addition to those hidden already.

        Raises ValueError where a row would have nothing left to attend to.
        """
        earlier = self.layers[0].keep
        if earlier is not None:
            # A mask by image holds for all C rows of the image, so the finer mask decides how many rows there are.
            fine, coarse = (keep, earlier) if len(keep) >= len(earlier) else (earlier, keep)
            keep = fine & coarse.repeat_interleave(len(fine) // len(coarse), dim=0)
        if not bool(keep.any(dim=-1).all()):
            raise ValueError("a row of `keep` hides every memory position; leave at least one")
        return replace(self, layers=tuple(each._replace(keep=keep) for each in self.layers))


def concat(memories: list[Memory]) -> Memory:
    """The positions of several memories of the same B images side by side: more photos, tiles, neighbors."""
    keep = None
    if any(memory.layers[0].keep is not None for memory in memories):
        masks = [_keep(memory) for memory in memories]
        rows = max(len(mask) for mask in masks)
        keep = torch.cat([mask.repeat_interleave(rows // len(mask), dim=0) for mask in masks], dim=1)
    layers = []
    for parts in zip(*(memory.layers for memory in memories), strict=True):
        keys, values, _ = zip(*parts, strict=True)
        layers.append(KeyValues(torch.cat(keys, dim=2), torch.cat(values, dim=2), keep))
    return Memory(tuple(layers), tuple(source for memory in memories for source in memory.sources))


def _keep(memory: Memory) -> Tensor:
    keys, _, keep = memory.layers[0]
    return keys.new_ones(memory.images, memory.positions, dtype=torch.bool) if keep is None else keep
