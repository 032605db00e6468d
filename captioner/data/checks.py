"""Checks of a data set that open its images: all problems, what is usable, and photos that cannot be trained on."""

import os
import shlex
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from PIL import Image

from captioner.data.annotations import (
    HARMLESS,
    CaptionedImage,
    CaptionSet,
    Listing,
    Problem,
    caption_problems,
    caption_styles,
    clean_caption,
    image_name,
    listing_problems,
    safe_path,
)
from captioner.data.duplicates import across, same_bytes
from captioner.errors import AnnotationError, ImageError
from captioner.images import IMAGE_EXTENSIONS, ImageSource, OpenedImage, is_image, open_image

TAIL_BYTES = 4096
"""Number of last bytes in which the end mark of a whole JPEG or PNG is looked for."""
END_MARKS = {b"\xff\xd8": b"\xff\xd9", b"\x89P": b"IEND"}
"""First bytes of JPEG and PNG -> the mark that ends them."""
CERTAIN_PIXELS = 20_000_000
"""Most pixels of an image that every format's limit allows."""


def check(
    listing: Listing, decode: bool = True, on_image: Callable[[str, OpenedImage], object] = lambda name, opened: None
) -> list[Problem]:
    """All problems of a listing, harmless ones too; `decode` also opens every image.

    `on_image` is called with the name and the content of each image that opens.
    """
    paths = _existing(listing)
    problems = [*listing_problems(listing), *_same_bytes(listing, paths)]
    for name, path in paths.items() if decode else ():
        try:
            on_image(name, open_image(path))
        except ImageError as error:
            problems.append(Problem(error.code, name, str(error)))
    return problems


def usable(listing: Listing, decode: bool = True) -> CaptionSet:
    """The usable part of a listing: existing images, each once, with valid captions.

    `decode` opens every image and leaves out those that cannot be opened.
    """
    paths, images = _existing(listing), []
    for image in listing.images:
        valid = [each for each in image.captions if all(found.code in HARMLESS for found in caption_problems(each))]
        texts = [clean_caption(str(caption.text)) for caption in valid]
        path = paths.pop(image_name(image), None) if texts else None
        if path is not None and not (decode and _image_error(path, open_image)):
            styles = caption_styles(valid)
            images.append(CaptionedImage(image.image_id, path, tuple(texts), image.split, styles=styles))
    return CaptionSet(tuple(images), listing.root)


def _newer_texts(annotations: Path) -> list[str]:
    """Text files beside images in the folder of an annotation file, which is read instead, that changed after it."""
    written = annotations.stat().st_mtime
    found = []
    for folder, _, files in os.walk(annotations.parent):
        pictures = {Path(name).stem for name in files if Path(name).suffix.lower() in IMAGE_EXTENSIONS}
        texts = (Path(folder, name) for name in files if name.lower().endswith(".txt") and Path(name).stem in pictures)
        found += [text.relative_to(annotations.parent).as_posix() for text in texts if _changed(text) > written]
    return sorted(found)


def split_anew(annotations: Path) -> str:
    """The command that writes an annotation file anew from the text files of its folder."""
    words = ("captioner", "data", "split", str(annotations.parent), "--format", "folder", "-o", str(annotations))
    return shlex.join(words)


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # such as a broken link
        return 0.0


def unread_texts(annotations: Path) -> Problem | None:
    """A warning of text files that training will not read, though they are newer than the annotation file."""
    texts = _newer_texts(annotations)
    if not texts:
        return None
    newer = f"{len(texts)} text files are newer than {annotations.name}, which is read instead"
    message = f"{newer}; read them by: {split_anew(annotations)}"
    return Problem("unread_text", texts[0], message, harmless=True, pictures=tuple(texts))


def unusable_photos(images: Iterable[CaptionedImage]) -> Iterator[tuple[CaptionedImage, ImageError]]:
    """The images whose photos cannot be used, as far as their headers and ends show.

    Photos are decoded in case of doubt only, so damage in the middle of a file is not found.
    """
    for image in images:
        if error := _image_error(image.content, _look):
            yield image, error


def _look(source: ImageSource) -> object:
    """Open a photo's header; open all of it if anything is not as in a whole file."""
    if isinstance(source, bytes):
        return open_image(source)
    try:
        with warnings.catch_warnings(), open(str(source), "rb") as file:
            warnings.simplefilter("ignore")
            start = file.read(2)
            file.seek(-min(os.fstat(file.fileno()).st_size, TAIL_BYTES), os.SEEK_END)
            whole = END_MARKS.get(start, b"") in file.read()
            with Image.open(file) as image:
                certain = whole and is_image(str(source)) and 0 < image.width * image.height <= CERTAIN_PIXELS
    except Exception:  # Pillow raises nearly anything; open_image says what is wrong
        certain = False
    return None if certain else open_image(source)


def _image_error(source: ImageSource, look: Callable[[ImageSource], object]) -> ImageError | None:
    try:
        look(source)
    except ImageError as error:
        return error
    return None


def _existing(listing: Listing) -> dict[str, Path]:
    """The existing files of a listing by normalized name."""
    paths: dict[str, Path] = {}
    for image in listing.images:
        with suppress(AnnotationError):
            path = safe_path(listing.root, image.file_name)
            if os.path.isfile(path):
                paths.setdefault(image_name(image), path)
    return paths


def _same_bytes(listing: Listing, paths: dict[str, Path]) -> Iterator[Problem]:
    """Images with the same bytes in different splits."""
    splits = {image_name(image): image.split for image in listing.images if image.split is not None}
    for names in across(same_bytes({name: paths[name] for name in splits.keys() & paths.keys()}), splits):
        others = ", ".join(f"{name} ({splits[name]})" for name in names[1:])
        message = f"({splits[names[0]]}) has the same bytes as {others}"
        yield Problem("same_picture", names[0], message, harmless=True, pictures=tuple(names))
