"""Training from shards without listing their samples in memory.   W processes"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from captioner.config import EncoderConfig
from captioner.data.annotations import CaptionedImage
from captioner.data.dataset import Batch, Sample, collate, framed, read_photo, view_pixels
from captioner.data.sampler import limited
from captioner.data.shards import read_index, read_sample
from captioner.errors import AnnotationError
from captioner.tokenizer import Tokenizer

WINDOW = 16
"""Number of shards among which samples are shuffled; the shards themselves are shuffled too."""


class Place(NamedTuple):
    """A sample: its shard, its number there, and the seed of its view and captions."""

    shard: int
    number: int
    seed: int


class ShardPlan(NamedTuple):
    """The samples of a batch."""

    samples: list[Place]
    weight: float
    """The batch's part of its optimizer step, of which all batches are equal parts; 0 for a repeated one, which keeps
    processes in step."""


@dataclass(frozen=True, eq=False)
class ShardSampler(Sampler[ShardPlan]):
    """Every sample once an epoch, in an order that depends on the seed and the epoch alone.

    `counts` are the numbers of samples in each shard. Rank `rank` takes every `world`-th batch, so processes and nodes
    share no sample; `progress`, `accumulate` and `limit` are those of `GroupSampler`. Memory holds `WINDOW` shards'
    numbers.
    """

    counts: Sequence[int]
    _: KW_ONLY
    batch_images: int
    seed: int = 0
    progress: Callable[[], tuple[int, int]] = lambda: (0, 0)
    rank: int = 0
    world: int = 1
    accumulate: int = 1
    limit: int | float | None = None

    @property
    def trained(self) -> int:
        """Batches of a rank that an epoch trains on; `limit` is their largest number or, if a float, their share."""
        return limited(len(self), self.limit)

    def __len__(self) -> int:
        return -(-self._total // self.world)

    @property
    def _total(self) -> int:
        """Batches of all ranks."""
        return -(-sum(self.counts) // self.batch_images)

    def __iter__(self) -> Iterator[ShardPlan]:
        epoch, done = self.progress()
        total, first = self._total, None
        for number, samples in enumerate(self._batches(epoch)):
            first = samples if first is None else first
            if number % self.world == self.rank and number // self.world >= done:
                yield ShardPlan(samples, self._weight(number // self.world))
        if first is not None and total % self.world and self.rank >= total % self.world and done < len(self):
            yield ShardPlan(first, 0.0)

    def _weight(self, index: int) -> float:
        """One over the number of batches that take part in the optimizer step of a rank's batch `index`."""
        step = index // self.accumulate * self.accumulate
        rows = min(self.accumulate, max(self.trained, index + 1) - step)
        ranks = min(self.world, self._total - index * self.world)
        return 1 / (rows * ranks)

    def _batches(self, epoch: int) -> Iterator[list[Place]]:
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(len(self.counts))
        rest = np.empty((0, 3), dtype=np.int64)
        for start in range(0, len(order), WINDOW):
            window = order[start : start + WINDOW]
            places = [(shard, place) for shard in window for place in range(self.counts[shard])]
            chosen = rng.permutation(np.array(places, dtype=np.int64).reshape(-1, 2))
            seeds = rng.integers(2**31, size=(len(chosen), 1))
            rest = np.concatenate([rest, np.concatenate([chosen, seeds], axis=1)])
            whole = len(rest) // self.batch_images * self.batch_images
            for place in range(0, whole, self.batch_images):
                yield [Place(*row) for row in rest[place : place + self.batch_images].tolist()]
            rest = rest[whole:]
        if len(rest):
            yield [Place(*row) for row in rest.tolist()]


@dataclass(eq=False)
class ShardDataset(Dataset[Batch]):
    """Maps a plan to its batch. Samples that cannot be used are left out and counted in `Batch.skipped`.

    Every image has `captions_per_image` rows: that many of its captions, drawn at random, and empty rows, in which
    nothing is predicted, if it has fewer.
    """

    shards: Sequence[Path]
    tokenizer: Tokenizer
    encoder: EncoderConfig
    _: KW_ONLY
    max_length: int
    captions_per_image: int
    augmented: bool = False

    def __getitem__(self, plan: ShardPlan) -> Batch:
        samples = []
        for shard, place, seed in plan.samples:
            try:
                path = self.shards[shard]
                samples.append(self._sample(read_sample(path, read_index(path).entries[place]), seed))
            except AnnotationError:
                continue
        weight = plan.weight if samples else 0.0
        batch = collate(samples or [self._blank()], self.tokenizer.pad, weight)
        return batch._replace(skipped=len(plan.samples) - len(samples))

    def _sample(self, image: CaptionedImage, seed: int) -> Sample:
        rng = np.random.default_rng(seed)
        order = rng.permutation(len(image.captions))[: self.captions_per_image]
        rows = [framed(self.tokenizer, image.captions[place], self.max_length) for place in order]
        rows += [[self.tokenizer.bos]] * (self.captions_per_image - len(rows))
        pixels = view_pixels(read_photo(image), self.encoder, image, seed if self.augmented else None)
        return Sample(image.image_id, torch.from_numpy(pixels), tuple(rows))

    def _blank(self) -> Sample:
        """An empty sample, for a batch of which no sample can be used."""
        assert self.encoder.image_size is not None
        row = [self.tokenizer.bos, self.tokenizer.eos]
        pixels = torch.zeros((3, *self.encoder.image_size), dtype=torch.uint8)
        return Sample("blank", pixels, (row,) * self.captions_per_image)
