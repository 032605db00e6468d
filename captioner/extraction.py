"""Features of a frozen encoder for a whole data set, computed once.   B images · N positions · E encoder width"""

import hashlib
import logging
import types
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from captioner.config import EncoderConfig
from captioner.data.annotations import CaptionedImage, CaptionSet
from captioner.data.dataset import mosaic_name, read_photo, view_pixels
from captioner.data.features import LOCK, FeatureStore, FeatureWriter, StoreKey, hash_photos, hash_weights
from captioner.data.mosaics import Mosaics, mosaic_pixels
from captioner.errors import ConfigError
from captioner.files import locked
from captioner.model.encoder import VisionEncoder
from captioner.prefetch import prefetch

log = logging.getLogger(__name__)

TRANSFORM = "1"
"""Version of the code that makes pixels and augmented views of a photo."""
ALWAYS_IN_KEY = ("name", "image_size", "fit", "interpolation")
OFTEN_DEFAULT = ("norm_eps", "pool")
"""Encoder options that are in a store's key only if they differ from their defaults, as older stores lack them."""


@dataclass(frozen=True)
class _View:
    """A view of one photo, or a mosaic of four."""

    name: str
    number: int
    images: tuple[CaptionedImage, ...]

    def pixels(self, encoder: EncoderConfig) -> NDArray[np.uint8]:
        """(3, height, width) as the encoder takes them."""
        photos = [read_photo(image) for image in self.images]
        if len(photos) > 1:
            return mosaic_pixels(photos, encoder)
        return view_pixels(photos[0], encoder, self.images[0], self.number or None)


def extract_features(
    encoder: VisionEncoder,
    captions: CaptionSet,
    folder: Path,
    *,
    views: Callable[[CaptionedImage], int] = lambda image: 1,
    mosaics: Mapping[str, Mosaics] = types.MappingProxyType({}),
    batch_size: int = 32,
    device: torch.device | None = None,
    advance: Callable[[int], object] = lambda views: None,
) -> FeatureStore:
    """The features of every photo, read from `folder` if it holds them, else computed into it.

    `views` gives the number of views of a photo: the plain one, then augmented ones; `mosaics` (by split) are stored
    too. The encoder is moved to `device`, if given, and back. `advance` is called with the number of views just done.
    An interrupted extraction is continued. Raises ConfigError where the folder holds features of something else or a
    feature is too large for float16, ResourceError where its disk has no room.
    """
    work = [_View(str(image.image_id), number, (image,)) for image in captions.images for number in range(views(image))]
    layouts = ""
    for split, each in mosaics.items():
        images = captions.split(split).images
        for number, photos in enumerate(each.layout):
            work.append(_View(mosaic_name(split, number), 0, tuple(images[photo] for photo in photos)))
        layouts += f", mosaics of {split} {hashlib.sha256(repr(each.layout).encode()).hexdigest()[:12]}"
    config, default = encoder.config, EncoderConfig()
    special = [name for name in OFTEN_DEFAULT if getattr(config, name) != getattr(default, name)]
    key = StoreKey(
        encoder={name: getattr(config, name) for name in (*ALWAYS_IN_KEY, *special)},
        weights=hash_weights(encoder.state_dict()),
        transform=f"{TRANSFORM}, {len(work)} views{layouts}",
        files=hash_photos((_name(image, captions.root), image.content) for image in captions.images),
    )
    if (store := FeatureStore.open(folder, key)) is not None:
        return store
    with locked(folder / LOCK):  # the processes of a run come here together
        store = FeatureStore.open(folder, key)
        if store is None:
            log.info("computing features of %d photos into %s", len(captions), folder)
            rows = Counter(view.name for view in work)
            writer = FeatureWriter(folder, key, views=rows, shape=(encoder.patches.stop, encoder.width))
            home = encoder.mean.device
            _extract(encoder.to(device or home).eval(), work, writer, batch_size, advance)
            encoder.to(home)
            store = FeatureStore.open(folder, key)
    assert store is not None
    return store


def _name(image: CaptionedImage, root: Path) -> str:
    one_root = isinstance(image.source, Path) and not image.dataset
    return image.path.relative_to(root).as_posix() if one_root else str(image.image_id)


def _extract(
    encoder: VisionEncoder, work: list[_View], writer: FeatureWriter, batch_size: int, advance: Callable[[int], object]
) -> None:
    if start := writer.done:
        log.info("continuing after %d of %d views", start, len(work))
        advance(start)
    with closing(prefetch(work[start:], lambda view: view.pixels(encoder.config), batch_size)) as read:
        pixels = chain.from_iterable(read)
        for place in range(start, len(work), batch_size):
            batch = work[place : place + batch_size]
            writer.write(_encode(encoder, np.stack(list(islice(pixels, len(batch)))), batch))
            advance(len(batch))
    writer.finish()


def _encode(encoder: VisionEncoder, pixels: NDArray[np.uint8], batch: list[_View]) -> NDArray[np.float16]:
    """The features (B, N, E) of pixels (B, 3, height, width). Raises ConfigError where float16 cannot hold one."""
    with torch.inference_mode():
        features = encoder(torch.from_numpy(pixels).to(encoder.mean.device)).half()
        finite = features.isfinite().flatten(1).all(dim=1).tolist()
    if not all(finite):
        raise ConfigError(
            f"data.features: image {batch[finite.index(False)].name} has features of {encoder.config.name} beyond "
            "float16's range (65504) or not a number; set data.features to null to encode photos as they come"
        )
    stored: NDArray[np.float16] = features.cpu().numpy()
    return stored
