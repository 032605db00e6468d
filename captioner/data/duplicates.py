"""Pictures that are the same or look alike.   S pictures"""

import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 8
"""A hash compares this many cells along each side of a picture, which is stretched to a square."""
FINE_SIDE = 16
"""Cells along each side of the small picture that decides about pictures with similar hashes."""
MIN_CONTRAST = 8.0
"""Smallest standard deviation of a color, of 255, that a fingerprint needs; flatter pictures have no structure."""
MIN_STEP = 0.1
"""Smallest difference between cells that counts as an edge, in standard deviations of the gray values."""
BANDS = 4 * SIDE
"""Parts of a hash; only pictures with a common part, which has an edge, are compared."""
MAX_BITS = 44
"""Most bits, of 256, in which the hashes of pictures that look alike differ; other photos differ in 90 or more."""
MAX_COLOR = 12
"""Largest difference of their mean colors, of 255."""
MAX_TINT = 0.2
"""Largest distance of the directions of their contrasts in red, green and blue, which tell colored shapes apart."""
MAX_DIFFERENCE, MAX_FLAT_DIFFERENCE = 0.25, 0.08
"""Largest squared difference of their small pictures relative to their contrasts; and that of flat pictures, such as
drawings, in which different shapes differ little."""
FLAT = SIDE * SIDE
"""A flat picture has fewer edges than this, of 128 pairs of cells."""


class Fingerprint(NamedTuple):
    """A hash and a small picture that hardly change with a picture's size, quality or format."""

    bits: NDArray[np.bool_]
    """(256,) where cells are brighter, and where they are darker, than their left and their upper neighbor."""
    colors: NDArray[np.uint8]
    """(768,) the small picture."""


def fingerprint(picture: Image.Image) -> Fingerprint | None:
    """The fingerprint of an RGB picture; None for one without structure."""
    colors = np.asarray(picture.resize((FINE_SIDE, FINE_SIDE), Image.Resampling.HAMMING))
    if colors.std(axis=(0, 1)).max() < MIN_CONTRAST:
        return None
    gray = np.asarray(picture.convert("L").resize((SIDE + 1, SIDE + 1), Image.Resampling.HAMMING), np.float32)
    steps = np.stack([gray[1:, 1:] - gray[1:, :-1], gray[1:, 1:] - gray[:-1, 1:]])
    least = MIN_STEP * gray.std()
    return Fingerprint(np.stack([steps > least, steps < -least]).ravel(), colors.ravel())


def look_alike(prints: Mapping[str, Fingerprint]) -> list[list[str]]:
    """Groups of two or more pictures that look alike, directly or through others; names and groups are sorted."""
    known = {name: prints[name] for name in sorted(prints)}
    if not known:
        return []
    names = [*known]
    bits = np.stack([each.bits for each in known.values()])
    most = np.where(bits.sum(axis=1) < FLAT, MAX_FLAT_DIFFERENCE, MAX_DIFFERENCE)
    colors = np.stack([each.colors for each in known.values()]).reshape(len(names), -1, 3).astype(np.float32)
    means = colors.mean(axis=1)
    colors -= means[:, None]
    channels = np.linalg.norm(colors, axis=1)
    contrasts = np.linalg.norm(channels, axis=1)
    tints = channels / contrasts[:, None]
    units = colors.reshape(len(names), -1) / contrasts[:, None]

    def alike(place: int, others: NDArray[np.int64]) -> NDArray[np.int64]:
        """Those of the others that look like a picture."""
        others = others[(bits[others] != bits[place]).sum(axis=1) <= MAX_BITS]
        if not len(others):  # as for most photos
            return others
        others = others[np.abs(means[others] - means[place]).mean(axis=1) <= MAX_COLOR]
        others = others[np.linalg.norm(tints[others] - tints[place], axis=1) <= MAX_TINT]
        ratios = contrasts[others] / contrasts[place]
        differences = ratios + 1 / ratios - 2 * units[others] @ units[place]
        close: NDArray[np.int64] = others[differences <= np.minimum(most[others], most[place])]
        return close

    pairs: list[tuple[str, str]] = []
    for band in np.split(bits, BANDS, axis=1):
        buckets: defaultdict[bytes, list[int]] = defaultdict(list)
        for place, part in enumerate(np.packbits(band, axis=1)):
            if part.any():  # else there are too many like it
                buckets[part.tobytes()].append(place)
        for bucket in buckets.values():
            for number, place in enumerate(bucket[:-1], start=1):
                pairs += [(names[place], names[other]) for other in alike(place, np.array(bucket[number:])).tolist()]
    return grouped(pairs)


def same_bytes(paths: Mapping[str, Path]) -> list[list[str]]:
    """Groups of two or more pictures whose files have the same bytes; only files of equal size are read."""
    by_size: defaultdict[int, list[str]] = defaultdict(list)
    for name in sorted(paths):
        by_size[paths[name].stat().st_size].append(name)
    by_content: defaultdict[bytes, list[str]] = defaultdict(list)
    for name in (name for names in by_size.values() if len(names) > 1 for name in names):
        with suppress(OSError):  # an image that cannot be read is reported by opening it
            by_content[hashlib.sha256(paths[name].read_bytes()).digest()].append(name)
    return sorted(names for names in by_content.values() if len(names) > 1)


def grouped(links: Iterable[Collection[str]]) -> list[list[str]]:
    """The groups of names that links of two or more names join; names and groups are sorted."""
    root: dict[str, str] = {}

    def find(name: str) -> str:
        while root.setdefault(name, name) != name:
            root[name] = name = root[root[name]]
        return name

    for first, *others in links:
        kept = find(first)
        for other in others:
            root[find(other)] = kept
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for name in sorted(root):
        groups[find(name)].append(name)
    return sorted(groups.values())


def across(groups: Iterable[Collection[str]], splits: Mapping[str, str]) -> Iterator[list[str]]:
    """The groups that are in several splits, without names that are in none."""
    for group in groups:
        names = [name for name in group if name in splits]
        if len({splits[name] for name in names}) > 1:
            yield names
