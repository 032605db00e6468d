"""The geometry of patches on a photo, and the photo's pixels at the model's size.   h·w patches, row by row"""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from captioner.errors import ConfigError

if TYPE_CHECKING:
    from captioner.config import Fit

Interpolation: TypeAlias = Literal["bicubic", "bilinear", "lanczos"]

BAR = (128, 128, 128)
"""Color of the bars around a letterboxed photo."""


@dataclass(frozen=True)
class Geometry:
    """How the model's patches map to a photo, for each of the three fits.

    Coordinates are fractions of the upright photo, from (0, 0) at the top left to (1, 1) at the bottom right. A grid is
    (h, w).
    """

    width: int
    height: int
    size: tuple[int, int]
    """(height, width) of the model's input in pixels."""
    fit: "Fit"

    @classmethod
    def of(cls, width: int, height: int, *, size: tuple[int, int], fit: "Fit") -> Self:
        """The geometry of a photo of `width` x `height` pixels."""
        return cls(width, height, (size[0], size[1]), fit)

    @property
    def box(self) -> tuple[float, float, float, float]:
        """(left, top, right, bottom) of the model's input in fractions; beyond [0, 1] where letterbox adds bars."""
        if self.fit == "crop":
            left, top, right, bottom = self._crop
            return left / self.width, top / self.height, right / self.width, bottom / self.height
        if self.fit == "letterbox":
            left, top, width, height = self._inner
            rows, columns = self.size
            return -left / width, -top / height, (columns - left) / width, (rows - top) / height
        return 0.0, 0.0, 1.0, 1.0

    @property
    def _crop(self) -> tuple[float, float, float, float]:
        """The largest central box of the model's aspect ratio, in pixels of the photo."""
        rows, columns = self.size
        if self.width * rows > self.height * columns:
            margin = (self.width - self.height * columns / rows) / 2
            return margin, 0.0, self.width - margin, float(self.height)
        margin = (self.height - self.width * rows / columns) / 2
        return 0.0, margin, float(self.width), self.height - margin

    @property
    def _inner(self) -> tuple[int, int, int, int]:
        """(left, top, width, height) of the letterboxed photo in the input, in whole pixels."""
        rows, columns = self.size
        scale = min(columns / self.width, rows / self.height)
        width, height = max(1, round(self.width * scale)), max(1, round(self.height * scale))
        return (columns - width) // 2, (rows - height) // 2, width, height

    def apply(self, image: Image.Image, interpolation: Interpolation) -> Image.Image:
        """The photo at the model's size."""
        assert image.size == (self.width, self.height), "the geometry of another photo"
        rows, columns = self.size
        method = Image.Resampling[interpolation.upper()]
        if self.fit == "letterbox":
            left, top, width, height = self._inner
            canvas = Image.new("RGB", (columns, rows), BAR)
            canvas.paste(image.resize((width, height), method), (left, top))
            return canvas
        return image.resize((columns, rows), method, box=self._crop if self.fit == "crop" else None)

    def patch_box(self, row: int, column: int, grid: tuple[int, int]) -> tuple[float, float, float, float]:
        """(left, top, right, bottom) of a patch in fractions; beyond [0, 1] where it lies on a bar."""
        left, top, right, bottom = self.box
        high, wide = (bottom - top) / grid[0], (right - left) / grid[1]
        return left + column * wide, top + row * high, left + (column + 1) * wide, top + (row + 1) * high

    def visible_share(self, grid: tuple[int, int]) -> NDArray[np.float64]:
        """(h, w): the share of each patch that lies on the photo, 0 to 1; the rest lies on bars."""
        return self._shares((0.0, 0.0, 1.0, 1.0), grid)

    def patches_in(self, region: tuple[float, float, float, float], grid: tuple[int, int]) -> NDArray[np.bool_]:
        """(h, w): the patches at least half of whose content lies in a region (x, y, width, height in fractions).

        A region too small for that has the one patch that shows most of it; one that the fit cuts off has none. Raises
        ConfigError for a region beyond the photo.
        """
        x, y, width, height = region
        if not (0 <= x < 1 and 0 <= y < 1 and 0 < width <= 1 - x + 1e-6 and 0 < height <= 1 - y + 1e-6):
            raise ConfigError(f"region {x},{y},{width},{height}: not x,y,width,height within the photo; give fractions")
        inside = self._shares((x, y, x + width, y + height), grid)
        keep = (inside > 0) & (inside >= self.visible_share(grid) / 2)
        return keep if keep.any() else (inside > 0) & (inside == inside.max())

    def _shares(self, area: tuple[float, float, float, float], grid: tuple[int, int]) -> NDArray[np.float64]:
        """(h, w): the share of each patch that lies in an area (left, top, right, bottom)."""
        left, top, right, bottom = self.box
        rows = _overlaps((area[1] - top) / (bottom - top), (area[3] - top) / (bottom - top), grid[0])
        columns = _overlaps((area[0] - left) / (right - left), (area[2] - left) / (right - left), grid[1])
        return rows[:, None] * columns

    def heatmap(
        self, values: NDArray[np.floating[Any]], *, size: tuple[int, int] | None = None, nearest: bool = False
    ) -> NDArray[np.float32]:
        """(height, width): the patches' values (h, w) over the photo, at `size` (width, height) or its own.

        Bilinear between patch centers, or the nearest patch's value; 0 outside the model's input.
        """
        width, height = size or (self.width, self.height)
        left, top, right, bottom = self.box
        rows = _spread(height, top, bottom, values.shape[0], nearest)
        columns = _spread(width, left, right, values.shape[1], nearest)
        return (rows @ values @ columns.T).astype(np.float32)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "size": list(self.size)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """The inverse of `to_dict`."""
        return cls.of(data["width"], data["height"], size=tuple(data["size"]), fit=data["fit"])


def _overlaps(low: float, high: float, count: int) -> NDArray[np.float64]:
    """(count,): the share of each of `count` equal parts of [0, 1] that [low, high] covers."""
    starts = np.arange(count)
    covered: NDArray[np.float64] = np.minimum(high * count, starts + 1) - np.maximum(low * count, starts)
    return covered.clip(0.0, 1.0)


def _spread(pixels: int, low: float, high: float, count: int, nearest: bool) -> NDArray[np.float64]:
    """(pixels, count): the weight of each of `count` patches over [low, high] at each pixel of [0, 1]."""
    places = ((np.arange(pixels) + 0.5) / pixels - low) / (high - low) * count
    seen = (places >= 0) & (places <= count)
    if nearest:
        weights = np.eye(count)[np.clip(places.astype(np.int64), 0, count - 1)]
    else:
        # Outside the centers of the outer patches, their value is constant.
        centers = np.clip(places - 0.5, 0, count - 1)
        weights = np.clip(1 - np.abs(centers[:, None] - np.arange(count)), 0.0, None)
    return weights * seen[:, None]


def to_pixels(image: Image.Image, geometry: Geometry, interpolation: Interpolation) -> NDArray[np.uint8]:
    """(3, height, width) uint8, contiguous and writable: the photo at the model's size."""
    return np.array(np.asarray(geometry.apply(image, interpolation)).transpose(2, 0, 1), order="C")
