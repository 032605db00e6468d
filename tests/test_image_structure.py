"""Files that are small and slow: refused in a moment, and no photo with them."""

import io
import random
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from captioner.errors import ImageError
from captioner.image_structure import MAX_PARTS, MAX_SCANS, excess
from captioner.images import open_image


def saved(kind, **options):
    colors = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(colors).save(stream, kind, **options)
    return stream.getvalue()


def chunk(name, content=b""):
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


JPEG, PNG = saved("JPEG", progressive=True), saved("PNG")
LAST_SCAN = JPEG[JPEG.rindex(b"\xff\xda") : -2]


def scans(count):
    return JPEG[:-2] + LAST_SCAN * count + b"\xff\xd9"


SLOW = {
    "scans": (scans(800), "JPEG", "scans"),
    "segments": (JPEG[:2] + b"\xff\xec\0\x02" * 10**6 + JPEG[2:], "JPEG", "segments"),
    "zeros": (b"\xff\xd8\xff" + bytes(2 * 10**7), "JPEG", "bytes after"),
    "zeros within": (JPEG[:20] + bytes(2 * 10**7) + JPEG[20:], "JPEG", "bytes between"),
    "chunks": (PNG[:33] + chunk(b"teXt") * 10**6 + PNG[33:], "PNG", "chunks"),
    "chunks after": (PNG[:-12] + chunk(b"teXt") * 10**6 + PNG[-12:], "PNG", "chunks"),
}


@pytest.mark.parametrize("data", [saved("JPEG"), JPEG, PNG, saved("JPEG", exif=b"Exif\0\0" + bytes(60_000)), scans(20)])
def test_photos_pass(data):
    assert excess(data, "JPEG" if data[0] == 0xFF else "PNG") is None
    assert open_image(data).image.size == (60, 40)


@pytest.mark.parametrize("name", SLOW)
def test_files_that_would_take_seconds_are_refused(name):
    data, kind, words = SLOW[name]
    assert words in excess(data, kind)
    with pytest.raises(ImageError, match=words) as caught:
        open_image(data)
    assert caught.value.code == "corrupt"


def test_what_follows_the_first_image_does_not_count():
    film = random.Random(0).randbytes(2 * 10**7)
    assert film.count(b"\xff\xda") > MAX_SCANS
    assert excess(JPEG + film, "JPEG") is None
    assert open_image(JPEG + film).image.size == (60, 40)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_any_bytes_end(kind):
    """The walk moves on at every step, whatever lengths a file states."""
    random.seed(0)
    for whole in (JPEG, PNG, bytes(1000), b"\xff" * 1000):
        for _ in range(200):
            data = bytearray(whole)
            for _ in range(5):
                data[random.randrange(len(data))] = random.choice((0, 2, 0xFF, 0xDA, 0xEC))
            assert isinstance(excess(bytes(data), kind), str | None)


def test_limits_are_beyond_what_encoders_write():
    assert JPEG.count(b"\xff\xda") * 5 < MAX_SCANS
    assert PNG.count(b"IDAT") * 100 < MAX_PARTS
