"""Captioned images, and the checks of the files that list them.

A reader (formats.py) turns a file into an unchecked `Listing`. `check` (checks.py) lists all of its problems;
`validated` turns it into a `CaptionSet`, or raises.
"""

import io
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from reprlib import repr as shortened
from typing import Literal, cast

from captioner.errors import AnnotationError
from captioner.files import Member
from captioner.text import printable

MAX_CAPTION_CHARACTERS = 2000
PROBLEMS_NAMED = 3
"""Number of problems that an error message names; the rest are counted."""
HARMLESS = frozenset({"bom", "nan", "no_captions", "control_character", "text_without_picture"})
"""Codes of problems that do not stop a data set from loading."""

CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # and lone surrogates, which JSON can hold and UTF-8 cannot
NO_NAME = re.compile("[\x00\ud800-\udc7f\udd00-\udfff]")  # Python keeps bytes of names that are not UTF-8 in the others

JsonObject = dict[str, object]


@dataclass(frozen=True)
class CaptionedImage:
    """An image with its cleaned captions, at least one."""

    image_id: int | str
    source: Path | bytes | Member
    """Its file, the file's content, or where that lies in a tar."""
    captions: tuple[str, ...]
    split: str | None
    dataset: str = ""  # the source it comes from, where there are several
    styles: tuple[str | None, ...] = ()
    """The style of each caption; empty where annotations are read without."""

    @property
    def content(self) -> Path | bytes:
        """Its file, or the file's content."""
        return self.source.read() if isinstance(self.source, Member) else self.source

    @property
    def path(self) -> Path:
        """The image's file, for callers that only take files."""
        assert isinstance(self.source, Path)
        return self.source


@dataclass(frozen=True)
class CaptionSet:
    """Captioned images in the order of their file; `root` is the image folder."""

    images: tuple[CaptionedImage, ...]
    root: Path

    def __len__(self) -> int:
        return len(self.images)

    @property
    def split_names(self) -> tuple[str, ...]:
        return tuple(sorted({image.split for image in self.images if image.split is not None}))

    def split(self, name: str) -> "CaptionSet":
        """The images of one split. Raises AnnotationError, which names the existing splits, if there are none."""
        if images := tuple(image for image in self.images if image.split == name):
            return CaptionSet(images, self.root)
        names = ", ".join(self.split_names) or "none"
        raise AnnotationError(f"{self.root}: no split {name!r}; choose one of: {names}", code="no_split")


@dataclass(frozen=True)
class Problem:
    """A problem of a data set: a stable code, the place, and a message."""

    code: str
    where: str
    message: str
    harmless: bool = False
    """Whether training goes on, though it does not for other problems of this code."""
    pictures: tuple[str, ...] = ()
    """Names of the pictures concerned, where there are several."""

    @property
    def severity(self) -> Literal["error", "warning"]:
        """`warning` for what does not stop training."""
        return "warning" if self.harmless or self.code in HARMLESS else "error"


@dataclass(frozen=True)
class ListedCaption:
    """An unchecked caption; `text` may be any JSON value."""

    text: object
    where: str
    style: str | None = None
    """The value of the column for styles."""


@dataclass(frozen=True)
class ListedImage:
    """An unchecked image, as an annotation file describes it."""

    image_id: int | str
    file_name: str
    captions: tuple[ListedCaption, ...]
    split: str | None
    where: str


@dataclass(frozen=True)
class Listing:
    """The content of an annotation file, and the problems found in reading it; `root` is the image folder."""

    source: Path
    root: Path
    images: tuple[ListedImage, ...]
    problems: tuple[Problem, ...] = ()
    has_splits: bool = True
    """Whether the file names splits; otherwise they were assigned."""


def clean_caption(text: str) -> str:
    """Replace control characters and runs of white space with single spaces."""
    return " ".join(CONTROLS.sub(" ", text).split())


