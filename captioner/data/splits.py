"""Splits of a data set: reproducible, with copies of a picture in one split."""

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import Any

from captioner.data.annotations import CaptionSet
from captioner.data.duplicates import grouped
from captioner.errors import AnnotationError

TRAIN = "train"


def split_names(
    names: Iterable[str],
    shares: Mapping[str, float],
    groups: Sequence[Collection[str]] = (),
    seed: int = 0,
    known: Mapping[str, str] = {},
) -> dict[str, str]:
    """Name -> split: to each split its share of the names, and to `train` the rest.

    The names of a group share a split. Names that are `known` keep theirs; a group whose names were in several takes
    that of `shares` which comes first. The order of the names and groups does not matter. Raises AnnotationError if a
    split stays empty.
    """
    units = grouped([*groups, *((name,) for name in names)])
    units.sort(key=lambda unit: hashlib.sha256(f"{seed}\0{unit[0]}".encode("utf-8", "surrogatepass")).digest())
    total = sum(map(len, units))
    room = {split: max(1, round(share * total)) for split, share in shares.items() if share}
    splits: dict[str, str] = {}
    for unit in units:
        before = {known[name] for name in unit if name in known}
        if kept := next((split for split in (*room, TRAIN) if split in before), None):
            splits |= dict.fromkeys(unit, kept)
            if kept != TRAIN:
                room[kept] -= len(unit)
    for unit in units:
        if unit[0] in splits:
            continue
        split = next((split for split, left in room.items() if len(unit) <= left), TRAIN)
        splits |= dict.fromkeys(unit, split)
        if split != TRAIN:
            room[split] -= len(unit)
    if empty := [split for split in (*room, TRAIN) if split not in splits.values()]:
        alike = f", up to {max(map(len, units))} of them alike" if total > len(units) else ""
        raise AnnotationError(f"{total} pictures{alike}: too few for the split {empty[0]}; add some, or leave it out")
    return splits


def with_splits(captions: CaptionSet, splits: Mapping[str, str]) -> CaptionSet:
    """The images that have a split, by their names below the image folder."""
    named = ((image, image.path.relative_to(captions.root).as_posix()) for image in captions.images)
    return CaptionSet(
        tuple(replace(image, split=splits[name]) for image, name in named if name in splits), captions.root
    )


def coco_annotations(captions: CaptionSet, style_column: str | None = None) -> dict[str, Any]:
    """The content of a COCO captions file with splits; file names are below the image folder.

    Styles are written as `style_column` of the captions.
    """
    images = [
        {"id": image.image_id, "file_name": image.path.relative_to(captions.root).as_posix(), "split": image.split}
        for image in captions.images
    ]
    annotations: list[dict[str, Any]] = []
    for image in captions.images:
        for text, style in zip_longest(image.captions, image.styles):
            about = {"id": len(annotations) + 1, "image_id": image.image_id, "caption": text}
            annotations.append(about | ({} if style is None or style_column is None else {style_column: style}))
    return {"images": images, "annotations": annotations}
