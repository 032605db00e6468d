"""The demo photos are small, clean, documented, and of every shape the demo is meant to show."""

import re
from pathlib import Path

from PIL import Image, ImageOps

PHOTOS = Path(__file__).resolve().parents[2] / "docs" / "photos"
ORIENTATION = 0x0112


def test_every_photo_has_its_source() -> None:
    documented = re.findall(r"^\| `(\w+\.jpg)`", (PHOTOS / "SOURCES.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert documented == sorted(path.name for path in PHOTOS.glob("*.jpg"))


def test_photos_are_small_and_carry_no_metadata() -> None:
    for path in PHOTOS.glob("*.jpg"):
        assert path.stat().st_size < 100_000
        with Image.open(path) as photo:
            assert max(photo.size) <= 640
            assert set(photo.getexif()) <= {ORIENTATION}


def test_there_is_a_landscape_a_square_and_a_portrait_that_lies_on_its_side() -> None:
    stored, upright = {}, {}
    for path in PHOTOS.glob("*.jpg"):
        with Image.open(path) as photo:
            stored[path.stem], upright[path.stem] = photo.size, ImageOps.exif_transpose(photo).size
    assert stored["koala"] == (640, 480)
    assert upright["koala"] == (480, 640)
    assert upright["photographer"] == (512, 512)
    assert upright["dog"] == (640, 480)
