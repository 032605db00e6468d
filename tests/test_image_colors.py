"""Conversion in strips: equal to that of the whole picture, for every mode and orientation."""

import numpy as np
import pytest
from PIL import Image, ImageCms

from captioner import image_colors
from captioner.image_colors import UPRIGHT, to_rgb

MODES = ("1", "L", "P", "RGB", "CMYK", "LA", "La", "RGBA", "I;16", "I", "F")


def picture(mode: str, width: int = 31, height: int = 23) -> Image.Image:
    random = np.random.default_rng(0)
    if mode in ("I;16", "I", "F"):
        kinds = {"I;16": np.uint16, "I": np.int32, "F": np.float32}
        return Image.fromarray((random.random((height, width)) * 60_000).astype(kinds[mode]))
    image = Image.fromarray(random.integers(0, 256, (height, width, 4), np.uint8))
    return image.convert("LA").convert("La") if mode == "La" else image.convert(mode)


@pytest.mark.parametrize("mode", MODES)
def test_strips_change_nothing(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    image, notes, whole_notes = picture(mode), list[str](), list[str]()
    whole = [to_rgb(image, orientation, whole_notes) for orientation in range(1, 9)]
    monkeypatch.setattr(image_colors, "STRIP_PIXELS", 150)
    strips = [to_rgb(image, orientation, notes) for orientation in range(1, 9)]
    assert [each.tobytes() for each in strips] == [each.tobytes() for each in whole]
    assert notes == whole_notes
    plain = whole[0]
    assert [each.tobytes() for each in whole[1:]] == [plain.transpose(UPRIGHT[each]).tobytes() for each in range(2, 9)]


@pytest.mark.parametrize("size", [(30, 22), (31, 23)])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_halved_picture_is_the_picture_halved(
    size: tuple[int, int], orientation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = picture("RGB", *size)
    monkeypatch.setattr(image_colors, "STRIP_PIXELS", 150)
    halved = to_rgb(image, orientation, [], halve=True)
    assert halved.tobytes() == to_rgb(image.reduce(2), orientation, []).tobytes()


def test_the_range_of_a_picture_is_that_of_all_its_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_colors, "STRIP_PIXELS", 8)
    levels, notes = np.linspace(-1000, 1000, 64, dtype=np.float32).reshape(16, 4), list[str]()
    gray = np.asarray(to_rgb(Image.fromarray(levels), 1, notes))[..., 0].ravel()
    assert (gray[0], gray[-1], notes) == (0, 255, ["rescaled_range"])
    assert (np.diff(gray.astype(int)) >= 0).all()


def test_a_float_picture_of_one_level_is_no_error() -> None:
    notes: list[str] = []
    assert to_rgb(Image.new("F", (4, 3), 1e9), 1, notes).getcolors() == [(12, (0, 0, 0))]
    assert notes == ["rescaled_range"]


def test_notes_come_once_and_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_colors, "STRIP_PIXELS", 150)
    image, notes = picture("RGBA"), ["truncated"]
    image.info["icc_profile"] = b"broken"
    to_rgb(image, 1, notes)
    assert notes == ["truncated", "icc_ignored", "alpha_on_white"]
    image.info["icc_profile"] = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    to_rgb(image, 1, notes := [])
    assert notes == ["alpha_on_white"]