def safe_path(root: Path, file_name: str) -> Path:
    """`root / file_name`, for a relative name that is written with `/` and has no `..`.

    An annotation file may come from strangers and must not name files outside the image folder. The folder is the
    user's own, so links in it are followed. Raises AnnotationError with code `unsafe_path`.
    """
    reason = None
    if not file_name or NO_NAME.search(file_name):
        reason = "is empty or holds a NUL or a lone surrogate"
    elif "\\" in file_name:
        reason = "has a backslash; write folders with /"
    elif file_name.startswith("/") or re.match("[A-Za-z]:", file_name):
        reason = "is absolute; write it relative to the image folder"
    elif ".." in file_name.split("/"):
        reason = "leaves the image folder with .."
    if reason is not None:
        raise AnnotationError(printable(f"{shortened(file_name)} {reason}"), code="unsafe_path")
    return root / file_name


def validated(listing: Listing) -> CaptionSet:
    """The listing as a CaptionSet, without images that have no captions.

    Raises AnnotationError on any problem that is not HARMLESS. Images are not opened; `check` does that.
    """
    kept = replace(listing, images=tuple(image for image in listing.images if image.captions))
    stopping = [problem for problem in listing_problems(kept) if problem.code not in HARMLESS]
    if stopping:
        named = "; ".join(f"{problem.where}: {problem.message}" for problem in stopping[:PROBLEMS_NAMED])
        more = f"; and {len(stopping) - PROBLEMS_NAMED} more" if len(stopping) > PROBLEMS_NAMED else ""
        where = f"--annotations {listing.source} --images {listing.root}"
        where = str(listing.root) if listing.source == listing.root else where
        raise AnnotationError(printable(f"{named}{more}; run `captioner data check {where}` for the whole list"))
    if not kept.images:
        raise AnnotationError(f"{listing.source}: no image has a caption; see data/README.md for the layouts")
    images = []
    for image in kept.images:
        texts = tuple(clean_caption(str(caption.text)) for caption in image.captions)
        path, styles = listing.root / image.file_name, caption_styles(image.captions)
        images.append(CaptionedImage(image.image_id, path, texts, image.split, styles=styles))
    return CaptionSet(tuple(images), listing.root)


def caption_styles(captions: Iterable[ListedCaption]) -> tuple[str | None, ...]:
    """The style of each caption; empty where none has one."""
    styles = tuple(caption.style for caption in captions)
    return styles if any(styles) else ()


def records(data: object, key: str, where: str, problems: list[Problem]) -> Iterator[tuple[str, JsonObject]]:
    """The objects of the list `data[key]`, each with its place; anything else is added to `problems`."""
    found = data.get(key) if isinstance(data, dict) else None
    if not isinstance(found, list):
        problems.append(Problem("structure", where, f'has no list "{key}" at its top'))
        return
    for index, record in enumerate(found):
        place = f"{where}: {key}[{index}]"
        if isinstance(record, dict):
            yield place, record
        else:
            problems.append(Problem("structure", place, f"is {shortened(record)}, not an object"))


def is_identifier(value: object) -> bool:
    """Whether a JSON value can identify an image or caption: a whole number or a non-empty string."""
    return (isinstance(value, int) and not isinstance(value, bool)) or (isinstance(value, str) and value != "")


def is_new(identifier: object, place: str, seen: dict[object, str], code: str, problems: list[Problem]) -> bool:
    """Whether this id is new. `seen` maps ids to places; a repeated id is added to `problems` with this code."""
    if identifier in seen:
        problems.append(Problem(code, place, f"repeats id {identifier!r} of {seen[identifier]}"))
        return False
    seen[identifier] = place
    return True


def style_of(*records: Mapping[str, object], column: str | None) -> str | None:
    """The value of a column in the first record that has it, as one line; None for anything but text and numbers."""
    values = (record[column] for record in records if column is not None and column in record)
    value = next(values, None)
    return clean_caption(str(value)) or None if isinstance(value, str | int) else None


