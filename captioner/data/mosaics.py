"""2x2 mosaics of photos: a caption describes one of the four, so the right region is known without boxes.

M mosaics · h·w patches
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from captioner.config import EncoderConfig

CORNERS = 4
"""Top left, top right, bottom left, bottom right."""


@dataclass(frozen=True)
class Mosaics:
    """As many mosaics as photos; each photo is in about four of them, once in each corner."""

    layout: tuple[tuple[int, ...], ...]
    """(M, 4): the photos of each mosaic, by corner."""

    @classmethod
    def of(cls, photos: int, seed: int) -> "Mosaics | None":
        """Random mosaics of this many photos, None if there are fewer than four."""
        if photos < CORNERS:
            return None
        random = np.random.default_rng([seed, photos])
        layout = np.stack([random.permutation(photos) for _ in range(CORNERS)], axis=1)
        for mosaic in layout:
            while len(set(mosaic.tolist())) < CORNERS:
                mosaic[random.integers(CORNERS)] = random.integers(photos)
        return cls(tuple(tuple(mosaic) for mosaic in layout.tolist()))

    @cached_property
    def places(self) -> dict[int, list[tuple[int, int]]]:
        """The mosaics of each photo, and its corner in each."""
        found: dict[int, list[tuple[int, int]]] = {}
        for number, photos in enumerate(self.layout):
            for corner, photo in enumerate(photos):
                found.setdefault(photo, []).append((number, corner))
        return found


def mosaic_pixels(photos: Sequence[Image.Image], encoder: EncoderConfig) -> NDArray[np.uint8]:
    """The encoder's input (3, height, width), with each of four photos squashed into its corner."""
    assert encoder.image_size is not None
    assert encoder.interpolation is not None
    height, width = encoder.image_size
    canvas = Image.new("RGB", (width, height))
    for corner, photo in enumerate(photos):
        left, top, right, bottom = corner_box(corner)
        box = (round(left * width), round(top * height), round(right * width), round(bottom * height))
        size = (box[2] - box[0], box[3] - box[1])
        canvas.paste(photo.resize(size, Image.Resampling[encoder.interpolation.upper()]), box[:2])
    return np.array(np.asarray(canvas).transpose(2, 0, 1), order="C")


def corner_box(corner: int) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) of a corner, as fractions of the mosaic."""
    row, column = divmod(corner, 2)
    return column / 2, row / 2, (column + 1) / 2, (row + 1) / 2


def corner_shares(grid: tuple[int, int]) -> NDArray[np.float32]:
    """(4, h·w): the share of each patch's area that lies in each corner."""
    rows, columns = (_halves(count) for count in grid)
    return np.stack([np.outer(row, column).ravel() for row in rows for column in columns]).astype(np.float32)


def _halves(count: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The share (count,) of each of `count` equal parts that lies in the first half, and in the second."""
    first = np.clip(count / 2 - np.arange(count), 0, 1)
    return first, 1 - first
