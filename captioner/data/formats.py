"""Readers of the caption formats described in data/README.md."""

import csv
import hashlib
import io
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

from captioner.data.annotations import (
    CaptionSet,
    ListedCaption,
    ListedImage,
    Listing,
    Problem,
    coco_images,
    is_identifier,
    is_new,
    records,
    safe_path,
    style_of,
    validated,
)
from captioner.data.text_files import check_readable, parse_json, read_text
from captioner.errors import AnnotationError, InputError
from captioner.images import IMAGE_EXTENSIONS

Format = Literal["auto", "coco", "karpathy", "flickr8k", "folder", "csv", "jsonl"]
FORMATS: tuple[Format, ...] = get_args(Format)

SOURCES: dict[Format, tuple[str, ...]] = {
    "coco": ("captions.json", "annotations/captions_*.json"),
    "jsonl": ("captions.jsonl",),
    "csv": ("captions.csv",),
    "flickr8k": ("captions.txt", "Flickr8k.token.txt"),
    "karpathy": ("dataset*.json", "captions.json"),
}
"""Annotation files to look for in a root, in this order; a root without any is a folder of .txt files."""
IMAGE_FOLDERS = ("images", "Images", "Flicker8k_Dataset")
"""Image folders to look for in a root, before the root itself. "Flicker8k" is Flickr8k's own spelling."""
FLICKR8K_SPLITS = {"train": "train", "dev": "val", "test": "test"}
FOLDER_SPLITS = ("train", "val", "test")
PATH_NAMES = ("path", "file_name", "image")
VAL_FRACTION = 0.1

Row = tuple[str, str | None, Sequence[ListedCaption], str]
"""File name, split, captions, place."""


def load_captions(
    root: str | Path | None,
    annotations: str | Path | None = None,
    images: str | Path | None = None,
    format: Format = "auto",
    style_column: str | None = None,
) -> CaptionSet:
    """The captioned images of a folder, or of an annotation file and an image folder; see `read_listing`.

    Raises InputError if nothing is found, AnnotationError on problems that would make training wrong.
    """
    return validated(read_listing(root, annotations, images, format, style_column))


def read_listing(
    root: str | Path | None,
    annotations: str | Path | None = None,
    images: str | Path | None = None,
    format: Format = "auto",
    style_column: str | None = None,
) -> Listing:
    """The unchecked content of a data set.

    `annotations` and `images` are looked for inside `root`, then as given; `root` defaults to the folder of the
    annotation file. A data set without splits gets those of `assign_splits`. `style_column` names the column of CSV, or
    the key of JSON, that holds a caption's style.
    """
    base, pictures, sources = find_files(root, annotations, images, format)
    problems: list[Problem] = []
    if not sources:
        source = pictures
        listed = _folder_images(pictures, problems)
    elif annotations is None and sources[0].parent != base:
        source = sources[0].parent
        listed = [image for file in sources for image in _official_coco_images(file, problems, style_column)]
    else:
        source = sources[0]
        listed = _read(source, format, problems, style_column)
    if not listed and not problems:
        looked_for = ", ".join(dict.fromkeys(name for names in SOURCES.values() for name in names))
        raise InputError(f"{source}: no captions; looked for {looked_for} and images with .txt files beside them")
    has_splits = any(image.split for image in listed)
    if not has_splits:
        listed = assign_splits(listed)
    return Listing(source, pictures, tuple(listed), tuple(problems), has_splits)


def find_files(
    root: str | Path | None, annotations: str | Path | None, images: str | Path | None, format: Format
) -> tuple[Path, Path, list[Path]]:
    """The folder of a data set, its image folder and its annotation files. Raises InputError for those missing."""
    if root is None and annotations is None:
        raise InputError("no captions given; name a folder or an annotation file")
    base = Path(root) if root is not None else Path(annotations or "").parent
    if base.is_file():
        raise InputError(f"{base}: a file; name its folder, or a file of captions by --annotations")
    if not base.is_dir():
        raise InputError(f"{base}: no such folder; name one that holds captions and images")
    pictures = _inside(root, images) if images is not None else _image_folder(base)
    if not pictures.is_dir():
        raise InputError(f"{pictures}: no such folder; name the one with the images")
    sources = [_inside(root, annotations)] if annotations is not None else _find_sources(base, format)
    for source in sources:
        check_readable(source)
    return base, pictures, sources


