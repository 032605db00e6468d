"""Data sets in tar files, as webdataset and img2dataset lay them out.

A sample is a photo and its captions: members that follow each other with the same name up to the first dot, such as
000042.jpg and 000042.json ({"captions": [...]} or {"caption": ...}) or 000042.txt (a caption a line). Nothing else in a
tar is read. An index beside it, NAME.tar.json, says where its samples are.
"""

import hashlib
import io
import json
import logging
import os
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from captioner.data.annotations import (
    MAX_CAPTION_CHARACTERS,
    CaptionedImage,
    clean_caption,
    safe_path,
)
from captioner.errors import AnnotationError, ConfigError, InputError
from captioner.files import Member, write_whole
from captioner.images import IMAGE_EXTENSIONS

log = logging.getLogger(__name__)

FORMAT = 1
TEXTS = (".json", ".txt")
"""Extensions of captions; of a sample with both, the JSON is read."""
MAX_TEXT_BYTES = 1 << 20
"""Largest file of captions that is read."""
SUMS = "SHA256SUMS"
OPEN_INDEXES = 64
"""Number of indexes that a process keeps in memory."""
BLOCK = 512
"""Bytes of a tar's header; members are padded to multiples of it."""


class Entry(NamedTuple):
    """A sample's key, and the offsets and sizes in bytes of its photo and its captions in the tar."""

    key: str
    photo: int
    photo_size: int
    extension: str
    """The extension of the member with the captions."""
    text: int
    text_size: int


class Index(NamedTuple):
    """The samples of a tar, and how many keys have no photo or no captions."""

    entries: list[Entry]
    incomplete: int


def find_shards(folder: Path) -> list[Path]:
    """The tar files of a folder, by name. Raises InputError if there are none."""
    if found := sorted(folder.glob("*.tar")):
        return found
    raise InputError(f"{folder}: no .tar files; write some with `captioner data shard`, or name another data.shards")


