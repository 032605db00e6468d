"""captioner evaluate: caption a split and score the captions."""

import argparse
import json
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from captioner.cli.flags import (
    add_machine_flags,
    add_search_flags,
    check_machine_flags,
    check_search_flags,
    search_of,
)
from captioner.cli.score import add_metric_flags, metrics_of, read_json
from captioner.config import DataConfig
from captioner.errors import AnnotationError, ConfigError, ImageError, InputError

if TYPE_CHECKING:
    from captioner.data.annotations import CaptionedImage
    from captioner.pipeline import Caption

TRAIN = "train"
"""The split whose captions tell which of the model's are novel."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Caption the images of a split and score the captions. Prints what `captioner score` prints, and under "
        "`captions` what the captions are like: diversity, length, repetitions, objects."
    )
    add = parser.add_argument
    add("--annotations", required=True, metavar="FILE", help="the captions; or a folder with captions and images")
    add("--images", metavar="DIR", help="the image folder; default: `images` beside FILE, else FILE's folder")
    add("--format", choices=_formats(), default="auto", help="of the captions; default: detected")
    add("--split", metavar="NAME", help="default: test where there is one, and all of a file that names no splits")
    add("-o", "--output", metavar="RESULTS.json", help="write the captions here, in COCO's results format")
    add("--report", metavar="DIR", help="write DIR/report.html: the scores, the ten worst and the ten best images")
    add("--grounding", metavar="INSTANCES.json", help="COCO instances of these images: adds CHAIR")
    add_metric_flags(parser)
    add_search_flags(parser)
    add_machine_flags(parser)


def run(arguments: argparse.Namespace) -> int:
    check_machine_flags(arguments)
    check_search_flags(arguments)
    if arguments.num_captions > 1:
        raise ConfigError(f"--num-captions {arguments.num_captions}: one caption an image is scored; leave it out")
    metrics, spice_dir = metrics_of(arguments)
    for target in filter(None, (arguments.output, arguments.report)):
        if Path(target).is_dir() != (target == arguments.report) and Path(target).exists():
            raise ConfigError(f"{target}: -o takes a file, --report a folder; name another")
        if not Path(target).parent.is_dir():
            raise ConfigError(f"{target}: no folder {Path(target).parent}; make it, or name another")
    images, known = _split(arguments)
    objects = None if arguments.grounding is None else _objects(Path(arguments.grounding), images)

    from captioner.cli.evaluation_page import page
    from captioner.evaluation import evaluate_captions

    captions = dict(_caption(images, arguments))
    if not captions:
        raise ImageError(f"{arguments.annotations}: none of {len(images)} images could be captioned; see above")
    evaluation = evaluate_captions(
        captions,
        {image.image_id: image.captions for image in images},
        known=known,
        objects=objects,
        metrics=metrics,
        tokenizer=arguments.tokenizer,
        spice_dir=spice_dir,
    )
    if arguments.output is not None:
        evaluation.save_results(arguments.output)
    if arguments.report is not None:
        folder = Path(arguments.report)
        folder.mkdir(exist_ok=True)
        paths = {image.image_id: image.path for image in images}
        (folder / "report.html").write_text(page(evaluation, paths, model=arguments.model), encoding="utf-8")
    print(json.dumps(evaluation.to_dict(), indent=2, ensure_ascii=False, allow_nan=False))
    return 1 if len(captions) < len(images) else 0


def _formats() -> tuple[str, ...]:
    formats: tuple[str, ...] = get_args(DataConfig.__annotations__["format"])
    return formats


def _split(arguments: argparse.Namespace) -> tuple[tuple["CaptionedImage", ...], list[str]]:
    """The images to caption, and the captions of the training split where there is one and it is another."""
    from captioner.data.annotations import validated
    from captioner.data.formats import read_listing

    given = Path(arguments.annotations)
    if not given.exists():
        raise InputError(f"--annotations {given}: no such file or folder; check the path")
    root, file = (given, None) if given.is_dir() else (None, given)
    listing = read_listing(root, file, arguments.images, arguments.format)
    captions = validated(listing)
    if arguments.split is None and not listing.has_splits:
        print(
            f"captioner: {given} names no splits: all {len(captions)} images (--split val: those that training "
            "validates on)",
            file=sys.stderr,
        )
        return captions.images, []
    names = captions.split_names
    if arguments.split is None and "test" not in names:
        raise ConfigError(f"{given}: no split test; choose one with --split: {', '.join(names)}")
    split = arguments.split or "test"
    known = captions.split(TRAIN).images if TRAIN in names and split != TRAIN else ()
    return captions.split(split).images, [text for image in known for text in image.captions]


def _objects(path: Path, images: "tuple[CaptionedImage, ...]") -> Mapping[int | str, Collection[str]]:
    """The COCO categories in each image. Raises AnnotationError where the file does not say them."""
    from captioner.metrics.object_words import image_categories

    try:
        found = {str(image): names for image, names in image_categories(read_json(path)).items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise AnnotationError(
            f"{path}: not COCO instances (missing: {error}); give a file like instances_val2014.json"
        ) from error
    for image in images:
        if str(image.image_id) not in found:
            raise AnnotationError(f"{path}: image {image.image_id}: not in it; give the instances of these images")
    return {image.image_id: found[str(image.image_id)] for image in images}


def _caption(
    images: "tuple[CaptionedImage, ...]", arguments: argparse.Namespace
) -> "Iterator[tuple[int | str, Caption]]":
    """Image id -> caption; an image that cannot be read is told on standard error."""
    from tqdm import tqdm

    from captioner.pipeline import DEFAULT_BATCH, Captioner

    captioner = Captioner.from_pretrained(arguments.model, device=arguments.device)
    stream = captioner.stream(
        [image.path for image in images],
        search=search_of(arguments),
        batch_size=DEFAULT_BATCH if arguments.batch_size is None else arguments.batch_size,
        workers=arguments.workers,
    )
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
