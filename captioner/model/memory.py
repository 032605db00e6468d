"""What the decoder attends to.   B images · R rows · N memory positions · H heads · d head width"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Self

import torch
from torch import Tensor

from captioner.model.attention import KeyValues


@dataclass(frozen=True)
class Source:
    """A run of memory positions and their origin: `image`, `null`, or a name that the caller chose."""

    name: str
    length: int


@dataclass(frozen=True)
class Memory:
    """One `KeyValues` per layer over the same N positions, and the origin of each position."""

    layers: tuple[KeyValues, ...]
    sources: tuple[Source, ...]

    @property
    def images(self) -> int:
        """B, the number of images."""
        return self.layers[0].keys.shape[0]

    @property
    def positions(self) -> int:
        """N, the positions that a word can attend to."""
        return self.layers[0].keys.shape[2]

    def span(self, name: str) -> slice:
        """The positions of the first source of this name."""
        start = 0
        for source in self.sources:
            if source.name == name:
                return slice(start, start + source.length)
            start += source.length
        raise KeyError(name)

    def select(self, images: Tensor) -> Self:
        """The memory of these images (B',), in this order, with the mask of all their rows."""

        def chosen(part: Tensor) -> Tensor:
            rows: Tensor = part.unflatten(0, (self.images, -1))[images].flatten(0, 1)
            return rows

        return self._mapped(
            lambda each: KeyValues(
                each.keys[images], each.values[images], None if each.keep is None else chosen(each.keep)
            )
        )

    def take(self, positions: Tensor) -> Self:
        """The memory of these positions (N',) only, in this order."""
        names = [source.name for source in self.sources for _ in range(source.length)]
        runs = groupby(names[position] for position in positions.tolist())
        taken = self._mapped(
            lambda each: KeyValues(
                each.keys[:, :, positions],
                each.values[:, :, positions],
                None if each.keep is None else each.keep[:, positions],
            )
        )
        return replace(taken, sources=tuple(Source(name, len(list(run))) for name, run in runs))

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
        return self._mapped(lambda each: each._replace(keep=keep))

    def _mapped(self, change: Callable[[KeyValues], KeyValues]) -> Self:
        return replace(self, layers=tuple(change(each) for each in self.layers))


def concat(memories: list[Memory]) -> Memory:
    """The positions of several memories of the same B images side by side: more photos, tiles, neighbors."""
    rows = max(len(m.layers[0].keep) if m.layers[0].keep is not None else m.images for m in memories)
    masked = any(memory.layers[0].keep is not None for memory in memories)
    return Memory(
        layers=tuple(
            KeyValues(
                torch.cat([each.keys for each in layer], dim=2),
                torch.cat([each.values for each in layer], dim=2),
                torch.cat([_keep(each, rows) for each in layer], dim=1) if masked else None,
            )
            for layer in zip(*(memory.layers for memory in memories), strict=True)
        ),
        sources=tuple(source for memory in memories for source in memory.sources),
    )


def _keep(each: KeyValues, rows: int) -> Tensor:
    images, _, positions, _ = each.keys.shape
    keep = each.keep if each.keep is not None else each.keys.new_ones(images, positions, dtype=torch.bool)
    return keep.repeat_interleave(rows // len(keep), dim=0)
