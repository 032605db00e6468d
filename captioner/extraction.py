"""Features of a frozen encoder for a whole data set, computed once.   B images · N positions · E encoder width"""

import hashlib
import logging
import types
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from captioner.data.annotations import CaptionedImage, CaptionSet
from captioner.data.dataset import mosaic_name, read_photo, view_pixels
from captioner.data.features import FeatureStore, FeatureWriter, StoreKey, hash_files, hash_weights, one_at_a_time
from captioner.data.mosaics import Mosaics, mosaic_pixels
from captioner.model.encoder import VisionEncoder

log = logging.getLogger(__name__)

TRANSFORM = "1"
"""Counts up whenever the way from a photo to pixels, or an augmented view, changes."""
SEEN_BY = ("name", "image_size", "fit", "interpolation")
"""What of the encoder's configuration decides its features, besides the weights."""
READ_AHEAD = 2
"""Batches whose photos are decoded while the encoder works."""


@dataclass(frozen=True)
class _View:
    """A view of one photo, or a mosaic of four."""

    name: str
    number: int
    images: tuple[CaptionedImage, ...]

    def pixels(self, encoder: VisionEncoder) -> NDArray[np.uint8]:
        photos = [read_photo(image) for image in self.images]
        if len(photos) > 1:
            return mosaic_pixels(photos, encoder.config)
        return view_pixels(photos[0], encoder.config, self.images[0], self.number or None)


def extract_features(
    encoder: VisionEncoder,
    captions: CaptionSet,
    folder: Path,
    *,
    views: Callable[[CaptionedImage], int] = lambda image: 1,
    mosaics: Mapping[str, Mosaics] = types.MappingProxyType({}),
    batch_size: int = 32,
    advance: Callable[[int], object] = lambda views: None,
) -> FeatureStore:
    """The features of every photo, from `folder` where they are there already, else computed into it.

    `views` says how many views of a photo are kept: the plain one, then augmented ones; `mosaics` (by split) are kept
    too. `advance` hears how many more views are done. What an interrupted call has done is not done again. Raises
    ConfigError where the folder holds features of something else, ResourceError where its disk has no room.
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
    names = sorted(image.path.relative_to(captions.root).as_posix() for image in captions.images)
    pooled = {"pool": encoder.config.pool} if encoder.config.pool > 1 else {}  # older stores know of none
    key = StoreKey(
        encoder={name: asdict(encoder.config)[name] for name in SEEN_BY} | pooled,
        weights=hash_weights(encoder.state_dict()),
        transform=f"{TRANSFORM}, {len(work)} views{layouts}",
        files=hash_files(captions.root, names),
    )
    store = FeatureStore.open(folder, key)
    if store is not None:
        return store
    shape = (encoder.patches.stop, encoder.width)
    with one_at_a_time(folder):  # of the processes of a run
        store = FeatureStore.open(folder, key)
        if store is None:
            log.info("computing features of %d photos into %s", len(names), folder)
            _extract(encoder, work, FeatureWriter(folder, key, views=counts, shape=shape), batch_size, advance)
            store = FeatureStore.open(folder, key)
    assert store is not None
    return store


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
    encoder.eval()
    for batch, pixels in _read_ahead(work[writer.done :], encoder, batch_size):
        with torch.inference_mode():
            writer.write(encoder(torch.from_numpy(pixels).to(encoder.mean.device)).half().cpu().numpy())
        advance(len(batch))
    writer.finish()


def _read_ahead(
    work: list[_View], encoder: VisionEncoder, batch_size: int
) -> Iterator[tuple[list[_View], NDArray[np.uint8]]]:
    """Batches with their pixels (B, 3, height, width); Pillow decodes without the interpreter's lock."""
    with ThreadPoolExecutor() as pool:
        pending: deque[tuple[list[_View], list[Future[NDArray[np.uint8]]]]] = deque()
        for batch in _chunks(work, batch_size):
            pending.append((batch, [pool.submit(view.pixels, encoder) for view in batch]))
            if len(pending) > READ_AHEAD:
                yield _finished(*pending.popleft())
        while pending:
            yield _finished(*pending.popleft())


def _chunks(work: list[_View], size: int) -> Iterator[list[_View]]:
    return (work[start : start + size] for start in range(0, len(work), size))


def _finished(batch: list[_View], futures: list[Future[NDArray[np.uint8]]]) -> tuple[list[_View], NDArray[np.uint8]]:
    return batch, np.stack([future.result() for future in futures])
