"""Photos from any source, decoded safely: upright RGB, or an error that says why not."""

import hashlib
import io
import os
import stat
import struct
import threading
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.ExifTags import Base
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from captioner.errors import ImageError
from captioner.files import Inner
from captioner.image_colors import SIDEWAYS, to_rgb
from captioner.image_structure import excess
from captioner.text import printable

ImageSource: TypeAlias = str | os.PathLike[str] | Inner | bytes | Image.Image | NDArray[np.uint8]

IMAGE_EXTENSIONS = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp"),
        *(".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif"),
    )
)
"""Lower-case suffixes by which a folder is searched for images. A file's format is detected from its bytes."""
FULL_PIXELS = 30_000_000
"""Most pixels of a file that is used at full resolution; larger ones are halved, and decoded one at a time."""
MAX_PIXELS = 50_000_000
MAX_JPEG_PIXELS = 89_000_000
"""The limit for a JPEG, which can be decoded at half its size."""
MAX_WEBP_PIXELS = 25_000_000
"""The limit for WebP, whose decoder takes 12 bytes for a pixel."""
LIMITS = {"JPEG": MAX_JPEG_PIXELS, "WEBP": MAX_WEBP_PIXELS}
"""Format -> most pixels, where it differs from MAX_PIXELS."""
MAX_FILE_BYTES = 256 * 2**20

