"""Features of a frozen encoder for a whole data set, computed once.   B images · N positions · E encoder width"""

import hashlib
import logging
import types
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
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

log = logging.getLogger(__name__)

TRANSFORM = "1"
"""Increased whenever the way from a photo to pixels, or an augmented view, changes."""
ALWAYS_IN_KEY = ("name", "image_size", "fit", "interpolation")
OFTEN_DEFAULT = ("norm_eps", "pool")
"""Encoder options that are in a store's key only where they differ from their defaults, as in older stores."""
READ_AHEAD = 2
"""Batches whose photos are decoded while the encoder works."""


@dataclass(frozen=True)
class _View:
    """A view of one photo, or a mosaic of four."""

    name: str
    number: int
    images: tuple[CaptionedImage, ...]

    def pixels(self, encoder: EncoderConfig) -> NDArray[np.uint8]:
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
    """The features of every photo, from `folder` where they are there already, else computed into it.

    `views` gives the number of views of a photo: the plain one, then augmented ones; `mosaics` (by split) are stored
    too. The encoder works on `device`, by default where it is, and is moved back. `advance` is called with how many
    more views are done. An interrupted call is continued. Raises ConfigError where the folder holds features of
    something else or a feature is too large for float16, ResourceError where its disk has no room.
    """
    counts = {str(image.image_id): views(image) for image in captions.images}
    work = [
        _View(str(image.image_id), number, (image,))
        for image in captions.images
        for number in range(counts[str(image.image_id)])
    ]
    layouts = ""
    for split, each in mosaics.items():
        images = captions.split(split).images
        for number, photos in enumerate(each.layout):
            work.append(_View(mosaic_name(split, number), 0, tuple(images[photo] for photo in photos)))
            counts[mosaic_name(split, number)] = 1
        layouts += f", mosaics of {split} {hashlib.sha256(repr(each.layout).encode()).hexdigest()[:12]}"
    config, default = encoder.config, EncoderConfig()
    special = [name for name in OFTEN_DEFAULT if getattr(config, name) != getattr(default, name)]
    key = StoreKey(
        encoder={name: getattr(config, name) for name in (*ALWAYS_IN_KEY, *special)},
        weights=hash_weights(encoder.state_dict()),
        transform=f"{TRANSFORM}, {len(work)} views{layouts}",
        files=hash_photos((_name(image, captions.root), image.source) for image in captions.images),
    )
    store = FeatureStore.open(folder, key)
    if store is not None:
        return store
    shape = (encoder.patches.stop, encoder.width)
    with locked(folder / LOCK):  # the processes of a run come here together
        store = FeatureStore.open(folder, key)
        if store is None:
            log.info("computing features of %d photos into %s", len(captions), folder)
            home = encoder.mean.device
            encoder.to(device or home).eval()
            _extract(encoder, work, FeatureWriter(folder, key, views=counts, shape=shape), batch_size, advance)
            encoder.to(home)
            store = FeatureStore.open(folder, key)
    assert store is not None
    return store


def _name(image: CaptionedImage, root: Path) -> str:
    source = image.source
    return source.relative_to(root).as_posix() if isinstance(source, Path) else str(image.image_id)


def _extract(
    encoder: VisionEncoder,
    work: list[_View],
    writer: FeatureWriter,
    batch_size: int,
    advance: Callable[[int], object],
) -> None:
    if writer.done:
        log.info("going on after %d of %d views", writer.done, len(work))
        advance(writer.done)
    for batch, pixels in _read_ahead(work[writer.done :], encoder.config, batch_size):
        writer.write(half_features(encoder, pixels, [view.name for view in batch]))
        advance(len(batch))
    writer.finish()


def half_features(encoder: VisionEncoder, pixels: NDArray[np.uint8], names: Sequence[str]) -> NDArray[np.float16]:
    """The features (B, N, E) of pixels (B, 3, height, width). Raises ConfigError, naming the image, where a feature is
    too large for float16 or not a number.
    """
    with torch.inference_mode():
        features = encoder(torch.from_numpy(pixels).to(encoder.mean.device)).half()
        finite = features.isfinite().flatten(1).all(dim=1).tolist()
    if not all(finite):
        raise ConfigError(
            f"data.features: image {names[finite.index(False)]} has features of {encoder.config.name} beyond float16's "
            "range (65504) or not a number; set data.features to null to encode photos as they come"
        )
    stored: NDArray[np.float16] = features.cpu().numpy()
    return stored


def _read_ahead(
    work: list[_View], encoder: EncoderConfig, batch_size: int
) -> Iterator[tuple[list[_View], NDArray[np.uint8]]]:
    """Batches with their pixels (B, 3, height, width); Pillow decodes without the interpreter's lock."""
    with ThreadPoolExecutor() as pool:
        pending: deque[tuple[list[_View], list[Future[NDArray[np.uint8]]]]] = deque()
        for start in range(0, len(work), batch_size):
            batch = work[start : start + batch_size]
            pending.append((batch, [pool.submit(view.pixels, encoder) for view in batch]))
            if len(pending) > READ_AHEAD:
                yield _finished(*pending.popleft())
        while pending:
            yield _finished(*pending.popleft())


def _finished(batch: list[_View], futures: list[Future[NDArray[np.uint8]]]) -> tuple[list[_View], NDArray[np.uint8]]:
    return batch, np.stack([future.result() for future in futures])
