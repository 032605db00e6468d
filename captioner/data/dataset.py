"""Samples, and batches in which captions share their image's encoding.

B images · C captions of each · R = B·C rows · T tokens · N positions · E encoder width
"""

import signal
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from captioner.config import EncoderConfig
from captioner.data.annotations import CaptionedImage
from captioner.data.augmentation import augment, may_flip
from captioner.data.features import FeatureStore
from captioner.data.mosaics import Mosaics, mosaic_pixels
from captioner.data.sampler import BatchPlan, Group
from captioner.errors import AnnotationError, ImageError
from captioner.geometry import Geometry, to_pixels
from captioner.images import open_image
from captioner.metrics.object_words import NounList
from captioner.tokenizer import Tokenizer

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))
"""Signals on which a run saves a checkpoint and stops; SLURM can send SIGUSR1 before it ends a job."""


LENGTHS = ("short", "medium", "long")
"""The lengths that a model can learn, each of a third of the captions."""
LEFT_OUT = 0.3
"""Probability that a caption is trained without its style, and without its length, so that it needs neither."""


@dataclass(frozen=True)
class Sample:
    """An image with the tokens of some of its captions."""

    image_id: int | str
    encoded: Tensor | None
    """Pixels (3, height, width) uint8, or stored features (N, E) float16; None for captions without pictures."""
    captions: tuple[list[int], ...]
    """Each with start and end token."""
    corner: int = -1
    """The image's corner in its mosaic, or -1 if it is not in one."""
    controls: tuple[int, ...] = ()
    """The number of control tokens after the start token, for each caption; empty if none has any."""
    objects: tuple[list[int], ...] = ()
    """The positions of the tokens that name objects, for each caption; in mosaics only."""


class Batch(NamedTuple):
    """B images with C captions each; R = B·C rows, those of one image adjacent."""

    images: Tensor | None
    """(B, 3, height, width) uint8; None if features are stored, or there are no pictures."""
    features: Tensor | None
    """(B, N, E) float16 from the feature store, or None."""
    tokens: Tensor
    """(R, T) int64: start token, caption, end token, padding on the right."""
    lengths: Tensor
    """(R,) int64: tokens without padding."""
    image_ids: list[int | str]
    corners: Tensor
    """(B,) int64: each image's corner in its mosaic, or -1 if it is not in one."""
    objects: Tensor
    """(R, T) bool: tokens that name objects, in mosaics only."""
    predicting: Tensor
    """(2, K) int64: row and position of each input that has a next token to predict. Computed on the CPU, because the
    host waits for a GPU that looks for them."""
    weight: float = 1.0
    """See `BatchPlan`."""
    controls: Tensor | None = None
    """(R,) int64: control tokens after the start token, which are not predicted; None if there are none."""
    skipped: int = 0
    """Samples that were left out, as they cannot be used; of shards only."""

    @property
    def predicts(self) -> Tensor:
        """(R, T - 1) bool: the inputs that have a next token to predict."""
        places = torch.arange(1, self.tokens.shape[1], device=self.tokens.device)
        real = places < self.lengths[:, None]
        return real if self.controls is None else real & (places > self.controls[:, None])


def collate(samples: Sequence[Sample], pad: int, weight: float = 1.0) -> Batch:
    """Batch samples with equally many captions each, all of pixels, all of features, or all without pictures."""
    rows = [torch.tensor(tokens) for sample in samples for tokens in sample.captions]
    tokens = pad_sequence(rows, batch_first=True, padding_value=pad)
    objects = torch.zeros_like(tokens, dtype=torch.bool)
    count = len(samples[0].captions)
    for place, sample in enumerate(samples):
        for row, named in enumerate(sample.objects, start=place * count):
            objects[row, named] = True
    pictures = [sample.encoded for sample in samples if sample.encoded is not None]
    encoded = torch.stack(pictures) if pictures else None
    stored = encoded is not None and encoded.dtype != torch.uint8
    controls = [each for sample in samples for each in sample.controls]
    batch = Batch(
        images=None if stored else encoded,
        features=encoded if stored else None,
        tokens=tokens,
        lengths=torch.tensor([len(row) for row in rows]),
        image_ids=[sample.image_id for sample in samples],
        corners=torch.tensor([sample.corner for sample in samples]),
        objects=objects,
        predicting=torch.empty(2, 0, dtype=torch.int64),
        weight=weight,
        controls=torch.tensor(controls) if controls else None,
    )
    return batch._replace(predicting=torch.stack(batch.predicts.nonzero(as_tuple=True)))


