"""The interactive reports of `captioner inspect --html`: a page for each photo, and an index of several."""

import os
from collections.abc import Sequence
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING

from captioner.errors import ImageError
from captioner.evaluation import evaluate_captions
from captioner.files import write_whole
from captioner.inspection.report import INDEX_IMAGES, IndexEntry, render_index, render_report

if TYPE_CHECKING:
    from captioner.data.annotations import CaptionedImage
    from captioner.inspection.trace import AttentionTrace, Method
    from captioner.pipeline import Captioner

INDEX = "index.html"


def output_paths(images: Sequence[str], folder: Path) -> list[Path]:
    """Output paths without suffix, one per image; they never collide and never overwrite an input or the index."""
    given = {os.path.realpath(image) for image in images}
    taken = {Path(INDEX).stem}
    targets = []
    for image in images:
        stem = Path(image).stem or "image"
        for name in chain([stem], (f"{stem}-{number}" for number in count(2))):
            # Some file systems ignore case.
            if name.casefold() not in taken and os.path.realpath(folder / f"{name}.png") not in given:
                break
        taken.add(name.casefold())
        targets.append(folder / name)
    return targets


def write_report(trace: "AttentionTrace", path: Path, *, photo: str, model: str, index: bool) -> None:
    """Write the page of a photo; with `index`, it links to the index beside it."""
    page = render_report(trace, name=Path(photo).name, model=model, index=INDEX if index else "")
    write_whole(path, page.encode())


def write_index(path: Path, entries: Sequence[IndexEntry], *, measure: str, model: str) -> None:
    """Write the page of the worst and the best captions by a measure."""
    write_whole(path, render_index(entries, measure=measure, model=model).encode())


def write_split_reports(
    captioner: "Captioner", images: Sequence["CaptionedImage"], folder: Path, method: "Method"
) -> list[ImageError]:
    """Caption a split, and write an index with the reports of the captions that score worst and best.

    Returns the errors of images that cannot be used.
    """
    captions, failed = {}, []
    for image, outcome in zip(images, captioner.stream([image.path for image in images]), strict=True):
        if isinstance(outcome, ImageError):
            failed.append(outcome)
        else:
            captions[image.image_id] = outcome.caption
    if not captions:
        return failed
    by_id = {image.image_id: image for image in images}
    evaluation = evaluate_captions(captions, {name: image.captions for name, image in by_id.items()})
    metric, ranked = evaluation.ranked()
    scores = dict(zip(evaluation.captions, evaluation.scores.per_image[metric].tolist(), strict=True))
    targets = output_paths([str(by_id[name].path) for name in ranked], folder)
    entries = []
    for place, (name, target) in enumerate(zip(ranked, targets, strict=True)):
        image, href = by_id[name], ""
        if min(place, len(ranked) - 1 - place) < INDEX_IMAGES:
            href = f"{target.name}.html"
            trace = captioner.inspect(image.path, method=method)
            write_report(trace, folder / href, photo=str(image.path), model=captioner.name, index=True)
        entries.append(IndexEntry(image.path, captions[name].text, scores[name], href, tuple(image.captions)))
    write_index(folder / INDEX, entries, measure=metric, model=captioner.name)
    return failed
