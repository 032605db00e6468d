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
from captioner.data.mosaics import Mosaics, mosaic_pixels
from captioner.errors import AnnotationError, ImageError
from captioner.geometry import Geometry, to_pixels
from captioner.images import open_image
from captioner.metrics.object_words import NounList
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
    corners: Tensor
    """(B,) int64: the corner of a mosaic in which the image is, or -1 where it is alone."""
    objects: Tensor
    """(R, T) bool: tokens of words that name objects."""


class Group(NamedTuple):
    """One image of a batch, those of its captions that are trained together, and the seed of its view."""

    image: int
    captions: tuple[int, ...]
    seed: int
    mosaic: tuple[int, int] | None = None
    """The mosaic in which it is seen, and its corner there."""


class GroupSampler(Sampler[list[Group]]):
    """Every caption once an epoch, in batches of images with equally many captions of similar length.

    The order depends on the seed and the epoch alone; `progress` tells the epoch and how many of its batches are done
    when an iteration begins, which leaves those out. Rank `rank` of `world` takes each `world`-th batch.
    """

    def __init__(
        self,
        lengths: Sequence[Sequence[int]],
        *,
        batch_images: int,
        captions_per_image: int,
        shuffle: bool,
        seed: int = 0,
        progress: Callable[[], tuple[int, int]] = lambda: (0, 0),
        rank: int = 0,
        world: int = 1,
        mosaics: Mosaics | None = None,
        mosaic_share: float = 0.0,
    ) -> None:
        self.lengths = lengths
        self.batch_images = batch_images
        self.captions_per_image = captions_per_image
        self.shuffle = shuffle
        self.seed = seed
        self.progress = progress
        self.rank, self.world = rank, world
        self.mosaics, self.mosaic_share = mosaics, mosaic_share

    def __iter__(self) -> Iterator[list[Group]]:
        epoch, done = self.progress() if self.shuffle else (0, 0)
        batches = self._batches(epoch)
        whole = len(self) * self.world
        # Every rank must see equally many batches, or the others wait for ever at the last one.
        batches += batches[: whole - len(batches)]
        return iter(batches[self.rank : whole : self.world][done:])

    def __len__(self) -> int:
        counts: dict[int, int] = {}
        for captions in self.lengths:
            for part in _parts(len(captions), self.captions_per_image):
                counts[len(part)] = counts.get(len(part), 0) + 1
        total = sum(-(-count // self.batch_images) for count in counts.values())
        return -(-total // self.world)

    def _batches(self, epoch: int) -> list[list[Group]]:
        rng = np.random.default_rng([self.seed, epoch])
        by_count: dict[int, list[tuple[float, Group]]] = {}
        for image, lengths in enumerate(self.lengths):
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

    def _mosaic(self, image: int, rng: np.random.Generator) -> tuple[int, int] | None:
        if self.mosaics is None or rng.random() >= self.mosaic_share:
            return None
        places = self.mosaics.places.get(image, [])
        return places[int(rng.integers(len(places)))] if places else None


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
        mosaics: Mosaics | None = None,
    ) -> None:
        self.images = images
        self.mosaics = mosaics
        self.encoder = encoder
        self.store = store
        self.augmented = augmented
        self.pad = tokenizer.pad
        self.tokens = [[_framed(tokenizer, text, max_length) for text in image.captions] for image in images]
        self.objects = [[_objects(tokenizer, tokens) for tokens in captions] for captions in self.tokens]

    @property
    def lengths(self) -> list[list[int]]:
        """Tokens of every caption of every image."""
        return [[len(tokens) for tokens in captions] for captions in self.tokens]

    def __getitem__(self, groups: list[Group]) -> Batch:
        rows = [self.tokens[group.image][caption] for group in groups for caption in group.captions]
        tokens = torch.full((len(rows), max(map(len, rows))), self.pad)
        for row, ids in enumerate(rows):
            tokens[row, : len(ids)] = torch.tensor(ids)
        objects = torch.zeros_like(tokens, dtype=torch.bool)
        for row, places in enumerate(
            self.objects[group.image][caption] for group in groups for caption in group.captions
        ):
            objects[row, places] = True
        corners = torch.tensor([-1 if group.mosaic is None else group.mosaic[1] for group in groups])
        seen = torch.stack([self._see(group) for group in groups])
        names = [self.images[group.image].image_id for group in groups]
        images, features = (seen, None) if self.store is None else (None, seen)
        return Batch(images, features, tokens, names, corners, objects)

    def _see(self, group: Group) -> Tensor:
        """Pixels (3, height, width) uint8, or stored features (N, E)."""
        image = self.images[group.image]
        if group.mosaic is not None:
            assert self.mosaics is not None
            if self.store is not None:
                return self.store.read(mosaic_name(image.split, group.mosaic[0]))
            photos = [read_photo(self.images[photo]) for photo in self.mosaics.layout[group.mosaic[0]]]
            return torch.from_numpy(mosaic_pixels(photos, self.encoder))
        if self.store is not None:
            name = str(image.image_id)
            views = self.store.views(name) if self.augmented else 1
            return self.store.read(name, group.seed % views)
        seed = group.seed if self.augmented else None
        return torch.from_numpy(view_pixels(read_photo(image), self.encoder, image, seed))


def read_photo(image: CaptionedImage) -> Image:
    """The photo, upright. Raises AnnotationError, as a data set with photos that cannot be read is wrong."""
    try:
        return open_image(image.path).image
    except ImageError as error:
        raise AnnotationError(f"{error}; remove the image from the annotations or replace the file") from error


def mosaic_name(split: str | None, mosaic: int) -> str:
    """What a feature store calls a mosaic of a split."""
    return f"mosaic {split} {mosaic}"


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


def _objects(tokenizer: Tokenizer, tokens: list[int]) -> list[int]:
    """Which tokens of a framed caption belong to words that name objects."""
    words = tokenizer.words(tokens[1:])
    names = ["".join(c for c in word.text.lower() if c.isalnum() or c in "'-") for word in words]
    flags = NounList.bundled().are_objects(names)
    return [
        place + 1 for word, named in zip(words, flags, strict=True) if named for place in range(word.start, word.stop)
    ]


def _framed(tokenizer: Tokenizer, text: str, max_length: int) -> list[int]:
    """A caption between its start and end token; one too long is cut, and keeps no end token to learn from."""
    tokens = [tokenizer.bos, *tokenizer.encode(text), tokenizer.eos]
    return tokens[:max_length]