def assign_splits(images: Iterable[ListedImage]) -> list[ListedImage]:
    """Assign `train` and `val` by a hash of each image's name: a tenth is val, at least one if there are two.

    The order of the images does not matter. Images without captions get no split.
    """
    listed = list(images)
    names = sorted({image.file_name for image in listed if image.captions}, key=_digest)
    tenth = sum(int.from_bytes(_digest(name)[:8]) < VAL_FRACTION * 2**64 for name in names)
    val = set(names[: min(max(tenth, 1), len(names) - 1)])
    return [
        replace(image, split="val" if image.file_name in val else "train") if image.captions else image
        for image in listed
    ]


def _digest(name: str) -> bytes:
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()


def _inside(root: str | Path | None, name: str | Path) -> Path:
    return Path(root, name) if root is not None and Path(root, name).exists() else Path(name)


def _image_folder(base: Path) -> Path:
    return next((base / name for name in IMAGE_FOLDERS if (base / name).is_dir()), base)


def _find_sources(base: Path, format: Format) -> list[Path]:
    """The annotation file of a root; several only in COCO's own layout of one file a split."""
    patterns = [name for names in SOURCES.values() for name in names] if format == "auto" else SOURCES.get(format, ())
    for pattern in patterns:
        found = sorted(base.glob(pattern))
        if len(found) > 1 and not pattern.startswith("annotations/"):
            names = ", ".join(path.name for path in found)
            raise AnnotationError(f"{base}: several annotation files ({names}); choose one with --annotations")
        if found:
            return found
    if format not in ("auto", "folder"):
        raise InputError(f"{base}: no {' or '.join(SOURCES[format])} for format {format}; name the annotation file")
    return []


def _read(source: Path, format: Format, problems: list[Problem], style_column: str | None) -> list[ListedImage]:
    by_suffix: dict[str, Format] = {".json": "coco", ".jsonl": "jsonl", ".csv": "csv", ".txt": "flickr8k"}
    known = by_suffix.get(source.suffix.lower()) if format == "auto" else format
    if known not in SOURCES:
        raise AnnotationError(f"{source}: unknown kind of annotation file; name its format with --format")
    text = read_text(source, source.name, problems)
    if known in ("coco", "karpathy"):
        return _json_images(text, source.name, problems, style_column)
    if known == "flickr8k":
        return _flickr8k_images(text, source, problems)
    rows = _csv_rows if known == "csv" else _jsonl_rows
    return _grouped(rows(text, source.name, problems, style_column))


def _json_images(text: str, where: str, problems: list[Problem], style_column: str | None) -> list[ListedImage]:
    """COCO or Karpathy, whichever was requested: only the latter has `sentences` in its images."""
    data = parse_json(text, where, problems)
    if data is None:
        return []
    listed = data.get("images") if isinstance(data, dict) else None
    if isinstance(listed, list) and any(isinstance(image, dict) and "sentences" in image for image in listed[:1]):
        return _karpathy_images(data, where, problems, style_column)
    return coco_images(data, where, problems, style_column=style_column)


def _official_coco_images(source: Path, problems: list[Problem], style_column: str | None) -> list[ListedImage]:
    """`annotations/captions_train2017.json` describes the images in `train2017/` and is the split `train`."""
    where = f"{source.parent.name}/{source.name}"
    folder = source.stem.removeprefix("captions_")
    data = parse_json(read_text(source, where, problems), where, problems)
    if data is None:
        return []
    return coco_images(data, where, problems, f"{folder}/", folder.rstrip("0123456789"), style_column)


