"""captioner score: score captions with the field's metrics."""

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

from captioner.cli.candidates import coco_records, first_ids, match_candidates, read_candidates, read_json
from captioner.cli.files import check_output, write_whole
from captioner.errors import AnnotationError, ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Score one caption per image against its references. Prints one JSON object: the metrics as fractions, equal "
        "to coco-caption's, their 95 % bootstrap intervals over images, and a signature of what determines them."
    )
    add = parser.add_argument
    add(
        "--references",
        required=True,
        type=Path,
        metavar="REFS.json",
        help="COCO annotations, {image_id: [captions]}, or another layout that training takes (Karpathy's JSON, CSV, "
        "JSONL, Flickr8k's files, a folder of text files); captions of other images are ignored",
    )
    add(
        "--candidates",
        required=True,
        type=Path,
        metavar="RES.json",
        help='COCO results [{"image_id", "caption"}], {image_id: caption}, or what `captioner caption` wrote: .jsonl, '
        ".csv, .tsv or .txt (path, tab, caption), or a folder of sidecars; paths are matched to the references' files",
    )
    add("--compare", type=Path, metavar="OTHER.json", help="add paired differences: RES.json minus OTHER.json")
    add("--per-image", type=Path, metavar="OUT.json", help="write the scores of each image to this file")
    add_metric_flags(parser)


def add_metric_flags(parser: argparse.ArgumentParser) -> None:
    """--metrics and --spice-dir, which `metrics_of` reads, and --tokenizer."""
    add = parser.add_argument
    add(
        "--metrics",
        default="bleu,rouge_l,cider_d",
        metavar="NAMES",
        help="comma-separated: bleu, rouge_l, cider_d, meteor (needs Java), spice (needs --spice-dir), object_words; "
        "default: %(default)s",
    )
    add("--spice-dir", type=Path, metavar="DIR", help="the folder of SPICE 1.0, for spice")
    add(
        "--tokenizer",
        choices=("ptb", "char", "none"),
        default="ptb",
        help="ptb (default): the official one, for English; char: every character is a word; none: split at spaces, "
        "case-sensitive",
    )


def run(arguments: argparse.Namespace) -> int:
    from captioner.metrics.scores import score

    metrics, tokenizer, spice_dir = metrics_of(arguments), arguments.tokenizer, arguments.spice_dir
    if arguments.per_image is not None:
        inputs = (arguments.references, arguments.candidates, arguments.compare)
        check_output("--per-image", arguments.per_image, inputs)
    references, names = read_references(arguments.references)

    given = read_candidates(arguments.candidates)
    candidates, unmatched = match_candidates(given, references, names, arguments.candidates)
    if unmatched:
        raise AnnotationError(
            f"{arguments.candidates}: {len(unmatched)} of {len(given)} candidates fit no reference, or several: "
            f"{first_ids(unmatched)}; the ids of the {len(references)} references: {first_ids(references)}"
        )
    others = None
    if arguments.compare is not None:
        others, _ = match_candidates(read_candidates(arguments.compare), references, names, arguments.compare)
    if missing := [image for image in candidates if others is not None and image not in others]:
        lack = "no caption, but the candidates have one; compare equal sets"
        raise AnnotationError(f"{arguments.compare}: image {missing[0]}: {lack}")

    scores = score(candidates, references, metrics, tokenizer, spice_dir)
    for note in scores.notes:
        print(f"captioner: {note}", file=sys.stderr)
    report = scores.to_dict()
    if others is not None:
        others = {image: others[image] for image in candidates}
        report["comparison"] = scores.compare(score(others, references, metrics, tokenizer, spice_dir))
    print(json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False))
    if arguments.per_image is not None:
        columns = {name: values.tolist() for name, values in scores.per_image.items()}
        rows = {
            image: {name: None if math.isnan(column[place]) else column[place] for name, column in columns.items()}
            for place, image in enumerate(scores.images)
        }
        write_whole(arguments.per_image, json.dumps(rows, indent=1) + "\n")
    return 0


def metrics_of(arguments: argparse.Namespace) -> tuple[str, ...]:
    """The metrics that the flags name. Raises ConfigError for unknown ones and for flags that contradict each other."""
    from captioner.metrics.scores import check_metrics

    metrics = [name.strip() for name in arguments.metrics.split(",") if name.strip()]
    if not metrics:
        raise ConfigError(f"--metrics {arguments.metrics!r}: names no metric; give some, such as bleu,cider_d")
    if arguments.spice_dir is not None and "spice" not in metrics:
        raise ConfigError("--spice-dir: is for spice; add spice to --metrics")
    return check_metrics(metrics, arguments.spice_dir)


def read_references(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Image id -> captions, and image id -> file name where the source has file names.

    Reads COCO annotations, {image_id: [captions]}, and the other layouts of captions.

    Raises AnnotationError, InputError.
    """
    if path.is_dir() or path.suffix.lower() in (".csv", ".jsonl", ".txt"):
        return _read_listing(path)
    data = read_json(path)
    if not isinstance(data, dict):
        raise AnnotationError(f"{path}: neither COCO annotations nor {{image_id: [captions]}}; give one of them")
    images, annotations = data.get("images"), data.get("annotations")
    if isinstance(images, list) and any(isinstance(each, dict) and "sentences" in each for each in images):
        return _read_listing(path)
    if not isinstance(annotations, list) or not all(isinstance(item, dict) for item in annotations):
        return data, {}
    grouped: dict[str, Any] = {}
    for image, caption in coco_records(annotations, f"{path}: annotations"):
        grouped.setdefault(image, []).append(caption)
    listed = [each for each in images if isinstance(each, dict)] if isinstance(images, list) else []
    named = (each for each in listed if isinstance(each.get("file_name"), str))
    return grouped, {str(each.get("id")): each["file_name"] for each in named}


def _read_listing(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Captions in any layout that training takes; the images need not exist."""
    from captioner.data.formats import read_listing

    listing = read_listing(path) if path.is_dir() else read_listing(None, path)
    for problem in listing.problems:
        print(f"captioner: {problem.where}: {problem.message}", file=sys.stderr)
    captioned = {str(image.image_id): image for image in listing.images if image.captions}
    references = {name: [caption.text for caption in image.captions] for name, image in captioned.items()}
    return references, {name: image.file_name for name, image in captioned.items()}
