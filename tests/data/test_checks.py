"""Photos that cannot be trained on are found by their headers, and are those that cannot be opened."""

from pathlib import Path

import pytest
from PIL import Image

from captioner.data.annotations import CaptionedImage
from captioner.data.checks import unusable_photos
from captioner.errors import ImageError
from captioner.images import open_image


def picture(path: Path) -> bytes:
    Image.linear_gradient("L").convert("RGB").save(path)
    return path.read_bytes()


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "bmp", "tiff"])
def test_what_open_image_refuses_is_found(suffix: str, tmp_path: Path) -> None:
    whole = picture(tmp_path / f"whole.{suffix}")
    versions = {"empty": b"", "text": b"no picture", "cut": whole[: len(whole) // 2], "junk": whole[:12] + b"x" * 600}
    files = [tmp_path / f"whole.{suffix}", tmp_path / "missing.jpg"]
    for name, data in versions.items():
        (tmp_path / name).write_bytes(data)
        files.append(tmp_path / name)
    expected = []
    for file in files:
        try:
            open_image(file)
        except ImageError as error:
            expected.append((file, error.code, str(error)))
    images = [CaptionedImage(file.name, file, ("a",), None) for file in files]
    found = [(image.source, error.code, str(error)) for image, error in unusable_photos(images)]
    header_only = {"cut"} if suffix not in ("jpg", "png") else set()
    assert [each for each in found if each[0].name not in header_only] == [
        each for each in expected if each[0].name not in header_only
    ]
    assert len(expected) >= 4


def test_content_in_memory_is_opened(tmp_path: Path) -> None:
    whole = picture(tmp_path / "a.png")
    images = [CaptionedImage(number, data, ("a",), None) for number, data in enumerate((whole, whole[:99], b"x"))]
    assert [image.image_id for image, _ in unusable_photos(images)] == [1, 2]


def test_whole_photos_are_not_decoded(tmp_path: Path) -> None:
    """The middle of the file may be damaged: training reports such a photo when it comes to it."""
    Image.effect_noise((64, 64), 50).save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[:99] + bytes(len(whole) - 120) + whole[-21:])
    with pytest.raises(ImageError):
        open_image(tmp_path / "a.png")
    assert list(unusable_photos([CaptionedImage(1, tmp_path / "a.png", ("a",), None)])) == []
