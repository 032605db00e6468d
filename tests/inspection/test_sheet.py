"""A sheet shows each word's attention where it is, on one scale, readably, and the same every time."""

import io
import itertools
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageChops

from captioner.config import Fit
from captioner.errors import ConfigError
from captioner.geometry import Geometry
from captioner.image_colors import UPRIGHT
from captioner.images import open_image
from captioner.inspection.legend import COLORS
from captioner.inspection.sheet import draw_sheet
from captioner.inspection.trace import AttentionTrace

GRID = (4, 6)


def trace_of(
    maps: NDArray[np.float64],
    *,
    words: tuple[str, ...] | None = None,
    size: tuple[int, int] = (320, 240),
    fit: Fit = "squash",
    null: float | None = None,
    photo: Image.Image | None = None,
) -> AttentionTrace:
    """maps (W, h, w), or (W, L, H, h, w), over a black photo."""
    maps = maps[:, None, None] if maps.ndim == 3 else maps
    weights = maps.reshape(*maps.shape[:3], -1)
    if null is not None:
        weights = np.concatenate([weights, np.full_like(weights[..., :1], null)], axis=-1)
    words = words or tuple("word" for _ in maps)
    photo = photo or Image.new("RGB", size, "black")
    return AttentionTrace(
        text=" ".join(words),
        words=words,
        log_probs=(-0.5,) * len(words),
        weights=weights.astype(np.float32),
        grid=(maps.shape[3], maps.shape[4]),
        prefix=0,
        geometry=Geometry.of(*photo.size, size=(128, 192), fit=fit),
        photo=photo,
    )


def hot(row: int, column: int, peak: float = 0.9) -> NDArray[np.float64]:
    """(1, h, w) with nearly all attention on one patch."""
    values = np.full(GRID, 0.001)
    values[row, column] = peak
    return values[None]


