"""Odd and hostile files."""

import csv
import hashlib
import io
import multiprocessing
import os
import struct
import subprocess
import sys
import zlib
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageFile, features

from captioner import image_colors, images
from captioner.errors import ImageError
from captioner.images import IMAGE_EXTENSIONS, open_image

CODES = {"empty", "truncated", "corrupt", "too_many_pixels", "not_an_image", "needs_extra", "unreadable"}
INVERSE = {**image_colors.UPRIGHT, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
"""EXIF orientation -> how a camera that writes it has stored the upright picture."""
SHARED = Path(os.environ.get("CAPTIONER_SHARED", Path(__file__).parents[1].parent / "shared"))
ODD = SHARED / "data" / "odd_images"
LIBTIFF_TOLERATES = "fuzz_crash-74d2a78403a5a59db1fb0a2b8735ac068a75f6e3.tif"
"""Fax data with one bad code word: the index saw libtiff refuse it, 4.7.2 repairs the line and reports success."""
HEIC_BY_CONTENT = "avif_named_heif.heif"
"""Its brand is heic, not avif: accepted with the extra `heif`, else the extra is named."""


def photo(width: int = 64, height: int = 32) -> Image.Image:
    """Four flat quarters, so that any turn or mirror shows and lossy formats keep it."""
    image = Image.new("RGB", (width, height), (200, 30, 30))
    image.paste((30, 200, 30), (width // 2, 0, width, height // 2))
    image.paste((30, 30, 200), (0, height // 2, width // 2, height))
    image.paste((230, 230, 40), (width // 2, height // 2, width, height))
    return image


def noise(width: int = 64, height: int = 48) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(width: int, height: int, body: bytes = b"") -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")


def refusal(source: object, **options: bool) -> ImageError:
    with pytest.raises(ImageError) as caught:
        open_image(source, **options)
    assert caught.value.code in CODES
    assert "\n" not in str(caught.value)
    return caught.value


def difference(one: Image.Image, other: Image.Image) -> float:
    assert (one.mode, one.size) == (other.mode, other.size)
    return float(np.abs(np.asarray(one, float) - np.asarray(other, float)).mean())


# Sources


def test_a_path_its_bytes_a_pil_image_and_an_array_are_one_photo(tmp_path):
    data = encoded(noise(), "PNG")
    path = tmp_path / "a.png"
    path.write_bytes(data)
    for source in (path, str(path), data, noise(), np.asarray(noise())):
        opened = open_image(source)
        assert opened.image.tobytes() == noise().tobytes()
        assert opened.notes == ()
        known = isinstance(source, Path | str | bytes)
        assert opened.sha256 == (hashlib.sha256(data).hexdigest() if known else None)


def test_a_given_pil_image_is_left_as_it_was():
    given_image = noise()
    opened = open_image(given_image)
    opened.image.putpixel((0, 0), (1, 2, 3))
    assert given_image.tobytes() == noise().tobytes()


def test_arrays_gray_and_with_alpha():
    gray = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert (np.asarray(open_image(gray).image) == gray[:, :, None]).all()
    clear = np.zeros((3, 4, 4), np.uint8)
    opened = open_image(clear)
    assert opened.notes == ("alpha_on_white",)
    assert (np.asarray(opened.image) == 255).all()


@pytest.mark.parametrize(
    ("array", "code"),
    [
        (np.zeros((3, 4, 3), np.float32), "not_an_image"),
        (np.zeros((3, 4, 2), np.uint8), "not_an_image"),
        (np.zeros(3, np.uint8), "not_an_image"),
        (np.zeros((0, 4, 3), np.uint8), "empty"),
        (12, "not_an_image"),
        (Image.new("RGB", (0, 4)), "empty"),
    ],
)
def test_other_objects_are_refused(array, code):
    assert refusal(array).code == code


# Modes and colors


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV", "LAB", "RGBX"])
def test_opaque_modes_are_what_pillow_makes_of_them(mode):
    image = photo().convert("RGB" if mode != "1" else "L").convert(mode) if mode != "LAB" else lab()
    opened = open_image(image)
    assert opened.image.tobytes() == image.convert("RGB").tobytes()
    assert opened.notes == ()


def lab() -> Image.Image:
    return ImageCms.profileToProfile(
        photo(), ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )


@pytest.mark.parametrize("mode", ["LA", "La", "RGBA", "RGBa", "PA"])
def test_alpha_lies_on_white(mode):
    image = Image.new("RGBA", (4, 2), (0, 0, 0, 255))
    image.paste((0, 0, 0, 0), (0, 0, 2, 2))
    middle = {"La": "LA", "RGBa": "RGBA", "PA": "P"}.get(mode, mode)
    image = image.convert(middle).convert(mode)
    opened = open_image(image)
    assert np.asarray(opened.image)[0, :, 0].tolist() == [255, 255, 0, 0]
    assert opened.notes == ("alpha_on_white",)


def test_half_transparent_is_half_white_and_full_alpha_no_note():
    assert open_image(Image.new("RGBA", (1, 1), (0, 0, 0, 51))).image.getpixel((0, 0)) == (204, 204, 204)
    assert open_image(Image.new("RGBA", (1, 1), (9, 8, 7, 255))).notes == ()


@pytest.mark.parametrize("transparency", [0, b"\x00\xff"])
def test_palette_with_transparency(transparency):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putdata([0, 1])
    opened = open_image(encoded(image, "PNG", transparency=transparency))
    assert np.asarray(opened.image).tolist() == [[[255, 255, 255], [40, 50, 60]]]
    assert opened.notes == ("alpha_on_white",)


def test_sixteen_bit_gray_is_scaled_not_clipped():
    levels = np.array([[0, 257, 32896, 65535]], np.uint16)
    for kind in ("PNG", "TIFF"):
        opened = open_image(encoded(Image.fromarray(levels), kind))
        assert np.asarray(opened.image)[0, :, 0].tolist() == [0, 1, 128, 255]
        assert opened.notes == ()
    clear = Image.fromarray(levels)
    clear.info["transparency"] = 257
    opened = open_image(clear)
    assert np.asarray(opened.image)[0, :, 0].tolist() == [0, 255, 128, 255]
    assert opened.notes == ("alpha_on_white",)


@pytest.mark.parametrize(
    ("numbers", "expected", "notes"),
    [
        (np.array([[0, 0.5, 1]], np.float32), [0, 128, 255], ()),
        (np.array([[0, 100, 255]], np.float32), [0, 100, 255], ()),
        (np.array([[-1, 0, 1]], np.float32), [0, 128, 255], ("rescaled_range",)),
        (np.array([[-3e38, np.nan, 3e38]], np.float32), [0, 128, 255], ("rescaled_range",)),
        (np.array([[np.inf, 0, 200]], np.float32), [0, 0, 200], ()),
        (np.array([[0, 257, 65535]], np.int32), [0, 1, 255], ()),
        (np.array([[0, 100, 255]], np.int32), [0, 100, 255], ()),
        (np.array([[0, 2**30, 2**31 - 1]], np.int32), [0, 128, 255], ("rescaled_range",)),
    ],
)
def test_floats_and_long_integers_are_scaled(numbers, expected, notes):
    opened = open_image(encoded(Image.fromarray(numbers), "TIFF"))
    assert np.asarray(opened.image)[0, :, 1].tolist() == expected
    assert opened.notes == notes


def swapped_profile() -> bytes:
    """A profile of another space: sRGB's with the red and blue primaries exchanged, under another name."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    profile = profile.replace(b"rXYZ", b"?XYZ").replace(b"bXYZ", b"rXYZ").replace(b"?XYZ", b"bXYZ")
    return profile.replace("sRGB".encode("utf-16-be"), "BGR!".encode("utf-16-be"))


def test_an_icc_profile_is_honored():
    opened = open_image(encoded(Image.new("RGB", (8, 8), (255, 0, 0)), "PNG", icc_profile=swapped_profile()))
    assert opened.notes == ()
    assert np.abs(np.subtract(opened.image.getpixel((4, 4)), (0, 0, 255))).max() <= 3


def test_srgb_changes_nothing_and_a_broken_profile_is_noted():
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert open_image(encoded(noise(), "PNG", icc_profile=srgb)).image.tobytes() == noise().tobytes()
    opened = open_image(encoded(noise(), "PNG", icc_profile=b"nonsense"))
    assert opened.image.tobytes() == noise().tobytes()
    assert opened.notes == ("icc_ignored",)


def test_cmyk_jpeg_has_its_colors():
    opened = open_image(encoded(photo().convert("CMYK"), "JPEG", quality=95))
    assert difference(opened.image, photo()) < 4


# Orientation and frames


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "PIL"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_comes_upright_and_only_once(kind, orientation):
    stored = photo().transpose(INVERSE[orientation]) if orientation > 1 else photo()
    exif = Image.Exif()
    exif[0x0112] = orientation
    if kind == "PIL":
        stored.info["exif"] = exif.tobytes()
        opened = open_image(stored)
    else:
        opened = open_image(encoded(stored, kind, exif=exif, **({} if kind == "TIFF" else {"quality": 95})))
    assert difference(opened.image, photo()) < 4
    assert opened.image.info == {}
    assert open_image(opened.image).image.tobytes() == opened.image.tobytes()


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_nonsense_in_exif_is_ignored():
    exif = Image.Exif()
    exif[0x0112] = 77
    assert open_image(encoded(noise(), "PNG", exif=exif)).image.tobytes() == noise().tobytes()
    opened = open_image(encoded(noise(), "PNG", exif=b"Exif\0\0II*\0 nonsense"))
    assert opened.image.tobytes() == noise().tobytes()
    strange = noise()
    strange.info["exif"] = "text where bytes belong"
    assert open_image(strange).notes == ("exif_ignored",)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF", "AVIF"])
def test_animations_give_their_first_frame(kind):
    if kind in ("AVIF", "WEBP") and not features.check(kind.lower()):
        pytest.skip(f"this Pillow has no {kind}")
    frames = [photo(), Image.new("RGB", (64, 32), "black")]
    opened = open_image(encoded(frames[0], kind, save_all=True, append_images=frames[1:]))
    assert opened.notes == ("first_frame_only",)
    assert difference(opened.image, photo()) < 8
    assert open_image(encoded(photo(), kind)).notes == ()


# Refusals


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "empty"),
        (b"just some text", "not_an_image"),
        (b"BMW makes cars and motorcycles", "not_an_image"),
        (b"\xef\xbb\xbf <svg xmlns='x'/>", "not_an_image"),
        (b"\0\0\1\0" + bytes(60), "not_an_image"),
        (b"%!PS-Adobe", "not_an_image"),
        (b"\0\0\0\x18ftypisom\0\0\0\0mp42mp41", "not_an_image"),
        (png(100_000, 100_000), "too_many_pixels"),
        (png(10_000, 9_200), "too_many_pixels"),
        (png(8, 8, b"\0" * 20), "truncated"),
        (b"\x89PNG\r\n\x1a\n", "truncated"),
        (b"\xff\xd8\xff", "truncated"),
        (png(8, 8).replace(b"IHDR", b"IHDX"), "corrupt"),
        (b"RIFF\x04\0\0\0WEBP", "corrupt"),
        (b"II*\0\xff\xff\0\0", "truncated"),
    ],
)
def test_what_is_no_usable_image_is_refused_with_its_code(tmp_path, data, code):
    path = tmp_path / "x.jpg"
    path.write_bytes(data)
    for source in (path, data):
        assert refusal(source).code == code
    assert "x.jpg: " in str(refusal(path))


def test_what_is_no_file_is_refused_unopened(tmp_path):
    assert refusal(tmp_path / "missing.jpg").code == "unreadable"
    assert refusal(tmp_path).code == "unreadable"
    assert "folder" in str(refusal(tmp_path))
    assert refusal("nul\0.jpg").code == "unreadable"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_a_fifo_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    assert refusal(tmp_path / "pipe.jpg").code == "unreadable"


def test_messages_stay_one_line_whatever_the_name(tmp_path):
    path = tmp_path / "two\nlines 图.jpg"
    path.write_bytes(b"text")
    assert "two\\nlines 图.jpg: not an image" in str(refusal(path))


def test_a_file_over_the_limit_is_not_read(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(noise(), "PNG"))
    monkeypatch.setattr(images, "MAX_FILE_BYTES", 1000)
    assert refusal(path).code == "unreadable"
    assert refusal(path.read_bytes()).code == "unreadable"


def test_errors_that_are_no_oserror_keep_their_meaning():
    assert images._image_error("x", b"", MemoryError()).code == "unreadable"
    assert images._image_error("x", b"", Image.DecompressionBombError("big")).code == "too_many_pixels"


def test_a_negative_side_is_corrupt_not_huge():
    data = bytearray(encoded(noise(), "BMP"))
    data[18:22] = struct.pack("<i", -64)
    assert refusal(bytes(data)).code == "corrupt"


def test_a_large_jpeg_is_decoded_at_half_its_size():
    data = encoded(Image.new("L", (9000, 6000), 77), "JPEG", quality=20)
    opened = open_image(data)
    assert (opened.image.size, opened.size) == ((4500, 3000), (9000, 6000))
    assert np.abs(np.subtract(opened.image.getpixel((9, 9)), 77)).max() <= 1
    assert opened.notes == ("half_resolution",)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_other_large_files_are_halved(kind, monkeypatch):
    data = encoded(photo(64, 32), kind)
    monkeypatch.setattr(images, "FULL_PIXELS", 64 * 32 - 1)
    opened = open_image(data)
    assert (opened.image.size, opened.size) == ((32, 16), (64, 32))
    assert opened.image.tobytes() == photo(64, 32).reduce(2).tobytes()
    assert opened.notes == ("half_resolution",)


def test_webp_has_a_lower_limit():
    assert refusal(encoded(Image.new("L", (5001, 5000)), "WEBP", lossless=True, method=0)).code == "too_many_pixels"


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads the peak of memory in /proc")
@pytest.mark.parametrize(
    ("mode", "kind", "options"),
    [("P", "PNG", {"transparency": bytes(256)}), ("F", "TIFF", {"compression": "tiff_adobe_deflate"})],
)
def test_the_largest_files_take_under_300_mb(mode, kind, options, tmp_path):
    path = tmp_path / "large"
    Image.new(mode, (7070, 7070), 1).save(path, kind, **options)
    program = (
        "import re, sys\n"
        "from captioner.images import open_image\n"
        "open('/proc/self/clear_refs', 'w').write('5')\n"
        "peak = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]) // 1024\n"
        "before = peak()\n"
        "assert open_image(sys.argv[1]).size == (7070, 7070)\n"
        "print(peak() - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, check=True)
    assert int(done.stdout) <= 300


def test_large_files_are_decoded_one_at_a_time(monkeypatch):
    monkeypatch.setattr(images, "FULL_PIXELS", 100)
    data = encoded(photo(), "PNG")
    with ThreadPoolExecutor(1) as pool:
        with images._one_large_file:
            waiting = pool.submit(open_image, data)
            assert open_image(encoded(photo(10, 10), "PNG")).size == (10, 10)
            with pytest.raises(TimeoutError):
                waiting.result(0.3)
        assert waiting.result(10).size == (64, 32)


def test_heic_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    error = refusal(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    assert error.code == "needs_extra"
    assert 'pip install "captioner[heif]"' in str(error)


def test_heic_with_its_extra():
    heif = pytest.importorskip("pillow_heif")
    try:
        buffer = io.BytesIO()
        heif.from_pillow(photo()).save(buffer, quality=90)
    except RuntimeError:
        pytest.skip("this libheif has no encoder")
    assert difference(open_image(buffer.getvalue()).image, photo()) < 8
    assert refusal(buffer.getvalue()[:-200]).code == "truncated"


# Truncated files


@pytest.mark.parametrize(
    ("kind", "options"), [("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("GIF", {}), ("BMP", {})]
)
def test_truncated_is_an_error_unless_allowed(kind, options):
    whole = encoded(noise(), kind, **options)
    cut = whole[: len(whole) * 3 // 4]
    assert refusal(cut).code == "truncated"
    opened = open_image(cut, allow_truncated=True)
    assert opened.notes == ("truncated",)
    assert opened.sha256 == hashlib.sha256(cut).hexdigest()
    if "progressive" not in options:
        rows = slice(40, None) if kind == "BMP" else slice(0, 8)
        complete = np.asarray(open_image(whole).image)
        assert (np.asarray(opened.image)[rows] == complete[rows]).all()
    assert open_image(whole, allow_truncated=True).notes == ()
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


def test_a_file_without_a_single_pixel_is_refused_though_truncated_is_allowed():
    data = encoded(noise(), "PNG")
    assert refusal(data[: data.index(b"IDAT") + 6], allow_truncated=True).code == "truncated"
    assert refusal(encoded(noise(), "WEBP")[:500], allow_truncated=True).code == "truncated"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "AVIF"])
def test_no_cut_passes_for_whole(kind):
    # Trailers carry no pixels: without a PNG's or GIF's last bytes the picture is complete.
    trailer = {"GIF": 2, "PNG": 12}.get(kind, 0)
    whole = encoded(noise(), kind)
    codes = {refusal(whole[:end]).code for end in range(40, len(whole) - trailer, len(whole) // 40)}
    assert codes <= ({"truncated", "corrupt"} if kind == "AVIF" else {"truncated"})


def test_threads_that_allow_truncated_files_do_not_loosen_others():
    whole = encoded(noise(200, 200), "JPEG")
    cut = whole[: len(whole) // 2]

    def opens(place: int) -> bool:
        try:
            return bool(open_image(cut, allow_truncated=place % 2 == 0).notes)
        except ImageError:
            return False

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(opens, range(80))) == [True, False] * 40


# Hostile bytes

SEEDS = [
    encoded(noise(16, 12), kind, **options)
    for kind, options in [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("GIF", {}),
        ("WEBP", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("AVIF", {}),
    ]
]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.sampled_from(SEEDS),
    changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=6),
    kept=st.floats(0.05, 1) | st.just(1.0),
    allow_truncated=st.booleans(),
)
def test_mutated_bytes_are_opened_or_refused(seed, changes, kept, allow_truncated):
    data = bytearray(seed)
    for place, value in changes:
        data[min(int(place**2 * len(data)), len(data) - 1)] = value
    try:
        opened = open_image(bytes(data[: int(kept * len(data))]), allow_truncated=allow_truncated)
    except ImageError as error:
        assert error.code in CODES  # noqa: PT017
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert opened.image.mode == "RGB"


# The larger set of odd files, where it is found

MEANINGS = {
    "truncated": "truncated",
    "corrupt": "corrupt",
    "too many pixels": "too_many_pixels",
    "own cap": "too_many_pixels",
    "not an image": "not_an_image",
    "format": "not_an_image",
}
"""What the index says should happen -> the code that says so."""


def expectation(text: str) -> tuple[bool, set[str]]:
    """Whether a file may be accepted, and the codes by which it may be refused."""
    either = any(words in text for words in ("or skip", "or accept"))
    if either:
        return True, CODES
    if text.startswith(("skip", "treat")):
        return False, {code for words, code in MEANINGS.items() if words in text} or CODES
    return True, set()


@pytest.mark.skipif(not (ODD / "INDEX.tsv").exists(), reason="the set of odd images is not here")
def test_every_odd_file_meets_its_expectation():
    with (ODD / "INDEX.tsv").open(encoding="utf-8", newline="") as file:
        expected = {row["file"]: row["expected behaviour"] for row in csv.DictReader(file, delimiter="\t")}
    assert set(expected) == {name for name in os.listdir(ODD) if name != "INDEX.tsv"}
    deviations = {}
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        for name, text in expected.items():
            accept, codes = expectation(text)
            try:
                # A crash of the decoder breaks the pool, and fails this test with the file's name in the traceback.
                opened = pool.submit(open_image, ODD / name).result(timeout=60)
                if not accept:
                    deviations[name] = f"accepted {opened.image.size}"
            except ImageError as error:
                if error.code not in codes:
                    deviations[name] = error.code
    allowed = {(LIBTIFF_TOLERATES, "accepted (590, 88)"), (HEIC_BY_CONTENT, "needs_extra")}
    assert set(deviations.items()) <= allowed


@pytest.mark.skipif(not (ODD / "INDEX.tsv").exists(), reason="the set of odd images is not here")
def test_odd_files_that_show_one_picture_come_out_alike():
    one, *others = (open_image(ODD / f"orient_webp_{tag}.webp").image for tag in (2, 4, 6, 8))
    assert [difference(one, other) < 8 for other in others] == [True] * 3
    assert open_image(ODD / "orient_png_8.png").image.size == (100, 200)
    assert open_image(ODD / "jpeg_named.png").sha256 == open_image(ODD / "..hidden.jpg").sha256


def test_extensions_are_lower_case_suffixes():
    assert {".jpg", ".png", ".webp", ".heic"} <= IMAGE_EXTENSIONS
    assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in IMAGE_EXTENSIONS)


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_the_limit_on_pixels_can_be_lowered(format):
    stream = io.BytesIO()
    photo(64, 32).save(stream, format)
    assert open_image(stream.getvalue(), max_pixels=64 * 32).image.size == (64, 32)
    with pytest.raises(
        ImageError, match=r"^<bytes>: 64 x 32 pixels, over the limit of 0\.002047 megapixels"
    ) as refused:
        open_image(stream.getvalue(), max_pixels=64 * 32 - 1)
    assert refused.value.code == "too_many_pixels"
