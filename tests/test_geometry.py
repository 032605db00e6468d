"""Where patches lie on a photo."""

import io

import numpy as np
import pytest
from PIL import Image

from captioner.errors import ConfigError
from captioner.geometry import BAR, Geometry, to_pixels
from captioner.image_colors import UPRIGHT
from captioner.images import open_image

INVERSE = {**UPRIGHT, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
"""EXIF orientation -> how a camera that writes it has stored the upright picture."""

FITS = ["squash", "crop", "letterbox"]
PHOTOS = [(640, 480), (480, 640), (500, 500), (333, 217), (200, 900), (1000, 100)]
GRIDS = [((224, 224), (7, 7)), ((128, 288), (4, 9))]
"""(model's size, its grid)."""


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def some_patches(geometry: Geometry, grid: tuple[int, int]) -> list[tuple[int, int]]:
    """First, middle and last of the patches that lie on the photo with at least two fifths of their area."""
    seen = np.argwhere(geometry.visible_share(grid) >= 0.4)
    return [tuple(seen[place].tolist()) for place in (0, len(seen) // 2, -1)]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize(("size", "grid"), GRIDS)
@pytest.mark.parametrize("shape", PHOTOS)
def test_a_mark_on_the_photo_lands_in_its_patch_and_its_heat_on_the_mark(shape, size, grid, fit, orientation):
    width, height = shape
    geometry = Geometry.of(width, height, size=size, fit=fit)
    exif = Image.Exif()
    exif[0x0112] = orientation
    for row, column in some_patches(geometry, grid)[orientation % 3 :: 2]:
        left, top, right, bottom = np.clip(geometry.patch_box(row, column, grid), 0, 1)
        # A mark of half the patch's size in the middle of what the patch shows of the photo.
        mark = (3 * left + right) / 4, (3 * top + bottom) / 4, (left + 3 * right) / 4, (top + 3 * bottom) / 4
        image = Image.new("RGB", shape)
        image.paste((255, 255, 255), tuple(round(edge * side) for edge, side in zip(mark, shape * 2, strict=True)))
        stored = image.transpose(INVERSE[orientation]) if orientation > 1 else image
        upright = open_image(encoded(stored, "PNG", exif=exif, compress_level=1)).image
        assert upright.size == shape

        light = to_pixels(upright, geometry, "bilinear")[0].astype(float)
        patches = light.reshape(grid[0], size[0] // grid[0], grid[1], size[1] // grid[1])
        brightness = np.where(patches == BAR[0], 0, patches).sum(axis=(1, 3))
        assert np.unravel_index(brightness.argmax(), grid) == (row, column)
        assert brightness[row, column] > 0.99 * brightness.sum()

        values = np.zeros(grid)
        values[row, column] = 1
        for nearest in (False, True):
            heat = geometry.heatmap(values, size=(width, height), nearest=nearest)
            assert heat.shape == (height, width)
            hottest = np.argwhere(heat == heat.max()) + 0.5
            assert ((hottest >= (top * height, left * width)) & (hottest <= (bottom * height, right * width))).all()


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize(("size", "grid"), GRIDS)
@pytest.mark.parametrize("shape", [*PHOTOS, (1, 1), (3, 2000)])
def test_patches_tile_the_photo(shape, size, grid, fit):
    geometry = Geometry.of(*shape, size=size, fit=fit)
    left, top, right, bottom = geometry.box
    first, last = geometry.patch_box(0, 0, grid), geometry.patch_box(grid[0] - 1, grid[1] - 1, grid)
    assert (*first[:2], *last[2:]) == pytest.approx(geometry.box)
    visible = geometry.visible_share(grid)
    # The photo's own area, seen through patches.
    patch_area = (right - left) * (bottom - top) / (grid[0] * grid[1])
    seen = min(right, 1) - max(left, 0), min(bottom, 1) - max(top, 0)
    assert visible.sum() * patch_area == pytest.approx(seen[0] * seen[1])
    if fit == "squash":
        assert geometry.box == (0, 0, 1, 1)
    if fit != "letterbox":
        assert (visible == 1).all()
    if fit == "crop":
        aspect = (right - left) * shape[0] / ((bottom - top) * shape[1])
        assert aspect == pytest.approx(size[1] / size[0])
    assert geometry.apply(Image.new("RGB", shape), "bicubic").size == size[::-1]


def test_letterbox_bars_are_gray_and_no_patch_of_theirs_is_visible():
    geometry = Geometry.of(100, 50, size=(64, 64), fit="letterbox")
    pixels = to_pixels(Image.new("RGB", (100, 50), "red"), geometry, "lanczos")
    assert (pixels[:, :16].transpose(1, 2, 0) == BAR).all()
    assert (pixels[:, 48:].transpose(1, 2, 0) == BAR).all()
    assert (pixels[:, 16:48].transpose(1, 2, 0) == (255, 0, 0)).all()
    assert geometry.visible_share((4, 4)).tolist() == [[0] * 4, [1] * 4, [1] * 4, [0] * 4]
    assert geometry.visible_share((1, 1)).tolist() == [[0.5]]
    assert geometry.patch_box(0, 0, (4, 4)) == (0, -0.5, 0.25, 0)


def test_heatmap_values():
    squash = Geometry.of(4, 2, size=(2, 2), fit="squash")
    ramp = np.array([[0.0, 1.0]])
    assert squash.heatmap(ramp).tolist() == [[0, 0.25, 0.75, 1]] * 2
    assert squash.heatmap(ramp, nearest=True).tolist() == [[0, 0, 1, 1]] * 2
    crop = Geometry.of(4, 2, size=(2, 2), fit="crop")
    assert crop.heatmap(np.ones((3, 3))).tolist() == [[0, 1, 1, 0]] * 2
    tall = Geometry.of(4, 2, size=(4, 4), fit="letterbox")
    rows = np.array([[9.0], [1.0], [2.0], [9.0]])
    assert tall.heatmap(rows, nearest=True).tolist() == [[1] * 4, [2] * 4]


def test_pixels_are_the_models_own_to_keep():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (3, 5, 3), np.uint8))
    pixels = to_pixels(image, Geometry.of(5, 3, size=(3, 5), fit="squash"), "bicubic")
    assert (pixels == np.asarray(image).transpose(2, 0, 1)).all()
    single = to_pixels(image, Geometry.of(5, 3, size=(1, 1), fit="squash"), "bicubic")
    for array in (pixels, single):
        assert array.dtype == np.uint8
        assert array.flags.c_contiguous
        assert array.flags.writeable


def test_a_region_keeps_its_patches():
    squash = Geometry.of(100, 100, size=(40, 40), fit="squash")
    everything = squash.patches_in((0, 0, 1, 1), (4, 4))
    assert everything.all()
    assert everything.dtype == np.bool_
    half = squash.patches_in((0.5, 0, 0.5, 1), (4, 4))
    assert half.tolist() == [[False, False, True, True]] * 4
    speck = squash.patches_in((0.3, 0.8, 0.01, 0.01), (4, 4))
    assert np.argwhere(speck).tolist() == [[3, 1]]
    bars = Geometry.of(100, 50, size=(40, 40), fit="letterbox").patches_in((0, 0, 1, 1), (4, 4))
    assert bars.tolist() == [[False] * 4, [True] * 4, [True] * 4, [False] * 4]


@pytest.mark.parametrize("region", [(-0.1, 0, 1, 1), (0, 0, 0, 1), (0.6, 0, 0.5, 1), (float("nan"), 0, 1, 1)])
def test_a_region_beyond_the_photo_is_refused(region):
    with pytest.raises(ConfigError, match="within the photo"):
        Geometry.of(10, 10, size=(4, 4), fit="squash").patches_in(region, (2, 2))


def test_a_region_that_a_crop_cuts_off_has_no_patches():
    assert not Geometry.of(400, 100, size=(4, 4), fit="crop").patches_in((0, 0, 0.1, 1), (2, 2)).any()


@pytest.mark.parametrize("fit", FITS)
def test_geometry_as_plain_data(fit):
    geometry = Geometry.of(640, 480, size=(224, 336), fit=fit)
    assert geometry.to_dict() == {"width": 640, "height": 480, "size": [224, 336], "fit": fit}
    assert Geometry.from_dict(geometry.to_dict()) == geometry