def photo_box(sheet: Image.Image) -> tuple[int, int, int, int]:
    """Where the plain photo is, if it is all black: nothing else on a sheet is."""
    black = np.all(np.asarray(sheet) == 0, axis=2)
    rows, columns = np.flatnonzero(black.any(axis=1)), np.flatnonzero(black.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def panel(sheet: Image.Image, number: int = 1) -> NDArray[np.float64]:
    """The brightness (height, width) of a panel of the first row."""
    left, top, right, bottom = photo_box(sheet)
    step = max(right - left, 200) + 22
    box = (left + number * step, top, right + number * step, bottom)
    return np.asarray(sheet.crop(box).convert("L")).astype(float)


@pytest.mark.parametrize("fit", ["squash", "crop", "letterbox"])
@pytest.mark.parametrize("size", [(320, 240), (240, 320), (300, 300)])
@pytest.mark.parametrize("patch", [(1, 2), (2, 3), (2, 2)])
def test_the_hot_patch_is_the_brightest_place_of_the_panel(
    fit: Fit, size: tuple[int, int], patch: tuple[int, int]
) -> None:
    trace = trace_of(hot(*patch), size=size, fit=fit)
    brightness = panel(draw_sheet(trace))
    y, x = np.argwhere(brightness == brightness.max()).mean(axis=0) + 0.5
    left, top, right, bottom = trace.geometry.patch_box(*patch, GRID)
    height, width = brightness.shape
    assert x / width == pytest.approx((left + right) / 2, abs=0.03)
    assert y / height == pytest.approx((top + bottom) / 2, abs=0.03)


def test_the_same_trace_gives_the_same_bytes() -> None:
    maps = np.random.default_rng(0).dirichlet(np.ones(24), size=7).reshape(7, *GRID)
    assert trace_of(maps, null=0.25)._repr_png_() == trace_of(maps, null=0.25)._repr_png_()
    assert trace_of(maps)._repr_png_() != trace_of(maps[::-1])._repr_png_()


def test_all_panels_share_one_scale() -> None:
    sheet = draw_sheet(trace_of(np.concatenate([hot(1, 2, 0.4), hot(1, 2, 0.8), hot(1, 2, 0.8)])))
    peaks = [panel(sheet, number).max() for number in (1, 2, 3)]
    assert peaks[0] < 0.8 * peaks[1]
    assert peaks[1] == peaks[2]


def test_one_sharp_look_does_not_leave_all_other_words_dark() -> None:
    maps = np.concatenate([hot(1, 2, 0.9), *[hot(1, 2, 0.1)] * 11])
    sheet = draw_sheet(trace_of(maps))
    assert panel(sheet, 2).max() == panel(sheet, 1).max()


def test_colors_grow_lighter_with_attention() -> None:
    linear = np.where(COLORS / 255 <= 0.04045, COLORS / 255 / 12.92, ((COLORS / 255 + 0.055) / 1.055) ** 2.4)
    lightness = np.cbrt(linear @ [0.2126, 0.7152, 0.0722])
    assert COLORS.shape == (256, 3)
    assert (np.diff(lightness[::5]) > 0).all()
    # Equal steps of attention look alike: no step is much larger than the mean.
    assert np.diff(lightness[::15]).max() < 2 * np.diff(lightness[::15]).mean()


def test_the_first_panel_is_the_plain_photo_and_the_others_let_it_through() -> None:
    halves = Image.new("RGB", (320, 240), "black")
    halves.paste((200, 220, 210), (160, 0, 320, 240))
    black = draw_sheet(trace_of(np.full((1, *GRID), 0.01)))
    sheet = draw_sheet(trace_of(np.full((1, *GRID), 0.01), photo=halves))
    left, top, right, bottom = photo_box(black)
    plain = sheet.crop((left, top, right, bottom))
    small = halves.resize(plain.size, Image.Resampling.LANCZOS)
    assert ImageChops.difference(plain, small).getbbox() is None
    covered = np.asarray(sheet.crop((left + 262, top, right + 262, bottom)).convert("L")).astype(float)
    assert covered[:, 130:].mean() - covered[:, :110].mean() > 30


@pytest.mark.parametrize(
    ("size", "shown"),
    [((640, 480), (240, 180)), ((480, 640), (180, 240)), ((600, 600), (208, 208)), ((1, 2000), (1, 240))],
)
def test_photos_keep_their_aspect_ratio(size: tuple[int, int], shown: tuple[int, int]) -> None:
    left, top, right, bottom = photo_box(draw_sheet(trace_of(hot(1, 1), size=size)))
    assert (right - left, bottom - top) == shown


def test_many_words_wrap_into_rows() -> None:
    few, many = (draw_sheet(trace_of(np.full((n, *GRID), 0.01), words=("a",) * n)) for n in (4, 39))
    assert few.width == many.width == 2 * 28 + 5 * 240 + 4 * 22
    assert many.height - few.height == 7 * (28 + 180 + 24 + 22)


def test_one_word_leaves_room_for_the_legend() -> None:
    sheet = draw_sheet(trace_of(hot(1, 1), size=(1, 2000), null=0.1))
    assert sheet.width == 2 * 28 + 2 * 200 + 22
    below = np.asarray(sheet)[-28:]
    assert (below == 255).all()


@pytest.mark.parametrize(
    "word", ["日本語", "\U0001f9ff", "a\nb", "\0", "\ud800", "מילה", "w" * 400, "<script>", "e\u0301", " "]
)
def test_any_text_is_drawn_within_the_sheet(word: str) -> None:
    trace = trace_of(np.full((2, *GRID), 0.01), words=(word, "dog"))
    sheet = draw_sheet(trace, title=word)
    pixels = np.asarray(sheet)
    assert (pixels[:, -27:] == 255).all()
    assert (pixels[:, :26] == 255).all()


def test_a_title_goes_above_and_moves_everything_down() -> None:
    trace = trace_of(hot(1, 1))
    plain, titled = draw_sheet(trace), draw_sheet(trace, title="photo.jpg")
    assert titled.height == plain.height + 24
    assert photo_box(titled)[1] == photo_box(plain)[1] + 24


def test_visual_need_is_told_where_it_was_measured() -> None:
    trace = trace_of(hot(1, 1))
    without, little, much = (draw_sheet(replace(trace, needs=needs)) for needs in ((), (0.1,), (5.0,)))
    left, _, _, bottom = photo_box(without)
    corner = (left + 262, bottom + 4, left + 400, bottom + 26)
    assert (np.asarray(without.crop(corner)) == 255).all()
    assert not (np.asarray(little.crop(corner)) == 255).all()
    assert ImageChops.difference(little.crop(corner), much.crop(corner)).getbbox() is not None
    np.testing.assert_array_equal(panel(little), panel(without))


def by_evidence(maps: NDArray[np.float64], needs: tuple[float, ...]) -> AttentionTrace:
    """A trace by relevance."""
    trace = trace_of(maps)
    return replace(trace, method="relevance", evidence=trace.weights, needs=needs)


def test_words_that_the_sentence_gave_away_are_faint_on_a_scale_of_their_own() -> None:
    maps = np.concatenate([hot(1, 2, 0.004), hot(1, 2, 0.008), *[hot(1, 2, 0.8)] * 3])
    dark, faint, fainter = (
        [panel(draw_sheet(by_evidence(maps, (*needs, 3.0, 3.0, 3.0))), number) for number in (1, 2)]
        for needs in ((3.0, 3.0), (0.1, 0.1), (-2.0, 1.0))
    )
    assert dark[0].max() < 8  # nothing to see
    assert faint[0].max() == faint[1].max() > 60
    np.testing.assert_array_equal(faint, fainter)
    raw = replace(by_evidence(maps, (0.1,) * 5), method="raw", evidence=None)
    np.testing.assert_array_equal(panel(draw_sheet(raw)), panel(draw_sheet(replace(raw, needs=()))))


def test_doubt_is_a_text_below_the_panel() -> None:
    trace = by_evidence(hot(1, 1), (2.0,))
    plain, likely, doubtful = (draw_sheet(replace(trace, hallucination={0: chance})) for chance in (0.0, 0.4, 0.6))
    left, top, _, bottom = photo_box(plain)
    assert likely.tobytes() == plain.tobytes()
    changed = ImageChops.difference(plain, doubtful).getbbox()
    assert changed is not None
    assert changed[1] > bottom
    assert changed[0] >= left + 262
    assert top < bottom


def test_what_was_hidden_is_covered() -> None:
    visible = np.ones(GRID, bool)
    visible[:, :3] = False
    trace = replace(trace_of(hot(1, 5)), visible=visible)
    sheet, whole = np.asarray(draw_sheet(trace)), np.asarray(draw_sheet(replace(trace, visible=None)))
    left, top, right, bottom = photo_box(draw_sheet(replace(trace, visible=None)))
    middle = (left + right) // 2
    assert (whole[top:bottom, left:right] == 0).all()
    assert (sheet[top:bottom, left : middle - 2] > 180).all()
    assert (sheet[top:bottom, middle + 2 : right] == 0).all()


def test_a_layer_and_a_head_can_be_shown_alone() -> None:
    maps = np.random.default_rng(0).dirichlet(np.ones(24), size=(2, 3, 2)).reshape(2, 3, 2, *GRID)
    trace = trace_of(maps)
    np.testing.assert_array_equal(
        panel(draw_sheet(trace, layer=1, head=0)), panel(draw_sheet(trace_of(maps[:, 1:2, :1])))
    )
    assert not np.array_equal(panel(draw_sheet(trace)), panel(draw_sheet(trace, layer=1)))
    with pytest.raises(ConfigError, match="layer 3: this model has layers 0 to 2"):
        draw_sheet(trace, layer=3)


def test_probabilities_of_every_size_can_be_written() -> None:
    sheets = {
        draw_sheet(replace(trace_of(hot(1, 1)), log_probs=(value,))).tobytes() for value in (0, -0.1, -3, -9, -99)
    }
    assert len(sheets) == 4  # the last two are both less than can be shown


INVERSE = {**UPRIGHT, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
"""EXIF orientation -> how a camera that writes it has stored the upright picture."""


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("fit", ["squash", "crop", "letterbox"])
@pytest.mark.parametrize("shape", [(64, 48), (48, 64), (50, 50), (33, 21), (20, 90), (100, 10)])
def test_the_brightest_pixel_lies_in_the_patch_that_is_hot(shape, fit, orientation):
    """Whatever the photo's shape and orientation, the fit, the grid and the prefix tokens."""
    stored = Image.new("RGB", shape, "gray")
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    (stored.transpose(INVERSE[orientation]) if orientation > 1 else stored).save(buffer, "PNG", exif=exif)
    photo = open_image(buffer.getvalue()).image
    assert photo.size == shape
    for (size, grid), prefix in itertools.product((((224, 224), (7, 7)), ((128, 288), (4, 9))), (0, 1, 5)):
        geometry = Geometry.of(*shape, size=size, fit=fit)
        visible = geometry.visible_share(grid)
        shown = np.argwhere(visible >= min(0.5, visible.max()))
        row, column = shown[(orientation * len(shown) // 8) % len(shown)].tolist()
        weights = np.full((1, 2, 3, prefix + grid[0] * grid[1] + 1), 0.001, np.float32)
        weights[..., :prefix] = 0.9  # what has no place must not move what has
        weights[..., prefix + row * grid[1] + column] = 0.5
        trace = AttentionTrace("dog", ("dog",), (-1.0,), weights, grid, prefix, geometry, photo)
        heat = geometry.heatmap(trace.patches(0), size=shape)
        left, top, right, bottom = np.clip(geometry.patch_box(row, column, grid), 0, 1) * (shape * 2)
        y, x = np.argwhere(heat == heat.max()).T + 0.5
        assert ((x >= left) & (x <= right) & (y >= top) & (y <= bottom)).all()
