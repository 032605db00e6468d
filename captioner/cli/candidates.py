"""Candidate captions for `captioner score`: every format that `captioner caption` writes, matched to references."""

import csv
import gzip
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from posixpath import normpath, splitext
from typing import Any

from captioner.cli.formats import FORMULA, coco_id
from captioner.errors import AnnotationError, InputError

MAX_UNPACKED = 2**30
"""Most bytes of a file, unpacked: a few megabytes can unpack to gigabytes."""
SHOWN = 3
"""Number of ids that a message shows."""


def read_candidates(path: Path) -> dict[str, Any]:
    """Image id or path -> caption, the best one where there are several.

    Reads COCO results, {image_id: caption}, and the JSONL, CSV, text and sidecars of `captioner caption`. Failed inputs
    are left out. Raises AnnotationError, InputError.
    """
    if path.is_dir():
        if not (found := dict(_sidecars(path))):
            raise InputError(f"{path}: no .txt files in this folder; name the one with the sidecars, or a file")
        return found
    captions: dict[str, Any] = {}
    if rows := ROWS.get(path.suffix.lower()):
        previous = None
        for image, caption in rows(path):
            if image != previous:  # a path that comes again later is of a resumed run, and the later caption counts
                captions[image] = caption
            previous = image
        return captions
    data = read_json(path)
    if isinstance(data, dict):
        return data
    if not isinstance(data, list):
        raise AnnotationError(f"{path}: neither a list of image_id and caption nor {{image_id: caption}}; give one")
    for image, caption in coco_records(data, f"{path}: "):
        if image in captions:
            raise AnnotationError(f"{path}: image {image}: more than one caption; keep one")
        captions[image] = caption
    return captions


def match_candidates(
    candidates: Mapping[str, Any], references: Iterable[str], names: Mapping[str, str], source: Path
) -> tuple[dict[str, Any], list[str]]:
    """The candidates by the ids of their references, and the candidates that fit no reference, or several.

    A candidate that is no reference's id is matched by file: its path, or the id that `captioner caption --format coco`
    makes of it, has to fit exactly one reference. `names` maps ids to file names where they differ. Raises
    AnnotationError if two candidates have the same reference.
    """
    files = {image: normpath(names.get(image, image)) for image in references}
    # A candidate may lack folders of the reference's file, or have further folders before it.
    by_ending = _unique({image: _endings(file) for image, file in files.items()})
    by_file = _unique({image: {file, splitext(file)[0]} for image, file in files.items()})
    matched: dict[str, Any] = {}
    unmatched = []
    for candidate, caption in candidates.items():
        path = normpath(candidate.replace("\\", "/"))
        image: str | None = candidate
        if candidate not in files:
            found = (by_file[end] for end in _path_ends(path) if end in by_file)
            image = by_ending.get(path) or next(found, None)
        if image is None:
            unmatched.append(candidate)
        elif image in matched:
            raise AnnotationError(f"{source}: image {image}: more than one caption; keep one")
        else:
            matched[image] = caption
    return matched, unmatched


def _unique(keys: Mapping[str, set[str]]) -> dict[str, str]:
    """The image of each key that belongs to one image only."""
    counts = Counter(key for several in keys.values() for key in several)
    return {key: image for image, several in keys.items() for key in several if counts[key] == 1}


def _path_ends(file: str) -> list[str]:
    """A path, and what is left of it without its first folders."""
    parts = file.split("/")
    return ["/".join(parts[start:]) for start in range(len(parts))]


def _endings(file: str) -> set[str]:
    """The ends of a path, with and without its suffix, and its id in COCO's results."""
    ends = _path_ends(file)
    return {*ends, *(splitext(end)[0] for end in ends), str(coco_id(file))}


def first_ids(ids: Iterable[str]) -> str:
    """The first of many ids, for messages."""
    shown = [*map(repr, islice(ids, SHOWN + 1))]
    return ", ".join([*shown[:SHOWN], *["..."] * (len(shown) > SHOWN)])


def _jsonl_rows(path: Path) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        try:
            record = json.loads(line) if line.strip() else {"error": "empty line"}
            if "error" not in record:
                yield str(record["path"]), record["caption"]
        except (ValueError, RecursionError, KeyError, TypeError) as error:
            raise AnnotationError(f"{path}:{number}: no JSON object with path and caption; correct it") from error


def _csv_rows(path: Path) -> Iterator[tuple[str, Any]]:
    reader = csv.DictReader(io.StringIO(_read_text(path), newline=""))
    try:
        for row in reader:
            if not row.get("error"):
                # `captioner caption` marks a text that a spreadsheet would take for a formula.
                marked = row["caption"].startswith(tuple(f"'{start}" for start in FORMULA))
                yield row["path"], row["caption"][marked:]
    except (csv.Error, KeyError, AttributeError) as error:
        raise AnnotationError(f"{path}:{reader.line_num}: no CSV with the columns path and caption") from error


def _text_rows(path: Path) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        image, tab, caption = line.rstrip("\r").partition("\t")
        if tab:
            yield image, caption
        elif line.strip():
            raise AnnotationError(f"{path}:{number}: no path, tab and caption; correct or remove the line")


ROWS = {".jsonl": _jsonl_rows, ".csv": _csv_rows, ".tsv": _text_rows, ".txt": _text_rows}
"""Suffix -> the rows of a file, each with the path of an image and its caption."""


def _sidecars(folder: Path) -> Iterator[tuple[str, str]]:
    """The first line of each text file of a folder and its subfolders, by its path without suffix."""
    for file in sorted(folder.rglob("*.txt")):
        lines = [line for line in _read_text(file).splitlines() if line.strip()]
        if lines:
            yield file.relative_to(folder).with_suffix("").as_posix(), lines[0]


def coco_records(items: Sequence[Any], where: str) -> Iterator[tuple[str, Any]]:
    """The image id and caption of each item of COCO's lists."""
    for place, item in enumerate(items):
        if not isinstance(item, dict) or "image_id" not in item or "caption" not in item:
            raise AnnotationError(f"{where}[{place}]: not an object with image_id and caption; correct or remove it")
        image = item["image_id"]
        if isinstance(image, bool) or not isinstance(image, int | str):
            raise AnnotationError(
                f"{where}[{place}]: image_id {image!r} is neither an integer nor a string; correct it"
            )
        yield str(image), item["caption"]


def read_json(path: Path) -> Any:
    """A JSON file, gzipped or not, without duplicate keys. Raises AnnotationError, InputError."""

    def unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in pairs:
            if name in found:
                raise AnnotationError(f"{path}: {name}: a duplicate key; keep one of them")
            found[name] = value
        return found

    try:
        return json.loads(_read(path).decode("utf-8-sig"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise AnnotationError(f"{path}: not JSON ({error}); give a JSON file in UTF-8") from error


def _read_text(path: Path) -> str:
    try:
        return _read(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise AnnotationError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from error


def _read(path: Path) -> bytes:
    """The content of a file, unpacked if it is gzipped. Raises InputError."""
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            with gzip.open(io.BytesIO(content)) as file:
                content = file.read(MAX_UNPACKED + 1)
        if len(content) > MAX_UNPACKED:
            raise InputError(f"{path}: over {MAX_UNPACKED // 2**20} MiB unpacked; split it")
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; check the path") from error
    except (EOFError, OSError) as error:
        raise InputError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error}); check it") from error
    return content
