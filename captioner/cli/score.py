"""captioner score: score captions with the field's metrics."""

import argparse
import gzip
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captioner.cli.files import check_output, write_whole
from captioner.errors import AnnotationError, ConfigError, InputError

if TYPE_CHECKING:
    from captioner.metrics.scores import Scores

TOKENIZERS = ("ptb", "char", "none")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Score one caption an image against its references. Prints one JSON object: the metrics as fractions, equal to "
        "coco-caption's, their 95 % bootstrap intervals over images, and a signature of what determines them."
    )
    add = parser.add_argument
    add(
        "--references",
        required=True,
        metavar="REFS.json",
        help="COCO annotations, {image_id: [captions]}, or another layout that training takes (Karpathy's JSON, CSV, "
        "JSONL, Flickr8k's files, a folder of text files); captions of other images are ignored",
    )
    add("--candidates", required=True, metavar="RES.json", help='[{"image_id", "caption"}], or {image_id: caption}')
    add(
        "--compare",
        metavar="OTHER.json",
        help="other captions of the same images: adds paired differences, CANDIDATES minus OTHER",
    )
    add("--per-image", metavar="OUT.json", help="write the scores of each image to this file")
    add_metric_flags(parser)


def add_metric_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that `metrics_of` reads, and --tokenizer."""
    add = parser.add_argument
    add(
        "--metrics",
        default="bleu,rouge_l,cider_d",
        metavar="NAMES",
        help="comma-separated: bleu, rouge_l, cider_d, meteor (needs Java), spice (needs --spice-dir), object_words; "
        "default: %(default)s",
    )
    add("--spice-dir", metavar="DIR", help="the folder of SPICE 1.0, for spice")
    add(
        "--tokenizer",
        choices=TOKENIZERS,
        default="ptb",
        help="ptb (default): the official one, for English; char: every character is a word; none: split at spaces, "
        "case-sensitive",
    )


def run(arguments: argparse.Namespace) -> int:
    from captioner.metrics.scores import score

    metrics, spice_dir = metrics_of(arguments)
    if arguments.per_image is not None:
        inputs = (arguments.references, arguments.candidates, arguments.compare)
        check_output("--per-image", Path(arguments.per_image), inputs)
    references = read_references(Path(arguments.references))
    candidates = read_candidates(Path(arguments.candidates))
    others = None if arguments.compare is None else _same_images(Path(arguments.compare), candidates)

    scores = score(candidates, references, metrics, arguments.tokenizer, spice_dir)
    for note in scores.notes:
        print(f"captioner: {note}", file=sys.stderr)
    report = scores.to_dict()
    if others is not None:
        report["comparison"] = scores.compare(score(others, references, metrics, arguments.tokenizer, spice_dir))
    print(json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False))
    if arguments.per_image is not None:
        _write(Path(arguments.per_image), scores)
    return 0


def metrics_of(arguments: argparse.Namespace) -> tuple[list[str], Path | None]:
    """The metrics that the flags name, and SPICE's folder. Raises ConfigError for flags that contradict each other."""
    metrics = [name.strip() for name in arguments.metrics.split(",") if name.strip()]
    if not metrics:
        raise ConfigError(f"--metrics {arguments.metrics!r}: names no metric; give some, such as bleu,cider_d")
    spice_dir = None if arguments.spice_dir is None else Path(arguments.spice_dir)
    if spice_dir is not None and "spice" not in metrics:
        raise ConfigError("--spice-dir: is for spice; add spice to --metrics")
    if spice_dir is None and "spice" in metrics:
        raise ConfigError("--metrics spice: needs the folder of SPICE 1.0; add --spice-dir DIR")

    from captioner.metrics.scores import check_metrics

    return list(check_metrics(metrics, spice_dir)), spice_dir


def read_references(path: Path) -> dict[str, Any]:
    """Image id -> captions, from COCO annotations, {image_id: [captions]}, or another layout of captions.

    Raises AnnotationError, InputError.
    """
    if path.is_dir() or path.suffix.lower() in (".csv", ".jsonl", ".txt"):
        return _listed(path)
    data = read_json(path)
    if isinstance(data, dict) and any("sentences" in each for each in _dicts(data.get("images"))):
        return _listed(path)
    annotations = data.get("annotations") if isinstance(data, dict) else None
    if isinstance(annotations, list) and all(isinstance(item, dict) for item in annotations):
        grouped: dict[str, Any] = {}
        for place, item in enumerate(annotations):
            grouped.setdefault(_image_id(path, f"annotations[{place}]", item), []).append(item["caption"])
        return grouped
    if not isinstance(data, dict):
        raise AnnotationError(f"{path}: neither COCO annotations nor {{image_id: [captions]}}; give one of them")
    return data


def _listed(path: Path) -> dict[str, Any]:
    """Captions in any layout; the images need not exist."""
    from captioner.data.formats import read_listing

    listing = read_listing(path) if path.is_dir() else read_listing(None, path)
    for problem in listing.problems:
        print(f"captioner: {problem.where}: {problem.message}", file=sys.stderr)
    return {str(image.image_id): [caption.text for caption in image.captions] for image in listing.images}


def _dicts(values: Any) -> list[dict[str, Any]]:
    return [each for each in values if isinstance(each, dict)] if isinstance(values, list) else []


def read_candidates(path: Path) -> dict[str, Any]:
    """Image id -> caption, from COCO results or {image_id: caption}. Raises AnnotationError, InputError."""
    data = read_json(path)
    if isinstance(data, dict):
        return data
    if not isinstance(data, list):
        raise AnnotationError(f"{path}: neither a list of image_id and caption nor {{image_id: caption}}; give one")
    captions: dict[str, Any] = {}
    for place, item in enumerate(data):
        image = _image_id(path, f"[{place}]", item)
        if image in captions:
            raise AnnotationError(f"{path}: image {image}: more than one caption; keep one")
        captions[image] = item["caption"]
    return captions


def _image_id(path: Path, place: str, item: Any) -> str:
    if not isinstance(item, dict) or "image_id" not in item or "caption" not in item:
        raise AnnotationError(f"{path}: {place}: not an object with image_id and caption; correct or remove it")
    image = item["image_id"]
    if isinstance(image, bool) or not isinstance(image, int | str):
        raise AnnotationError(f"{path}: {place}: image_id {image!r} is neither an integer nor a string; correct it")
    return str(image)


def _same_images(path: Path, candidates: dict[str, Any]) -> dict[str, Any]:
    """The captions of --compare for the candidates' images, in their order."""
    others = read_candidates(path)
    for image in candidates:
        if image not in others:
            raise AnnotationError(f"{path}: image {image}: no caption, but the candidates have one; compare equal sets")
    return {image: others[image] for image in candidates}


def read_json(path: Path) -> Any:
    """A JSON file, gzipped or not, without duplicate keys. Raises AnnotationError, InputError."""
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; check the path") from error
    except (EOFError, OSError) as error:
        raise InputError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error}); check it") from error

    def unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise AnnotationError(f"{path}: {twice}: a duplicate key; keep one of them")
        return found

    try:
        return json.loads(content.decode("utf-8-sig"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise AnnotationError(f"{path}: not JSON ({error}); give a JSON file in UTF-8") from error


def _write(path: Path, scores: "Scores") -> None:
    columns = [column.tolist() for column in scores.per_image.values()]
    rows = (
        {name: None if math.isnan(value) else value for name, value in zip(scores.per_image, values, strict=True)}
        for values in zip(*columns, strict=True)
    )
    content = json.dumps(dict(zip(scores.images, rows, strict=True)), indent=1)
    write_whole(path, content + "\n")