@lru_cache(maxsize=OPEN_INDEXES)
def read_index(path: Path) -> Index:
    """The index of a tar; if there is none, or that of another tar, it is made from the headers and kept if possible.

    Raises AnnotationError if the file is no tar.
    """
    size, beside = path.stat().st_size, path.with_name(f"{path.name}.json")
    with suppress(OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        data = json.loads(beside.read_bytes())
        if (data["format"], data["bytes"]) == (FORMAT, size):
            entries = [Entry(*entry) for entry in data["samples"]]
            if all(_is_inside(entry, size) for entry in entries):
                return Index(entries, int(data["incomplete"]))
    index = _scan(path, size)
    content = {"format": FORMAT, "bytes": size, "incomplete": index.incomplete, "samples": index.entries}
    with suppress(OSError):  # the folder may be read-only
        write_whole(beside, json.dumps(content).encode())
    return index


def read_sample(path: Path, entry: Entry) -> CaptionedImage:
    """A sample with its captions; its photo is read later. Raises AnnotationError if it has no usable caption."""
    name = f"{path.name}/{entry.key}"
    content = Member(path, entry.text, entry.text_size, name=name).read() if entry.text_size <= MAX_TEXT_BYTES else b""
    try:
        text = content.decode("utf-8-sig")
        found: Any = json.loads(text) if entry.extension == ".json" else text.splitlines()
    except (ValueError, RecursionError) as error:
        raise AnnotationError(f"{name}{entry.extension}: is not UTF-8 text, or not JSON") from error
    if isinstance(found, dict):
        found = found.get("captions", [found.get("caption")])
    texts = (clean_caption(each) for each in found if isinstance(each, str)) if isinstance(found, list) else ()
    captions = tuple(each for each in texts if 0 < len(each) <= MAX_CAPTION_CHARACTERS)
    if not captions:
        raise AnnotationError(f"{name}{entry.extension}: holds no caption")
    return CaptionedImage(name, Member(path, entry.photo, entry.photo_size, name=name), captions, None)


def first_samples(shards: Iterable[Path], count: int) -> Iterator[CaptionedImage]:
    """The first usable samples of shards, at most `count`."""
    for path in shards:
        for entry in read_index(path).entries:
            if count == 0:
                return
            with suppress(AnnotationError):
                yield read_sample(path, entry)
                count -= 1


def write_shards(images: Sequence[CaptionedImage], folder: Path, *, max_bytes: int, seed: int = 0) -> Iterator[Path]:
    """Write images, in random order, into tars of at most `max_bytes`, each with its index; yields each tar.

    A photo that is larger has a tar of its own. At the end, SHA256SUMS lists the tars as sha256sum does. Raises
    ConfigError if the folder already holds tars.
    """
    if any(folder.glob("*.tar")):
        raise ConfigError(f"{folder}: already holds shards; name another folder with -o")
    order = np.random.default_rng(seed).permutation(len(images))
    parts: list[list[int]] = [[]]
    limit = max_bytes // tarfile.RECORDSIZE * tarfile.RECORDSIZE - 2 * BLOCK  # which end a tar
    room = limit
    for place in map(int, order):
        size = _padded(images[place].path.stat().st_size) + _padded(len(_record(images[place])))
        if size > room and parts[-1]:
            parts.append([])
            room = limit
        parts[-1].append(place)
        room -= size
    sums, key = [], 0
    for number, part in enumerate(parts):
        path = folder / f"{images[part[0]].split}-{number:06}.tar"
        path.parent.mkdir(parents=True, exist_ok=True)
        chosen = [images[place] for place in part]
        write_whole(path, lambda file, chosen=chosen, key=key: _write_tar(file, chosen, key))  # type: ignore[misc]
        key += len(part)
        read_index(path)
        with path.open("rb") as file:
            sums.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {path.name}\n")
        yield path
    write_whole(folder / SUMS, "".join(sums).encode())


def _write_tar(file: BinaryIO, images: Sequence[CaptionedImage], key: int) -> None:
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for number, image in enumerate(images, start=key):
            photo = image.path.read_bytes()
            for extension, content in ((image.path.suffix.lower(), photo), (".json", _record(image))):
                member = tarfile.TarInfo(f"{number:09}{extension}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


def _record(image: CaptionedImage) -> bytes:
    return json.dumps({"image_id": image.image_id, "captions": image.captions}, ensure_ascii=False).encode()


def _padded(size: int) -> int:
    """Bytes that a member of this size takes in a tar."""
    return BLOCK + -(-size // BLOCK) * BLOCK


def photo_members(path: str) -> Iterator[Member]:
    """The photos in a tar, named TAR/MEMBER. Raises AnnotationError if the file is no tar."""
    for member in _members(Path(path)):
        if os.path.splitext(member.name)[1].lower() in IMAGE_EXTENSIONS:
            name = str(PurePosixPath(member.name))  # without ./
            yield Member(Path(path), member.offset_data, member.size, name=f"{path}/{name}")


def _members(path: Path) -> Iterator[tarfile.TarInfo]:
    """The files in a tar, from its headers. A tar that ends early is read as far as it goes."""
    last = -1
    try:
        with tarfile.open(path, "r:") as archive:
            while member := archive.next():
                if archive.offset <= last:  # after a negative size, Python's reader would go in circles
                    raise tarfile.ReadError("a member lies before the one before it")
                last = archive.offset
                archive.members = []  # type: ignore[attr-defined]  # which would grow
                if member.isreg() and _is_safe(member.name):
                    yield member
    except (tarfile.TarError, ValueError, OverflowError, RecursionError, EOFError) as error:
        if last < 0:
            raise AnnotationError(f"{path}: is not a tar file ({error}); remove it or replace it") from error
        log.warning("%s: %s; its other samples are used", path, error)


def _scan(path: Path, size: int) -> Index:
    """The samples of a tar, from its headers."""
    groups: list[tuple[str, dict[str, tarfile.TarInfo]]] = []
    for member in _members(path):
        key, extension = _key(member.name)
        if extension not in {*IMAGE_EXTENSIONS, *TEXTS}:
            continue
        if not groups or groups[-1][0] != key:
            groups.append((key, {}))
        groups[-1][1].setdefault(extension, member)
    entries = []
    for key, members in groups:
        photo = next((members[each] for each in members if each in IMAGE_EXTENSIONS), None)
        extension = next((each for each in TEXTS if each in members), "")
        if photo and extension:
            text = members[extension]
            entry = Entry(key, photo.offset_data, photo.size, extension, text.offset_data, text.size)
            entries += [entry] if _is_inside(entry, size) else []
    return Index(entries, len(groups) - len(entries))


def _key(name: str) -> tuple[str, str]:
    """The key and the extension of a member."""
    folder, slash, file = name.rpartition("/")
    stem, dot, extension = file.partition(".")
    return f"{folder}{slash}{stem}", f"{dot}{extension.lower()}"


def _is_safe(name: str) -> bool:
    """Whether a name leads to a place below the tar."""
    try:
        safe_path(Path(), name)
    except AnnotationError:
        return False
    return True


def _is_inside(entry: Entry, size: int) -> bool:
    """Whether an entry has the right types and lies inside a tar of this size."""
    texts = isinstance(entry.key, str) and entry.extension in TEXTS
    places = ((entry.photo, entry.photo_size), (entry.text, entry.text_size))
    return texts and all(type(a) is type(b) is int and a >= 0 and b >= 0 and a + b <= size for a, b in places)