def _karpathy_images(data: object, where: str, problems: list[Problem], style_column: str | None) -> list[ListedImage]:
    images = []
    image_places: dict[object, str] = {}
    sentence_places: dict[object, str] = {}
    for place, record in records(data, "images", where, problems):
        identifier = record.get("cocoid", record.get("imgid", record.get("filename")))
        name, folder, split = record.get("filename"), record.get("filepath") or "", record.get("split")
        sound = isinstance(name, str) and isinstance(folder, str) and isinstance(split, str | None)
        if not sound or not is_identifier(identifier):
            problems.append(Problem("structure", place, "needs a filename, and text as its filepath and split"))
            continue
        captions = []
        for sentence_place, sentence in records(record, "sentences", place, problems):
            sentid = sentence.get("sentid")
            if sentid is None or is_new(
                repr(sentid), sentence_place, sentence_places, "duplicate_annotation_id", problems
            ):
                style = style_of(sentence, record, column=style_column)
                captions.append(ListedCaption(sentence.get("raw"), sentence_place, style))
        if is_new(identifier, place, image_places, "duplicate_image_id", problems):
            image = ListedImage(
                image_id=identifier,  # type: ignore[arg-type]
                file_name=f"{folder}/{name}" if folder else str(name),
                captions=tuple(captions),
                split="train" if split == "restval" else split or None,  # type: ignore[arg-type]
                where=place,
            )
            images.append(image)
    return images


def _flickr8k_images(text: str, source: Path, problems: list[Problem]) -> list[ListedImage]:
    """Either form of Flickr8k; if its split lists are beside it, images that none of them names are left out."""
    rows = _csv_rows if text.partition("\n")[0].strip().lower() == "image,caption" else _token_rows
    listed = _grouped(rows(text, source.name, problems))
    files = {split: source.parent / f"Flickr_8k.{name}Images.txt" for name, split in FLICKR8K_SPLITS.items()}
    lists = {split: read_text(file, file.name, problems).split() for split, file in files.items() if file.is_file()}
    if not lists:
        return listed
    captioned = {image.file_name: image for image in listed}
    return [
        replace(captioned.get(name, ListedImage(name, name, (), None, files[split].name)), split=split)
        for split, names in lists.items()
        for name in dict.fromkeys(names)
    ]


def _token_rows(text: str, where: str, problems: list[Problem]) -> Iterable[Row]:
    for number, line in enumerate(text.split("\n"), start=1):
        place = f"{where}:{number}"
        label, tab, caption = line.rstrip("\r").partition("\t")
        name, mark, _ = label.rpartition("#")
        if tab and mark:
            yield name, None, [ListedCaption(caption, place)], place
        elif line.strip():
            problems.append(Problem("structure", place, "is not name#number, a tab, a caption"))


def _csv_rows(text: str, where: str, problems: list[Problem], style_column: str | None = None) -> Iterable[Row]:
    reader = csv.reader(io.StringIO(text, newline=""))
    try:
        header = [name.strip().lower() for name in next(reader, [])]
        path_column = next((header.index(name) for name in PATH_NAMES if name in header), None)
        if path_column is None or "caption" not in header:
            problems.append(Problem("structure", f"{where}:1", "needs a header line such as path,caption,split"))
            return
        for row in reader:
            place = f"{where}:{reader.line_num}"
            if row and len(row) != len(header):
                message = f"has {len(row)} fields, not {len(header)}; quote a caption that holds a comma"
                problems.append(Problem("structure", place, message))
            elif row:
                split = row[header.index("split")].strip() if "split" in header else ""
                style = style_of(dict(zip(header, row, strict=True)), column=style_column and style_column.lower())
                caption = ListedCaption(row[header.index("caption")], place, style)
                yield row[path_column], split or None, [caption], place
    except csv.Error as error:
        problems.append(Problem("structure", f"{where}:{reader.line_num}", f"is not CSV: {error}"))


