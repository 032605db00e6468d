"""captioner score: score captions with the field's metrics."""

import argparse
import gzip
import io
import json
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from captioner.cli.files import check_output, write_whole
from captioner.errors import AnnotationError, ConfigError, InputError

MAX_UNPACKED = 2**30
"""Most bytes of a JSON file, unpacked: a few megabytes can unpack to gigabytes."""


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
    results = '[{"image_id", "caption"}], or {image_id: caption}'
    add("--candidates", required=True, type=Path, metavar="RES.json", help=results)
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
    references, candidates = read_references(arguments.references), read_candidates(arguments.candidates)
    others = None if arguments.compare is None else read_candidates(arguments.compare)
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


def read_references(path: Path) -> dict[str, Any]:
    """Image id -> captions, from COCO annotations, {image_id: [captions]}, or another layout of captions.

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
        return data
    grouped: dict[str, Any] = {}
    for image, caption in _records(annotations, f"{path}: annotations"):
        grouped.setdefault(image, []).append(caption)
    return grouped


def _read_listing(path: Path) -> dict[str, Any]:
    """Captions in any layout that training takes; the images need not exist."""
    from captioner.data.formats import read_listing

    listing = read_listing(path) if path.is_dir() else read_listing(None, path)
    for problem in listing.problems:
        print(f"captioner: {problem.where}: {problem.message}", file=sys.stderr)
    return {str(image.image_id): [caption.text for caption in image.captions] for image in listing.images}


def read_candidates(path: Path) -> dict[str, Any]:
    """Image id -> caption, from COCO results or {image_id: caption}. Raises AnnotationError, InputError."""
    data = read_json(path)
    if isinstance(data, dict):
        return data
    if not isinstance(data, list):
        raise AnnotationError(f"{path}: neither a list of image_id and caption nor {{image_id: caption}}; give one")
    captions: dict[str, Any] = {}
    for image, caption in _records(data, f"{path}: "):
        if image in captions:
            raise AnnotationError(f"{path}: image {image}: more than one caption; keep one")
        captions[image] = caption
    return captions


def _records(items: list[Any], where: str) -> Iterator[tuple[str, Any]]:
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

    def unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in pairs:
            if name in found:
                raise AnnotationError(f"{path}: {name}: a duplicate key; keep one of them")
            found[name] = value
        return found

    try:
        return json.loads(content.decode("utf-8-sig"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise AnnotationError(f"{path}: not JSON ({error}); give a JSON file in UTF-8") from error
