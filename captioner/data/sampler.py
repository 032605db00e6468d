"""The images and captions of each batch, by seed and epoch.   W processes"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from itertools import pairwise
from typing import NamedTuple, TypeVar

import numpy as np
from torch.utils.data import Sampler

from captioner.data.mosaics import Mosaics

Item = TypeVar("Item")

LENGTH_JITTER = 2.0
"""Noise, in tokens, on the lengths by which images are sorted, so that batches differ between epochs."""


def evenly_spaced(items: Sequence[Item], most: int) -> list[Item]:
    """At most so many of the items, evenly spaced, in their order."""
    return [items[place] for place in np.linspace(0, len(items) - 1, min(most, len(items)), dtype=int)]


class Group(NamedTuple):
    """An image of a batch, the captions it is trained with, and the seed of its view."""

    image: int
    captions: tuple[int, ...]
    seed: int
    mosaic: tuple[int, int] | None = None
    """The mosaic that shows the image, and its corner there."""


class BatchPlan(NamedTuple):
    """The groups of a batch, all with equally many captions."""

    groups: list[Group]
    weight: float = 1.0
    """The batch's share of the tokens that its optimizer step predicts in all processes; 0 for a repeated batch, which
    keeps processes in step."""


def limited(batches: int, limit: int | float | None) -> int:
    """The number of batches within a limit: their largest number or, if a float, their share."""
    if limit is None:
        return batches
    return min(batches, limit) if isinstance(limit, int) else int(batches * limit)


@dataclass(frozen=True, eq=False)
class GroupSampler(Sampler[BatchPlan]):
    """Every caption once an epoch, in batches of images with equally many captions of similar length.

    `weights`, if given, say how many times an epoch shows each image instead; a fraction takes other images each time.
    The order depends on the seed and the epoch alone. `progress` gives the epoch and how many of its batches are done;
    iteration starts after those. Rank `rank` takes every `world`-th batch. All ranks yield `len(self)` batches: if
    they run out, earlier ones are repeated with weight 0. An optimizer step takes `accumulate` batches of each rank.
    """

    lengths: Sequence[Sequence[int]]
    _: KW_ONLY
    batch_images: int
    captions_per_image: int
    shuffle: bool
    seed: int = 0
    progress: Callable[[], tuple[int, int]] = lambda: (0, 0)
    rank: int = 0
    world: int = 1
    accumulate: int = 1
    limit: int | float | None = None
    mosaics: Mosaics | None = None
    mosaic_share: float = 0.0
    weights: Sequence[float] | None = None

    @property
    def trained(self) -> int:
        """Batches of a rank that an epoch trains on; `limit` is their largest number or, if a float, their share."""
        return limited(len(self), self.limit)

    def __iter__(self) -> Iterator[BatchPlan]:
        epoch, done = self.progress() if self.shuffle else (0, 0)
        batches = self._batches(epoch)
        weights = self._weights(batches)
        for index in range(done, len(weights)):
            place = index * self.world + self.rank
            yield BatchPlan(batches[place % len(batches)], float(weights[index, self.rank]))

    def __len__(self) -> int:
        counts: Counter[int] = Counter()  # of groups; as many in each epoch
        for captions, times in zip(self.lengths, self._times(0), strict=True):
            for part in _parts(len(captions), self.captions_per_image):
                counts[len(part)] += times
        total = sum(-(-count // self.batch_images) for count in counts.values())
        return -(-total // self.world)

    def _weights(self, batches: list[list[Group]]) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
        """(batches of a rank, W): each batch's share of its step's tokens."""
        tokens = np.zeros((-(-len(batches) // self.world), self.world))
        tokens.flat[: len(batches)] = [
            sum(self.lengths[group.image][caption] - 1 for group in batch for caption in group.captions)
            for batch in batches
        ]
        trained = tokens[: self.trained].sum(axis=1)
        steps = np.arange(len(trained)) // self.accumulate
        tokens[: len(trained)] /= np.bincount(steps, trained)[steps, None]
        return tokens

    def _batches(self, epoch: int) -> list[list[Group]]:
        rng = np.random.default_rng([self.seed, epoch])
        by_count: dict[int, list[tuple[float, Group]]] = {}
        shown = [image for image, times in enumerate(self._times(epoch)) for _ in range(times)]
        for image in shown:
            lengths = self.lengths[image]
            order = np.argsort(np.asarray(lengths) + rng.random(len(lengths)) * self.shuffle, kind="stable")
            for part in _parts(len(lengths), self.captions_per_image):
                chosen = tuple(int(order[place]) for place in part)
                longest = max(lengths[caption] for caption in chosen)
                noise = rng.random() * LENGTH_JITTER * self.shuffle
                group = Group(image, chosen, int(rng.integers(2**31)), self._mosaic(image, rng))
                by_count.setdefault(len(chosen), []).append((longest + noise, group))
        batches = []
        for count in sorted(by_count):
            groups = [group for _, group in sorted(by_count[count], key=lambda pair: pair[0])]
            batches += [groups[i : i + self.batch_images] for i in range(0, len(groups), self.batch_images)]
        if self.shuffle:
            batches = [batches[place] for place in rng.permutation(len(batches))]
        return batches

    def _times(self, epoch: int) -> list[int]:
        """How many times an epoch shows each image. Of images alike in weight and captions, always as many in all."""
        if self.weights is None or not self.shuffle:
            return [1] * len(self.lengths)
        alike: dict[tuple[float, int], list[int]] = {}
        for image, (weight, lengths) in enumerate(zip(self.weights, self.lengths, strict=True)):
            alike.setdefault((weight, len(lengths)), []).append(image)
        rng = np.random.default_rng([self.seed, epoch, 1])
        times = [0] * len(self.lengths)
        for (weight, _), images in sorted(alike.items()):
            total = round(weight * len(images))
            for place, image in enumerate(rng.permutation(images)):
                times[image] = total // len(images) + (place < total % len(images))
        return times

    def _mosaic(self, image: int, rng: np.random.Generator) -> tuple[int, int] | None:
        if self.mosaics is None or rng.random() >= self.mosaic_share:
            return None
        places = self.mosaics.places.get(image, [])
        return places[int(rng.integers(len(places)))] if places else None


def _parts(count: int, most: int) -> list[range]:
    """`count` captions in as few ranges of at most `most` as possible, of nearly equal size."""
    parts = -(-count // most)
    edges = [round(count * part / parts) for part in range(parts + 1)] if parts else [0]
    return [range(start, stop) for start, stop in pairwise(edges)]
