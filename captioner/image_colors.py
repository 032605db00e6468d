"""Pictures of any mode as upright RGB: colors in sRGB, transparency on white, deep grays scaled.

Pictures are converted in strips of rows, which take little memory beyond the picture and the result.
"""

import io
from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

STRIP_PIXELS = 2**20
"""Pixels that are converted at a time."""
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> the transposition that undoes it."""
SIDEWAYS = (5, 6, 7, 8)
"""EXIF orientations that exchange width and height."""
FROM_THE_END = (3, 4, 6, 7)
"""EXIF orientations whose first row comes last, or at the right."""


class GrayScale(NamedTuple):
    """Brings gray levels to 0 to 255: (level - offset) * factor / divisor."""

    offset: float = 0.0
    factor: float = 1.0
    divisor: float = 1.0


def to_rgb(image: Image.Image, orientation: int, notes: list[str], *, halve: bool = False) -> Image.Image:
    """A new upright RGB image. `halve` halves its sides, and rounds them up.

    Adds `icc_ignored`, `rescaled_range` and `alpha_on_white` to the notes where they apply.
    """
    is_deep_gray = image.mode in ("I", "F") or image.mode.startswith("I;16")
    scale = _gray_scale(image, notes) if is_deep_gray else None
    step = 2 if halve else 1
    width, height = (-(-side // step) for side in image.size)
    upright = Image.new("RGB", (height, width) if orientation in SIDEWAYS else (width, height))
    found: set[str] = set()
    for top, strip in _strips(image):
        part = _convert(strip, scale, found)
        if halve:
            part = part.reduce(2)
        start = height - top // step - part.height if orientation in FROM_THE_END else top // step
        if orientation in UPRIGHT:
            part = part.transpose(UPRIGHT[orientation])
        upright.paste(part, (start, 0) if orientation in SIDEWAYS else (0, start))
    notes += sorted(found, reverse=True)  # icc_ignored comes first
    return upright


def _strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Strips of an even number of rows, each with its first row."""
    rows = max(1, STRIP_PIXELS // image.width // 2) * 2
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _convert(image: Image.Image, scale: GrayScale | None, notes: set[str]) -> Image.Image:
    if scale is not None:
        return _deep_gray_to_rgb(image, scale, notes)
    profile = image.info.get("icc_profile")
    alpha = None
    if image.has_transparency_data:
        # Pillow has no direct conversion from premultiplied gray.
        layers = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        image, alpha = layers.convert("RGB"), layers.getchannel("A")
    if profile:
        image = _to_srgb(image, profile, notes)
    image = image if image.mode == "RGB" else image.convert("RGB")
    if alpha is None or alpha.getextrema() == (255, 255):
        return image
    notes.add("alpha_on_white")
    paper = Image.new("RGB", image.size, "white")
    paper.paste(image, mask=alpha)
    return paper


def _to_srgb(image: Image.Image, profile: bytes, notes: set[str]) -> Image.Image:
    try:
        stored = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if image.mode == "RGB" and "sRGB" in ImageCms.getProfileDescription(stored):
            return image
        converted = ImageCms.profileToProfile(image, stored, ImageCms.createProfile("sRGB"), outputMode="RGB")
        return cast(Image.Image, converted)
    except Exception:
        notes.add("icc_ignored")
        return image


def _gray_scale(image: Image.Image, notes: list[str]) -> GrayScale:
    ranges = [(float(each.min()), float(each.max())) for each in (_levels(strip) for _, strip in _strips(image))]
    low, high = min(low for low, _ in ranges), max(high for _, high in ranges)
    if image.mode.startswith("I;16") or (image.mode == "I" and low >= 0 and 255 < high <= 65535):
        return GrayScale(divisor=257.0)
    if image.mode == "F" and low >= 0 and high <= 1:
        return GrayScale(factor=255.0)
    if low < 0 or high > 255:
        notes.append("rescaled_range")
        return GrayScale(low, 255 / (high - low) if high > low else 0.0)
    return GrayScale()


def _levels(image: Image.Image) -> NDArray[np.floating[Any]]:
    # Only 16-bit integers are sure to fit float32; the range of floats may even overflow it.
    precision = np.float32 if image.mode.startswith("I;16") else np.float64
    levels: NDArray[np.floating[Any]] = np.asarray(image).astype(precision)
    np.nan_to_num(levels, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
    return levels


def _deep_gray_to_rgb(image: Image.Image, scale: GrayScale, notes: set[str]) -> Image.Image:
    gray = np.round((_levels(image) - scale.offset) * scale.factor / scale.divisor).astype(np.uint8)
    if "transparency" in image.info and (clear := np.asarray(image) == image.info["transparency"]).any():
        gray[clear] = 255
        notes.add("alpha_on_white")
    return Image.fromarray(gray).convert("RGB")
