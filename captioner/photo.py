"""Photos as the network takes them.   h·w patches"""

import hashlib
from dataclasses import dataclass
from typing import Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from captioner.config import EncoderConfig
from captioner.errors import ConfigError, ImageError
from captioner.geometry import Geometry, to_pixels
from captioner.images import OpenedImage

Region: TypeAlias = tuple[float, float, float, float]
"""x, y, width and height as fractions of the upright photo."""


@dataclass(frozen=True, eq=False)
class Photo:
    """An image ready for the network, without the original, which is much larger."""

    name: str
    """How messages refer to it."""
    pixels: NDArray[np.uint8]
    """(3, height, width) uint8, at the network's size."""
    geometry: Geometry
    size: tuple[int, int]
    """(width, height) of the upright photo, which may have been decoded at half its resolution."""
    key: str
    """Seeds the noise of Sampling: the file's hash, or that of the pixels where there is no file."""
    sha256: str | None
    notes: tuple[str, ...]

    @classmethod
    def of(cls, opened: OpenedImage, encoder: EncoderConfig) -> Self:
        """The photo at the size that an encoder takes."""
        assert encoder.image_size is not None
        assert encoder.interpolation is not None
        geometry = Geometry.of(*opened.image.size, size=encoder.image_size, fit=encoder.fit)
        pixels = to_pixels(opened.image, geometry, encoder.interpolation)
        key = opened.sha256 or hashlib.sha256(opened.image.tobytes()).hexdigest()
        return cls(opened.name, pixels, geometry, opened.size, key, opened.sha256, opened.notes)

    def shown_patches(self, region: Region | None, hide: Region | None, grid: tuple[int, int]) -> NDArray[np.bool_]:
        """(h, w): the patches inside `region` and outside `hide`, at least one.

        Raises ConfigError for regions that no photo has, ImageError if the shape of this one leaves nothing of them.
        """
        shown = np.ones(grid, dtype=bool) if region is None else self.geometry.patches_in(region, grid)
        if hide is not None:
            shown = shown & ~self.geometry.patches_in(hide, grid)
        if shown.any():
            return shown
        if self.geometry.fit == "squash":  # the same patches for every photo
            raise ConfigError("region and hide: no patch of the photo is left; enlarge region, or hide less")
        parts = " without ".join(",".join(f"{each:g}" for each in part) for part in (region, hide) if part)
        raise ImageError(
            f"{self.name}: fit {self.geometry.fit} leaves no patch of region {parts}; choose a larger one",
            "out_of_view",
        )
