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
"""A fingerprint compares this many cells along each side of a picture, which is stretched to a square."""
BANDS = 16
"""Parts of a fingerprint's bits; pictures that look alike have at least one part in common."""
MAX_BITS = BANDS - 1
"""Most bits, of 128, in which the fingerprints of pictures that look alike differ."""
MAX_COLOR = 12
"""Largest mean difference of their colors, of 255."""
MIN_CONTRAST = 8.0
"""Smallest standard deviation of gray values, of 255, that a fingerprint needs; flatter pictures have no structure."""


class Fingerprint(NamedTuple):
    """A hash and colors that hardly change with a picture's size, quality or format."""

    bits: NDArray[np.bool_]
    """(128,) whether each cell is brighter than its left and its upper neighbor: a difference hash."""
    colors: NDArray[np.uint8]
    """(192,) the mean color of each cell, which tells pictures of the same structure apart."""


def fingerprint(picture: Image.Image) -> Fingerprint | None:
    """The fingerprint of an RGB picture; None for one without structure."""
    gray = np.asarray(picture.convert("L").resize((SIDE + 1, SIDE + 1), Image.Resampling.BOX), np.float32)
    if gray.std() < MIN_CONTRAST:
        return None
    brighter = np.stack([gray[1:, 1:] > gray[1:, :-1], gray[1:, 1:] > gray[:-1, 1:]])
    colors = np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BOX))
    return Fingerprint(brighter.ravel(), colors.ravel())


def look_alike(prints: Mapping[str, Fingerprint]) -> list[list[str]]:
    """Groups of two or more pictures that look alike, directly or through others; names and groups are sorted."""
    known = {name: prints[name] for name in sorted(prints)}
    if not known:
        return []
    names = [*known]
    bits = np.stack([each.bits for each in known.values()])
    colors = np.stack([each.colors for each in known.values()]).astype(np.int16)
    pairs: list[tuple[str, str]] = []
    for band in np.split(bits, BANDS, axis=1):
        buckets: defaultdict[bytes, list[int]] = defaultdict(list)
        for place, part in enumerate(np.packbits(band, axis=1)):
            buckets[part.tobytes()].append(place)
        for bucket in buckets.values():
            for number, place in enumerate(bucket[:-1], start=1):
                others = np.array(bucket[number:])
                others = others[(bits[others] != bits[place]).sum(axis=1) <= MAX_BITS]
                others = others[np.abs(colors[others] - colors[place]).mean(axis=1) <= MAX_COLOR]
                pairs += [(names[place], names[other]) for other in others.tolist()]
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
