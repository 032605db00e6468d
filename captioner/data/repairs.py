"""Repairs of a data set: text files become UTF-8, and unusable files of a folder go into quarantine."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path

from captioner.data.annotations import Listing
from captioner.data.checks import check
from captioner.data.text_files import text_encoding
from captioner.files import write_whole

KEPT_CODES = frozenset({"unreadable", "needs_extra", "too_many_pixels"})
"""Codes of images that are not broken: permissions, a missing decoder, the size."""


@dataclass(frozen=True)
class Repair:
    """A file to convert to UTF-8, or to move into quarantine."""

    path: Path
    reason: str
    encoding: str | None = None
    """The encoding to convert from; None moves the file."""


def find_repairs(listing: Listing) -> Iterator[Repair]:
    """Find text that is not UTF-8 and, in a folder of images and text files, unusable files."""
    is_folder = listing.source == listing.root
    texts = sorted(_text_files(listing.root)) if is_folder else [listing.source]
    for path in texts:
        data = path.read_bytes()
        encoding = text_encoding(data)
        if encoding == "utf-8" and not _decodes(data, encoding):
            encoding = "cp1252"
        if is_folder and not data.strip(b"\xef\xbb\xbf\xff\xfe\0 \t\r\n"):
            yield Repair(path, "the file holds no caption")
        elif encoding != "utf-8" and _decodes(data, encoding):
            yield Repair(path, f"{encoding} to UTF-8", encoding)
    images = {image.file_name: image for image in listing.images}
    for problem in check(listing) if is_folder else ():
        image = images.get(problem.where)
        if image is not None and problem.code not in KEPT_CODES and problem.severity == "error":
            yield Repair(listing.root / image.file_name, problem.message)
            for text in {caption.where.rpartition(":")[0] for caption in image.captions}:
                yield Repair(listing.root / text, f"the caption of {image.file_name}")


def apply_repair(repair: Repair, root: Path, quarantine: Path) -> None:
    """Convert a file, of which the original is copied into quarantine, or move it there.

    The folders are kept, and files that are there already.
    """
    place = quarantine / repair.path.relative_to(root)
    names = chain([place.name], (f"{place.stem}-{number}{place.suffix}" for number in count(2)))
    target = next(path for path in map(place.with_name, names) if not path.exists())
    target.parent.mkdir(parents=True, exist_ok=True)
    if repair.encoding is None:
        shutil.move(repair.path, target)
    else:
        original = repair.path.read_bytes()
        target.write_bytes(original)
        shutil.copystat(repair.path, target)
        write_whole(repair.path, original.decode(repair.encoding).encode())


def _text_files(root: Path) -> Iterator[Path]:
    for folder, _, files in os.walk(root):
        yield from (Path(folder, name) for name in files if name.lower().endswith(".txt"))


def _decodes(data: bytes, encoding: str) -> bool:
    try:
        data.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True
