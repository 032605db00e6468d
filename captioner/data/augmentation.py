"""Augmentation of training photos: crop, flip unless a caption says left or right, and color."""

import re
from collections.abc import Iterable

import numpy as np
from PIL import Image, ImageEnhance

SIDES = re.compile(r"\b(left|right)(most|hand|ward|wards)?\b", re.IGNORECASE)
CROP_AREA = (0.5, 1.0)
"""Share of the photo's area that a crop keeps; more than for classification, as captions describe the whole scene."""
CROP_RATIO = (3 / 4, 4 / 3)
COLOR = (0.7, 1.3)
"""Factors for brightness, contrast and saturation."""


def may_flip(captions: Iterable[str]) -> bool:
    """Whether the captions still describe the mirrored photo."""
    return not any(SIDES.search(caption) for caption in captions)


def augment(image: Image.Image, rng: np.random.Generator, *, flip: bool) -> Image.Image:
    """A random view of an RGB photo."""
    width, height = image.size
    share = rng.uniform(*CROP_AREA)
    ratio = np.exp(rng.uniform(*np.log(CROP_RATIO)))
    crop_width = min(width, width * np.sqrt(share * ratio))
    crop_height = min(height, height * np.sqrt(share / ratio))
    left, top = rng.uniform(0, width - crop_width), rng.uniform(0, height - crop_height)
    view = image.crop(tuple(round(edge) for edge in (left, top, left + crop_width, top + crop_height)))
    if flip and rng.random() < 0.5:
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        view = enhance(view).enhance(rng.uniform(*COLOR))
    return view