def _jsonl_rows(text: str, where: str, problems: list[Problem], style_column: str | None) -> Iterable[Row]:
    # Not splitlines(): it would also split at U+2028, which JSON strings may hold.
    for number, line in enumerate(text.split("\n"), start=1):
        place = f"{where}:{number}"
        record = parse_json(line, place, problems) if line.strip() else None
        if record is None:
            continue
        if not isinstance(record, dict):
            problems.append(Problem("structure", place, "is not a JSON object"))
            continue
        name = next((record[key] for key in PATH_NAMES if key in record), None)
        captions, split = record.get("captions", [record.get("caption")]), record.get("split")
        if isinstance(name, str) and isinstance(captions, list) and isinstance(split, str | None):
            style = style_of(record, column=style_column)
            yield name, split or None, [ListedCaption(caption, place, style) for caption in captions], place
        else:
            message = 'needs "path" (text) and "caption" (text) or "captions" (a list)'
            problems.append(Problem("structure", place, message))


def _grouped(rows: Iterable[Row]) -> list[ListedImage]:
    """One image for all rows with the same file name and split, in the order of first appearance."""
    captions: defaultdict[tuple[str, str | None], list[ListedCaption]] = defaultdict(list)
    places: dict[tuple[str, str | None], str] = {}
    for name, split, found, place in rows:
        captions[name, split] += found
        places.setdefault((name, split), place)
    return [ListedImage(key[0], key[0], tuple(captions[key]), key[1], place) for key, place in places.items()]


def _folder_images(root: Path, problems: list[Problem]) -> list[ListedImage]:
    """Images with a text file beside them, one caption a line; see `_sidecar_of`."""
    listed = []
    for folder, subfolders, files in os.walk(root, followlinks=True):
        subfolders[:] = sorted(name for name in subfolders if not _is_loop(Path(folder, name)))
        texts = {name: Path(folder, name) for name in sorted(files) if name.lower().endswith(".txt")}
        unread = set(texts.values())
        for picture in sorted(name for name in files if Path(name).suffix.lower() in IMAGE_EXTENSIONS):
            name, sidecar = Path(folder, picture).relative_to(root).as_posix(), _sidecar_of(picture, texts)
            captions = _sidecar_captions(root, sidecar, problems) if sidecar else []
            unread.discard(sidecar or Path())
            split = name.split("/")[0] if name.startswith(tuple(f"{split}/" for split in FOLDER_SPLITS)) else None
            listed.append(ListedImage(name, name, tuple(captions), split, name))
        for text in sorted(unread):
            where = text.relative_to(root).as_posix()
            problems.append(Problem("text_without_picture", where, "no image of this name beside it; not read"))
    return listed


def _sidecar_of(picture: str, texts: Mapping[str, Path]) -> Path | None:
    """The text file of `dog.jpg`: `dog.txt`, else one of another case such as `dog.TXT`, else `dog.jpg.txt`."""
    wanted = [f"{os.path.splitext(picture)[0]}.txt", f"{picture}.txt"]
    folded = {name.casefold(): path for name, path in texts.items()}
    found = (texts.get(wanted[0]), *(folded.get(name.casefold()) for name in wanted))
    return next(filter(None, found), None)


def _is_loop(folder: Path) -> bool:
    """Whether a folder is a link to one of its parents."""
    return folder.is_symlink() and any(parent.resolve() == folder.resolve() for parent in folder.absolute().parents)


def _sidecar_captions(root: Path, sidecar: Path, problems: list[Problem]) -> list[ListedCaption]:
    where = sidecar.relative_to(root).as_posix()
    if sidecar.exists() and not sidecar.is_file():  # reading a FIFO would wait for ever
        problems.append(Problem("unreadable", where, "not a regular file; write the captions into one"))
        return []
    try:
        text = read_text(safe_path(root, where), where, problems)
    except (AnnotationError, InputError) as error:
        problems.append(Problem(error.code, where, str(error)))
        return []
    lines = enumerate(text.split("\n"), start=1)
    return [ListedCaption(line, f"{where}:{number}") for number, line in lines if line.strip()]
