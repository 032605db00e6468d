"""captioner evaluate: caption a split and score the captions."""

import argparse
import json
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from captioner.cli.candidates import read_json
from captioner.cli.files import check_output, write_whole
from captioner.cli.flags import (
    add_machine_flags,
    add_search_flags,
    check_machine_flags,
    check_search_flags,
    search_of,
    styled_captioner,
)
from captioner.cli.score import add_metric_flags, metrics_of
from captioner.data.annotations import CaptionedImage, validated
from captioner.data.formats import FORMATS, read_listing
from captioner.errors import AnnotationError, ConfigError, ImageError
from captioner.model_files import existing_model

if TYPE_CHECKING:
    from captioner.caption import Caption
    from captioner.evaluation import Evaluation

PAGE = "report.html"
DEFAULT_SPLIT = "test"
TRAIN = "train"
"""A caption is novel if this split does not hold it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Caption the images of a split and score the captions. Prints the report of `captioner score`, with statistics "
        "of the captions under `captions`: diversity, length, repetitions, objects."
    )
    add = parser.add_argument
    add("--annotations", required=True, type=Path, metavar="FILE", help="the captions, or a folder that holds them")
    add("--images", metavar="DIR", help="the image folder; default: `images` beside FILE, else FILE's folder")
    add("--format", choices=FORMATS, default="auto", help="of the captions; default: detected")
    add("--split", metavar="NAME", help="default: test where there is one, and all of a file that names no splits")
    add("-o", "--output", type=Path, metavar="RESULTS.json", help="write the captions here, in COCO's results format")
    add("--report", type=Path, metavar="DIR", help="write DIR/report.html: scores, and ten images at each end")
    compare = "caption with this model, too, without --style: adds paired differences, and shows both in the report"
    add("--compare", type=existing_model, metavar="MODEL", help=compare)
    add("--grounding", type=Path, metavar="INSTANCES.json", help="COCO instances of these images: adds CHAIR")
    add_metric_flags(parser)
    add_search_flags(parser)
    add_machine_flags(parser)


def run(arguments: argparse.Namespace) -> int:
    check_machine_flags(arguments)
    check_search_flags(arguments)
    if arguments.num_captions > 1:
        raise ConfigError(f"--num-captions {arguments.num_captions}: one caption an image is scored; leave it out")
    metrics = metrics_of(arguments)
    inputs = (arguments.annotations, arguments.grounding)
    output, report = arguments.output, arguments.report
    images, known, split = _split(arguments)
    objects = None if arguments.grounding is None else _objects(arguments.grounding, images)
    if report is not None:
        if report.exists() and not report.is_dir():
            raise ConfigError(f"--report {report}: a file; name a folder")
        report.mkdir(parents=True, exist_ok=True)
        check_output("--report", report / PAGE, inputs)
    if output is not None:
        check_output("-o", output, inputs)

    from captioner.cli.evaluation_page import Compared, page
    from captioner.evaluation import Evaluation, evaluate_captions

    def evaluate(captions: Mapping[int | str, "Caption"]) -> Evaluation:
        return evaluate_captions(
            captions,
            {image.image_id: image.captions for image in images},
            known=known,
            objects=objects,
            metrics=metrics,
            tokenizer=arguments.tokenizer,
            spice_dir=arguments.spice_dir,
        )

    captions = dict(_caption(images, arguments))
    if not captions:
        raise ImageError(f"{arguments.annotations}: none of {len(images)} images could be captioned; see above")
    evaluation, other = evaluate(captions), None
    print(f"captioner: {_summary(evaluation, arguments.annotations, split)}", file=sys.stderr)
    failed = [image.image_id for image in images if image.image_id not in captions]
    printed = evaluation.to_dict() | ({"failed": failed} if failed else {})
    if arguments.compare is not None:
        same = tuple(image for image in images if image.image_id in captions)
        with_other = argparse.Namespace(**vars(arguments) | {"model": arguments.compare, "style": None})
        other = Compared(arguments.compare, evaluate(dict(_caption(same, with_other))))
        printed["comparison"] = evaluation.scores.compare(other.evaluation.scores)
    print(json.dumps(printed, indent=2, ensure_ascii=False, allow_nan=False))
    if output is not None:
        write_whole(output, json.dumps(evaluation.results(), ensure_ascii=False, indent=1) + "\n")
    if report is not None:
        about = {
            "model": arguments.model,
            "captions": str(arguments.annotations),
            "split": split,
            "search": str(search_of(arguments)),
            "images that could not be read": str(len(failed)),
        }
        paths = {image.image_id: image.path for image in images}
        write_whole(report / PAGE, page(evaluation, paths, about, other))
    return 1 if failed else 0


def _summary(evaluation: "Evaluation", annotations: Path, split: str) -> str:
    """The split, the number of its images and their scores, on one line."""
    scores = [f"{name} {score:.3f}" for name, score in evaluation.scores.corpus.items() if score is not None]
    return f"split {split} of {annotations}, {len(evaluation.captions)} images: {', '.join(scores)}"


def _split(arguments: argparse.Namespace) -> tuple[tuple[CaptionedImage, ...], list[str], str]:
    """The images to caption, the captions of the training split if that is another, and the name of the split."""
    given, split = arguments.annotations, arguments.split or DEFAULT_SPLIT
    root, file = (given, None) if given.is_dir() else (None, given)
    listing = read_listing(root, file, arguments.images, arguments.format)
    if arguments.split is None and not listing.has_splits:
        note = "all of its images (--split val: those that training validates on)"
        print(f"captioner: {given} names no splits: {note}", file=sys.stderr)
        wanted, known, split = listing.images, [], "all"
    else:
        wanted = tuple(image for image in listing.images if image.split == split)
        if not wanted:
            missing = "names no splits; leave --split out, or take one that training assigns"
            problem = f"no split {split!r}; choose one" if listing.has_splits else missing
            names = sorted({image.split for image in listing.images if image.split})
            raise ConfigError(f"{given}: {problem}: --split {', '.join(names)}")
        others = (image for image in listing.images if image.split == TRAIN and split != TRAIN)
        known = [str(caption.text) for image in others for caption in image.captions]
    # Only this split is validated: the images of other splits may lie elsewhere.
    captions = validated(replace(listing, images=wanted))
    if uncaptioned := len(wanted) - len(captions):
        print(f"captioner: {uncaptioned} images without captions are left out", file=sys.stderr)
    return captions.images, known, split


def _objects(path: Path, images: tuple[CaptionedImage, ...]) -> Mapping[int | str, Collection[str]]:
    """Image id -> its COCO categories. Raises AnnotationError for a file that lacks them."""
    from captioner.metrics.object_words import COCO_CATEGORIES, image_categories

    try:
        found = {str(image): names for image, names in image_categories(read_json(path)).items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise AnnotationError(
            f"{path}: no COCO instances: images, categories and annotations, each annotation with an image_id and a "
            "category_id that are listed; give a file like instances_val2014.json"
        ) from error
    if unknown := sorted(set().union(*found.values()) - COCO_CATEGORIES):
        names = ", ".join(unknown[:3])
        raise AnnotationError(f"{path}: {names}: no categories of COCO, which CHAIR counts; leave it out")
    for image in images:
        if str(image.image_id) not in found:
            raise AnnotationError(f"{path}: image {image.image_id}: not in it; give the instances of these images")
    return {image.image_id: found[str(image.image_id)] for image in images}


def _caption(
    images: tuple[CaptionedImage, ...], arguments: argparse.Namespace
) -> Iterator[tuple[int | str, "Caption"]]:
    """Image id -> caption; unusable images are reported on standard error and skipped."""
    from tqdm import tqdm

    captioner, search = styled_captioner(arguments)
    paths = [image.path for image in images]
    stream = captioner.stream(paths, search=search, batch_size=arguments.batch_size, workers=arguments.workers)
    failed, start = 0, time.perf_counter()
    bar = tqdm(stream, total=len(images), unit=" images", file=sys.stderr, disable=not sys.stderr.isatty())
    for image, outcome in zip(images, bar, strict=True):
        if isinstance(outcome, ImageError):
            failed += 1
            tqdm.write(f"captioner: {outcome}", file=sys.stderr)
        else:
            yield image.image_id, outcome.caption
    seconds = time.perf_counter() - start
    print(f"captioner: {len(images) - failed} captioned, {failed} failed, {seconds:.0f} s", file=sys.stderr)