# Plugins are called by class: `Image.open` would add a warning about size (global state) and MPO's table of frames.
PLUGINS = (AvifImageFile, BmpImageFile, GifImageFile, JpegImageFile, PngImageFile, TiffImageFile, WebPImageFile)
DECODERS: dict[str | None, Callable[[io.BytesIO], ImageFile]] = {plugin.format: plugin for plugin in PLUGINS}
SIGNATURES = {
    "JPEG": (b"\xff\xd8\xff",),
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "GIF": (b"GIF87a", b"GIF89a"),
    "TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
}
BMP_HEADERS = (12, 40, 52, 56, 64, 108, 124)
"""Sizes of a BMP's second header: text may start with `BM`, too."""
HEIC_BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"))
REFUSED = {
    "SVG, XML or HTML": (b"<",),
    "PDF": (b"%PDF",),
    "PostScript": (b"%!PS",),
    "Photoshop": (b"8BPS",),
    "an icon": (b"\0\0\1\0",),
    "JPEG XL": (b"\xff\x0a", b"\0\0\0\x0cJXL "),
    "JPEG 2000": (b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51"),
}
CUT_SHORT = (
    *("file is truncated", "truncated file", "truncated data", "incomplete checksum"),
    *("end of file", "insufficient input", "cannot read full"),
)
"""How Pillow and libheif say that bytes are missing."""
_one_large_file = threading.Lock()
"""Held while a file of more than FULL_PIXELS is decoded."""


@dataclass(frozen=True)
class OpenedImage:
    """A decoded photo, with notes about how it was decoded."""

    name: str
    """How messages refer to its source, on one line."""
    image: Image.Image
    """Upright, RGB, without metadata."""
    size: tuple[int, int]
    """(width, height) of the upright photo, of which `image` has half with the note `half_resolution`."""
    notes: tuple[str, ...]
    """`truncated`, `half_resolution`, `exif_ignored`, `icc_ignored`, `rescaled_range`, `alpha_on_white`,
    `first_frame_only`."""
    sha256: str | None
    """The hash of the file's bytes; None for a PIL image or an array."""


def source_name(source: ImageSource) -> str:
    """How messages refer to a source."""
    if isinstance(source, Inner):
        return printable(source.name)
    return printable(os.fsdecode(source)) if isinstance(source, str | os.PathLike) else f"<{type(source).__name__}>"


def open_image(
    source: ImageSource, *, allow_truncated: bool = False, max_pixels: int = MAX_JPEG_PIXELS, name: str | None = None
) -> OpenedImage:
    """The upright RGB photo of a path, a file inside another, a file's bytes, a PIL image or a uint8 array.

    An array is (H, W) or (H, W, 3 or 4). Raises ImageError, whatever is wrong with it. With `allow_truncated`, a file
    that is cut short yields the part that can be decoded. `max_pixels` can only lower a file's limit. `name` replaces
    the source's in messages. Pillow's warnings about odd metadata pass through.
    """
    name = source_name(source) if name is None else printable(name)
    data = source if isinstance(source, bytes) else b""
    notes: list[str] = []
    try:
        if isinstance(source, str | os.PathLike | Inner):
            data = _read(source, name)
        if isinstance(source, str | os.PathLike | Inner | bytes):
            image, size = _from_file(data, name, allow_truncated, max_pixels, notes)
        else:
            memory = _from_memory(source, name)
            image, size = _upright(memory, memory.size, notes)
    except ImageError:
        raise
    except Exception as error:
        # Given hostile bytes, decoders raise nearly anything: ValueError, SyntaxError, struct.error, MemoryError, ...
        raise _image_error(name, data, error) from error
    return OpenedImage(name, image, size, tuple(notes), hashlib.sha256(data).hexdigest() if data else None)


def _upright(
    image: Image.Image, size: tuple[int, int], notes: list[str], halve: bool = False
) -> tuple[Image.Image, tuple[int, int]]:
    """The picture as upright RGB, and its upright size."""
    orientation = _orientation(image, notes)
    return to_rgb(image, orientation, notes, halve=halve), size[::-1] if orientation in SIDEWAYS else size


def _read(path: str | os.PathLike[str] | Inner, name: str) -> bytes:
    try:
        if isinstance(path, Inner):
            return path.read(MAX_FILE_BYTES + 1)
        status = os.stat(path)  # first, as opening a FIFO blocks
        if not stat.S_ISREG(status.st_mode):
            what = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise ImageError(f"{name}: {what}; name an image file", "unreadable")
        _check_bytes(status.st_size, name)
        with Path(path).open("rb") as file:
            return file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ImageError(f"{name}: cannot be read ({reason}); check path and permissions", "unreadable") from error


def _check_bytes(count: int, name: str) -> None:
    if count == 0:
        raise ImageError(f"{name}: the file is empty; get it again", "empty")
    if count > MAX_FILE_BYTES:
        limit = f"over the limit of {MAX_FILE_BYTES // 2**20} MiB"
        raise ImageError(f"{name}: {count:,} bytes, {limit}; make it smaller", "unreadable")


def _check_size(image: Image.Image, name: str, most: int = MAX_PIXELS) -> None:
    width, height = image.size
    if min(width, height) < 1:
        raise ImageError(f"{name}: {width} x {height} pixels; nothing to see", "empty")
    if max(width, height) >= 2**31:
        raise ImageError(f"{name}: corrupt (a side of {max(width, height)} pixels); get the file again", "corrupt")
    if width * height > most:
        megapixels = f"{width} x {height} pixels, over the limit of {most / 10**6:g} megapixels"
        raise ImageError(f"{name}: {megapixels}; make it smaller", "too_many_pixels")


def _from_memory(source: Image.Image | NDArray[np.uint8], name: str) -> Image.Image:
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or not (source.ndim == 2 or source.shape[2:] in ((3,), (4,))):
            what = f"an array of {source.dtype} {source.shape}"
            raise ImageError(f"{name}: {what}; give uint8 (H, W), (H, W, 3) or (H, W, 4)", "not_an_image")
        if source.size == 0:
            raise ImageError(f"{name}: an array of {source.shape}; nothing to see", "empty")
        source = Image.fromarray(np.ascontiguousarray(source))
    if not isinstance(source, Image.Image):
        raise ImageError(f"{name}: not an image; give a path, bytes, a PIL image or a uint8 array", "not_an_image")
    _check_size(source, name)
    source.load()
    return source


def is_image(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins as an image does."""
    with open(path, "rb") as file:
        start = file.read(512)
    try:
        return bool(_kind(start, ""))
    except ImageError:
        return False


def _kind(data: bytes, name: str) -> str:
    """The format, by signature."""
    for kind, signatures in SIGNATURES.items():
        if data.startswith(signatures):
            return kind
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[:2] == b"BM" and int.from_bytes(data[14:18], "little") in BMP_HEADERS:
        return "BMP"
    if data[4:8] == b"ftyp":
        end = min(int.from_bytes(data[:4], "big"), 256)
        brands = {data[8:12], *(data[at : at + 4] for at in range(16, end, 4))}
        if brands & {b"avif", b"avis"}:
            return "AVIF"
        if brands & HEIC_BRANDS:
            return "HEIC"
    start = data[:64].removeprefix(b"\xef\xbb\xbf").lstrip()
    refused = [f"{kind} is not accepted" for kind, prefixes in REFUSED.items() if start.startswith(prefixes)]
    what = refused[0] if refused else "not an image, or of an unknown format"
    raise ImageError(f"{name}: {what}; give JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF or HEIC", "not_an_image")


def _decoder(kind: str, name: str) -> Callable[[io.BytesIO], ImageFile]:
    if kind != "HEIC":
        return DECODERS[kind]
    try:
        from pillow_heif import HeifImageFile
    except ImportError as error:
        raise ImageError(f'{name}: HEIC needs a decoder; pip install "captioner[heif]"', "needs_extra") from error
    return cast(Callable[[io.BytesIO], ImageFile], HeifImageFile)


def _from_file(
    data: bytes, name: str, allow_truncated: bool, max_pixels: int, notes: list[str]
) -> tuple[Image.Image, tuple[int, int]]:
    """The first frame as upright RGB, and its size at full resolution."""
    _check_bytes(len(data), name)
    kind = _kind(data, name)
    if problem := excess(data, kind):
        raise ImageError(f"{name}: corrupt ({problem}); save it anew in an editor", "corrupt")
    decoder = _decoder(kind, name)

    def header(data: bytes) -> ImageFile:
        image = decoder(io.BytesIO(data))
        _check_size(image, name, min(max_pixels, LIMITS.get(kind, MAX_PIXELS)))
        return image

    image = header(data)
    size = image.size
    large = size[0] * size[1] > FULL_PIXELS
    with _one_large_file if large else nullcontext():
        image = _decode(image, header, data, kind, allow_truncated, notes)
        notes += ["half_resolution"] * large
        upright = _upright(image, size, notes, halve=large and image.size == size)
    if _is_animated(image):
        notes.append("first_frame_only")
    return upright


def _decode(
    image: ImageFile,
    header: Callable[[bytes], ImageFile],
    data: bytes,
    kind: str,
    allow_truncated: bool,
    notes: list[str],
) -> ImageFile:
    """The image with its pixels. Pillow's switch for truncated files is global, so it is not used."""

    def load(image: ImageFile) -> None:
        # Only JPEG has drafts, which save more memory than halving later, but show a little less detail.
        pixels = image.width * image.height
        if pixels > MAX_PIXELS or (pixels > FULL_PIXELS and image.info.get("progressive")):
            image.draft(None, (image.width // 2, image.height // 2))
        image.load()

    try:
        load(image)
    except Exception as error:
        if not allow_truncated or not _is_cut_short(data, error):
            raise
        notes.append("truncated")
        if kind == "JPEG":
            # A progressive picture is decoded only once its end has been read.
            image = header(data + b"\xff\xd9")
            load(image)
        # Without tiles left to read, the image is what was decoded so far.
        image.tile = []
        if all(low == high for low, high in np.reshape(image.getextrema(), (-1, 2))):
            raise
    return image


def _is_cut_short(data: bytes, error: Exception) -> bool:
    """Whether bytes are missing, judged by the error and by the size that the file states."""
    message, number = str(error).lower(), data[4:8]
    return not isinstance(error, MemoryError) and (
        isinstance(error.__cause__, struct.error | EOFError | IndexError)
        or any(each in message for each in CUT_SHORT)
        or (data.startswith(b"\xff\xd8") and b"\xff\xd9" not in data)
        or (data.startswith(b"\x89PNG") and isinstance(error, SyntaxError) and b"IEND" not in data)
        or (data.startswith(b"RIFF") and int.from_bytes(number, "little") + 8 > len(data))
        or (data.startswith(b"II*\0") and int.from_bytes(number, "little") >= len(data))
        or (data.startswith(b"MM\0*") and int.from_bytes(number, "big") >= len(data))
    )


def _image_error(name: str, data: bytes, error: Exception) -> ImageError:
    reason = " ".join(str(error).split())[:160] or type(error).__name__
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return ImageError(f"{name}: too many pixels ({reason}); make it smaller", "too_many_pixels")
    if isinstance(error, MemoryError):
        return ImageError(f"{name}: not enough memory to decode it; make it smaller", "unreadable")
    if _is_cut_short(data, error):
        remedy = "get it again, or allow truncated files (captioner caption --allow-truncated)"
        return ImageError(f"{name}: the file is cut short ({reason}); {remedy}", "truncated")
    return ImageError(f"{name}: corrupt ({reason}); get the file again", "corrupt")


def _is_animated(image: Image.Image) -> bool:
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:
        return True  # GIF looks for a second frame: there is one, but it is broken


def _orientation(image: Image.Image, notes: list[str]) -> int:
    try:
        return int(image.getexif().get(Base.Orientation, 1))
    except Exception:
        notes.append("exif_ignored")
        return 1