def coco_images(
    data: object,
    where: str,
    problems: list[Problem],
    folder: str = "",
    split: str | None = None,
    style_column: str | None = None,
) -> list[ListedImage]:
    """The images of a COCO captions file; valid records are grouped by pycocotools.

    `folder` is put before each file name; `split` is that of images that name none.
    """
    images: list[JsonObject] = []
    image_places: dict[object, str] = {}
    for place, record in records(data, "images", where, problems):
        identifier, name, own_split = record.get("id"), record.get("file_name"), record.get("split")
        if not is_identifier(identifier) or not isinstance(name, str) or not isinstance(own_split, str | None):
            problems.append(Problem("structure", place, "needs an id and a file_name (text), and text as its split"))
        elif is_new(identifier, place, image_places, "duplicate_image_id", problems):
            images.append(record)

    annotations: list[JsonObject] = []
    annotation_places: dict[object, str] = {}
    for place, record in records(data, "annotations", where, problems):
        identifier, image_id = record.get("id"), record.get("image_id")
        if not is_identifier(identifier) or not is_identifier(image_id):
            problems.append(Problem("structure", place, "needs an id and an image_id (number or text)"))
        elif image_id not in image_places:
            problems.append(Problem("unknown_image", place, f"captions image {image_id!r}, which is not in the list"))
        elif is_new(identifier, place, annotation_places, "duplicate_annotation_id", problems):
            annotations.append(record)

    from pycocotools.coco import COCO

    coco = COCO()
    # Only the two lists: with "categories", the index expects each caption to have a category_id.
    coco.dataset = {"images": images, "annotations": annotations}
    with redirect_stdout(io.StringIO()):
        coco.createIndex()
    grouped = cast(dict[object, list[JsonObject]], coco.imgToAnns)
    return [
        ListedImage(
            image_id=image["id"],  # type: ignore[arg-type]
            file_name=f"{folder}{image['file_name']}",
            captions=tuple(
                ListedCaption(
                    annotation.get("caption"),
                    annotation_places[annotation["id"]],
                    style_of(annotation, image, column=style_column),
                )
                for annotation in grouped[image["id"]]
            ),
            split=image.get("split") or split,  # type: ignore[arg-type]
            where=image_places[image["id"]],
        )
        for image in images
    ]


def image_name(image: ListedImage) -> str:
    """The file name of an image without `.` parts, so that a/./b is a/b."""
    return str(PurePosixPath(image.file_name))


def listing_problems(listing: Listing) -> Iterator[Problem]:
    """All problems that can be found without opening an image."""
    yield from listing.problems
    splits: defaultdict[str, set[str]] = defaultdict(set)
    for image in listing.images:
        if not image.captions:
            yield Problem("no_captions", image.where, f"{image.file_name} has no caption; it is left out")
        for caption in image.captions:
            yield from caption_problems(caption)
        try:
            path = safe_path(listing.root, image.file_name)
        except AnnotationError as error:
            yield Problem(error.code, image.where, str(error))
        else:
            if not os.path.isfile(path):
                yield Problem("missing_image", image.where, f"{image.file_name} is not in {listing.root}")
        splits[image_name(image)].add(image.split or "none")
    for name, named in splits.items():
        if len(named) > 1:
            yield Problem("same_picture", name, f"is in the splits {' and '.join(sorted(named))}; keep it in one")


def caption_problems(caption: ListedCaption) -> Iterator[Problem]:
    text = caption.text
    if not isinstance(text, str):
        yield Problem("caption_not_text", caption.where, f"the caption is {shortened(text)}, not text")
    elif not clean_caption(text):
        yield Problem("empty_caption", caption.where, "the caption is empty; write one or remove the entry")
    else:
        if len(text) > MAX_CAPTION_CHARACTERS:
            yield Problem("long_caption", caption.where, f"{len(text)} characters; write a sentence or two")
        if CONTROLS.search(text.strip()):
            yield Problem("control_character", caption.where, "the caption holds control characters; read as spaces")
