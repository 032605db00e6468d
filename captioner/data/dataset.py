"""Batches that share an image's encoding.   B images · C captions of each · R = B·C rows · T tokens · N, E features"""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from captioner.config import EncoderConfig
from captioner.data.annotations import CaptionedImage
from captioner.data.augmentation import augment, may_flip
from captioner.data.features import FeatureStore
from captioner.errors import AnnotationError, ImageError
from captioner.geometry import Geometry, to_pixels
from captioner.images import open_image
from captioner.tokenizer import Tokenizer

LENGTH_JITTER = 2.0
"""Tokens of noise on the length by which images are sorted, so that an epoch's batches differ from the last one's."""


class Batch(NamedTuple):
    """B images with C captions each; R = B·C rows, those of one image adjacent."""

    images: Tensor | None
    """(B, 3, height, width) uint8, or None where features are stored."""
    features: Tensor | None
    """(B, N, E) float16 from the feature store, or None."""
    tokens: Tensor
    """(R, T) int64: start token, caption, end token, padding on the right."""
    image_ids: list[int | str]


class Group(NamedTuple):
    """One image of a batch, those of its captions that are trained together, and the seed of its view."""

    image: int
    captions: tuple[int, ...]
    seed: int


class GroupSampler(Sampler[list[Group]]):
    """Every caption once an epoch, in batches of images with equally many captions of similar length.

    The order depends on the seed and the epoch alone; `epoch` tells the latter when an iteration begins. Rank `rank` of
    `world` takes each `world`-th batch.
    """

    def __init__(
        self,
        lengths: Sequence[Sequence[int]],
        *,
        batch_images: int,
        captions_per_image: int,
        shuffle: bool,
        seed: int = 0,
        epoch: Callable[[], int] = lambda: 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.lengths = lengths
        self.batch_images = batch_images
        self.captions_per_image = captions_per_image
        self.shuffle = shuffle
        self.seed = seed
        self.epoch = epoch
        self.rank, self.world = rank, world

    def __iter__(self) -> Iterator[list[Group]]:
        batches = self._batches()
        whole = len(self) * self.world
        # Every rank must see equally many batches, or the others wait for ever at the last one.
        batches += batches[: whole - len(batches)]
        return iter(batches[self.rank : whole : self.world])

    def __len__(self) -> int:
        counts: dict[int, int] = {}
        for captions in self.lengths:
            for part in _parts(len(captions), self.captions_per_image):
                counts[len(part)] = counts.get(len(part), 0) + 1
        total = sum(-(-count // self.batch_images) for count in counts.values())
        return -(-total // self.world)

    def _batches(self) -> list[list[Group]]:
        rng = np.random.default_rng([self.seed, self.epoch() if self.shuffle else 0])
        by_count: dict[int, list[tuple[float, Group]]] = {}
        for image, lengths in enumerate(self.lengths):
            order = np.argsort(np.asarray(lengths) + rng.random(len(lengths)) * self.shuffle, kind="stable")
            for part in _parts(len(lengths), self.captions_per_image):
                chosen = tuple(int(order[place]) for place in part)
                longest = max(lengths[caption] for caption in chosen)
                noise = rng.random() * LENGTH_JITTER * self.shuffle
                group = Group(image, chosen, int(rng.integers(2**31)))
                by_count.setdefault(len(chosen), []).append((longest + noise, group))
        batches = []
        for count in sorted(by_count):
            groups = [group for _, group in sorted(by_count[count], key=lambda pair: pair[0])]
            batches += [groups[i : i + self.batch_images] for i in range(0, len(groups), self.batch_images)]
        if self.shuffle:
            batches = [batches[place] for place in rng.permutation(len(batches))]
        return batches


def _parts(count: int, most: int) -> list[range]:
    """`count` captions in as few runs of at most `most` as possible, of nearly equal size."""
    parts = -(-count // most)
    edges = [round(count * part / parts) for part in range(parts + 1)] if parts else [0]
    return [range(start, stop) for start, stop in pairwise(edges)]


class CaptionDataset(Dataset[Batch]):
    """Batches by lists of `Group`s, from photos or from stored features.

    Raises AnnotationError where a photo cannot be read, naming it.
    """

    def __init__(
        self,
        images: Sequence[CaptionedImage],
        tokenizer: Tokenizer,
        encoder: EncoderConfig,
        *,
        max_length: int,
        store: FeatureStore | None = None,
        augmented: bool = False,
    ) -> None:
        self.images = images
        self.encoder = encoder
        self.store = store
        self.augmented = augmented
        self.pad = tokenizer.pad
        self.tokens = [[_framed(tokenizer, text, max_length) for text in image.captions] for image in images]

    @property
    def lengths(self) -> list[list[int]]:
        """Tokens of every caption of every image."""
        return [[len(tokens) for tokens in captions] for captions in self.tokens]

    def __getitem__(self, groups: list[Group]) -> Batch:
        rows = [self.tokens[group.image][caption] for group in groups for caption in group.captions]
        tokens = torch.full((len(rows), max(map(len, rows))), self.pad)
        for row, ids in enumerate(rows):
            tokens[row, : len(ids)] = torch.tensor(ids)
        seen = torch.stack([self._see(group) for group in groups])
        names = [self.images[group.image].image_id for group in groups]
        if self.store is None:
            return Batch(images=seen, features=None, tokens=tokens, image_ids=names)
        return Batch(images=None, features=seen, tokens=tokens, image_ids=names)

    def _see(self, group: Group) -> Tensor:
        """Pixels (3, height, width) uint8, or stored features (N, E)."""
        image = self.images[group.image]
        if self.store is not None:
            name = str(image.image_id)
            views = self.store.views(name) if self.augmented else 1
            return self.store.read(name, group.seed % views)
        try:
            photo = open_image(image.path).image
        except ImageError as error:
            raise AnnotationError(f"{error}; remove the image from the annotations or replace the file") from error
        return torch.from_numpy(view_pixels(photo, self.encoder, image, group.seed if self.augmented else None))


def view_pixels(
    photo: Image, encoder: EncoderConfig, image: CaptionedImage, seed: int | None = None
) -> NDArray[np.uint8]:
    """Pixels (3, height, width) of a photo as the encoder takes it, augmented where a seed is given."""
    assert encoder.image_size is not None
    assert encoder.interpolation is not None
    if seed is not None:
        photo = augment(photo, np.random.default_rng(seed), flip=may_flip(image.captions))
    geometry = Geometry.of(*photo.size, size=encoder.image_size, fit=encoder.fit)
    return to_pixels(photo, geometry, encoder.interpolation)


def _framed(tokenizer: Tokenizer, text: str, max_length: int) -> list[int]:
    """A caption between its start and end token; one too long is cut, and keeps no end token to learn from."""
    tokens = [tokenizer.bos, *tokenizer.encode(text), tokenizer.eos]
    return tokens[:max_length]