@dataclass(eq=False)
class CaptionDataset(Dataset[Batch]):
    """Maps a batch plan to its batch, from photos or from stored features.

    `augmented` takes a random view of each photo, from the store if there is one. Raises AnnotationError, naming the
    photo, if one cannot be read.
    """

    images: Sequence[CaptionedImage]
    tokenizer: Tokenizer
    encoder: EncoderConfig
    _: KW_ONLY
    max_length: int
    store: FeatureStore | None = None
    augmented: bool = False
    mosaics: Mosaics | None = None
    pictures: bool = True
    """Whether samples have pictures, or captions alone."""
    control_kinds: tuple[str, ...] = ()
    """The kinds of control tokens to teach: `style`, `length`."""

    @cached_property
    def tokens(self) -> list[list[list[int]]]:
        """The tokens of every caption without control tokens, by image."""
        most = self.max_length - len(self.control_kinds)
        return [[framed(self.tokenizer, text, most) for text in image.captions] for image in self.images]

    @cached_property
    def controls(self) -> list[list[tuple[int, ...]]]:
        """The control tokens of every caption, by image."""
        known = {kind: self.tokenizer.controls(kind) for kind in self.control_kinds}
        thirds = np.quantile([length for image in self.lengths for length in image], [1 / 3, 2 / 3])
        found = []
        for image, lengths in zip(self.images, self.lengths, strict=True):
            styles = image.styles or [None] * len(lengths)
            names = {"style": styles, "length": [LENGTHS[int((length > thirds).sum())] for length in lengths]}
            columns = [[None if name is None else ids.get(name) for name in names[kind]] for kind, ids in known.items()]
            found.append([tuple(each for each in row if each is not None) for row in zip(*columns, strict=True)])
        return found

    @cached_property
    def lengths(self) -> list[list[int]]:
        """The number of tokens of every caption, by image."""
        return [[len(tokens) for tokens in captions] for captions in self.tokens]

    def __getitem__(self, plan: BatchPlan) -> Batch:
        return collate([self.sample(group) for group in plan.groups], self.tokenizer.pad, plan.weight)

    def sample(self, group: Group) -> Sample:
        """The image or mosaic of a group, with the group's captions."""
        image = self.images[group.image]
        captions = tuple(self.tokens[group.image][caption] for caption in group.captions)
        controls: tuple[int, ...] = ()
        if self.control_kinds:
            kept = self._kept_controls(group)
            captions = tuple([text[0], *control, *text[1:]] for text, control in zip(captions, kept, strict=True))
            controls = tuple(map(len, kept))
        if group.mosaic is None:
            return Sample(image.image_id, self._alone(image, group.seed), captions, controls=controls)
        number, corner = group.mosaic
        objects = tuple(object_places(self.tokenizer, tokens) for tokens in captions)
        return Sample(image.image_id, self._mosaic(image, number), captions, corner, controls, objects)

    def _kept_controls(self, group: Group) -> list[tuple[int, ...]]:
        """The control tokens of a group's captions; each is left out at random, by the group's seed."""
        random = np.random.default_rng(group.seed)
        controls = (self.controls[group.image][caption] for caption in group.captions)
        return [tuple(token for token in each if random.random() >= LEFT_OUT) for each in controls]

    def _alone(self, image: CaptionedImage, seed: int) -> Tensor | None:
        if not self.pictures:
            return None
        if self.store is not None:
            name = str(image.image_id)
            return self.store.read(name, seed % self.store.views(name) if self.augmented else 0)
        view = seed if self.augmented else None
        return torch.from_numpy(view_pixels(read_photo(image), self.encoder, image, view))

    def _mosaic(self, image: CaptionedImage, number: int) -> Tensor:
        assert self.mosaics is not None
        if self.store is not None:
            return self.store.read(mosaic_name(image.split, number))
        photos = [read_photo(self.images[photo]) for photo in self.mosaics.layout[number]]
        return torch.from_numpy(mosaic_pixels(photos, self.encoder))


def read_photo(image: CaptionedImage) -> Image:
    """Open a photo upright. Raises AnnotationError, naming the photo, if it cannot be read."""
    try:
        return open_image(image.content).image
    except ImageError as error:
        raise AnnotationError(
            f"image {image.image_id!r}: {error}; remove it from the annotations or replace the file"
        ) from error


def mosaic_name(split: str | None, mosaic: int) -> str:
    """The name of a split's mosaic in a feature store."""
    return f"mosaic {split} {mosaic}"


def view_pixels(
    photo: Image, encoder: EncoderConfig, image: CaptionedImage, seed: int | None = None
) -> NDArray[np.uint8]:
    """A photo's pixels (3, height, width) for the encoder, augmented if a seed is given."""
    assert encoder.image_size is not None
    assert encoder.interpolation is not None
    if seed is not None:
        photo = augment(photo, np.random.default_rng(seed), flip=may_flip(image.captions))
    geometry = Geometry.of(*photo.size, size=encoder.image_size, fit=encoder.fit)
    return to_pixels(photo, geometry, encoder.interpolation)


def object_places(tokenizer: Tokenizer, tokens: list[int]) -> list[int]:
    """The positions of the tokens in a framed caption that belong to object words."""
    words = tokenizer.words(tokens[1:])
    names = ["".join(c for c in word.text.lower() if c.isalnum() or c in "'-") for word in words]
    flags = NounList.bundled().are_objects(names)
    return [
        place + 1 for word, named in zip(words, flags, strict=True) if named for place in range(word.start, word.stop)
    ]


def framed(tokenizer: Tokenizer, text: str, max_length: int) -> list[int]:
    """A caption's tokens with start and end token, cut to `max_length`; a cut caption has no end token."""
    return [tokenizer.bos, *tokenizer.encode(text), tokenizer.eos][:max_length]


def ignore_signals(worker: int) -> None:
    """Leave signals to the main process, which saves a checkpoint and stops its workers.

    A worker starts here; it does not import Lightning, which takes seconds.
    """
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)
