"""captioner inspect --annotations: how far the maps of a model can be trusted, measured on a split."""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captioner.cli.flags import number
from captioner.errors import ConfigError

CONFIG = "config.json"
"""What makes a folder a model's."""
FEW_WORDS = 30
LEAST_INVENTED = 50
"""Fewer examples of either kind teach nothing about invented objects."""

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from captioner.data.annotations import CaptionedImage
    from captioner.pipeline import Captioner


def add_faithfulness_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "how far maps can be trusted",
        "with --annotations instead of photos: a table of pointing in mosaics and of deletion and insertion in pixels, "
        "as Markdown on standard output and in DIR/faithfulness.json",
    ).add_argument
    group("--annotations", metavar="FILE", help="captions in any layout that training takes")
    group("--images", dest="folder", metavar="DIR", help="the image folder; default: as for training")
    group("--split", default="val", help="default: val")
    group("--mosaics", type=number(int, 0), default=500, metavar="N", help="mosaics of four photos; default: 500")
    group(
        "--photos",
        type=number(int, 0),
        default=0,
        metavar="N",
        help="photos for the pixel test, which is slow; default: 0",
    )
    group(
        "--captions",
        type=number(int, 0),
        default=500,
        metavar="N",
        help="captions to look for invented objects in; default: 500",
    )
    group("--grounding", metavar="INSTANCES.json", help="COCO instances of the images: pointing at their objects")
    group("--perturbation", action="store_true", help="measure this map too, the reference; slow")
    group("--random-weights", action="store_true", help="maps of the same network with random weights, which must fail")
    group(
        "--store",
        action="store_true",
        help="write into the model's folder what was found: the best heads, for --head best, and what tells invented "
        "objects",
    )


def check_faithfulness_flags(arguments: argparse.Namespace) -> None:
    """Raise ConfigError for flags that have no meaning together."""
    only = ("grounding", "perturbation", "random_weights", "store")
    if arguments.annotations is None:
        for name in only:
            if getattr(arguments, name):
                raise ConfigError(f"--{name.replace('_', '-')}: is for a split; add --annotations FILE")
        return
    if arguments.images:
        raise ConfigError("--annotations: measures a split; leave the photos out")
    for name in ("caption", "layer", "head", "region", "hide"):
        if getattr(arguments, name) is not None:
            raise ConfigError(f"--{name}: is for photos; leave it out with --annotations")
    if arguments.store and arguments.random_weights:
        raise ConfigError("--store: would keep what random weights do; leave out --random-weights")
    if arguments.store and not (Path(arguments.model) / CONFIG).is_file():
        raise ConfigError(f"--store: {arguments.model} is no model folder of yours; save one, and name it")


def run_faithfulness(arguments: argparse.Namespace, captioner: "Captioner", folder: Path) -> int:
    """Measure, print the tables and write them to the folder."""
    import torch

    from captioner.data.formats import load_captions
    from captioner.inspection.faithfulness import (
        box_pointing,
        mosaic_pointing,
        pixel_curves,
        read_words,
        slow_maps,
        standard_maps,
    )
    from captioner.inspection.hallucination import detection, fit
    from captioner.inspection.summary import (
        heads_markdown,
        heads_summary,
        invented_markdown,
        markdown,
        null_markdown,
        null_summary,
        summarize,
    )
    from captioner.model.caption_model import CaptionModel

    given = Path(arguments.annotations)
    root, file = (given, None) if given.is_dir() else (None, given)
    images = load_captions(root, file, arguments.folder).split(arguments.split).images
    model, tokenizer = captioner.model, captioner.tokenizer
    shown = None
    if arguments.random_weights:
        torch.manual_seed(0)
        shown = CaptionModel(model.config, vocabulary=len(tokenizer)).eval().to(captioner.device)
    maps = slow_maps if arguments.perturbation else standard_maps

    report: dict[str, Any] = {
        "model": arguments.model,
        "split": arguments.split,
        "random_weights": arguments.random_weights,
    }
    if arguments.grounding is not None:
        boxes = box_pointing(model, tokenizer, images, Path(arguments.grounding), maps=maps)
        report["grounding"] = summarize(boxes)
        print(markdown("Pointing at annotated objects", report["grounding"]))
    heads: list[list[int]] = []
    if arguments.mosaics:
        count = min(arguments.mosaics, len(images))
        print(f"captioner: pointing in {count} mosaics", file=sys.stderr)
        pointing = mosaic_pointing(model, tokenizer, images, mosaics=count, maps=maps, shown=shown)
        report["pointing"] = summarize(pointing)
        print(markdown(f"Pointing in {count} mosaics", report["pointing"]))
        report["heads"] = heads_summary(pointing)
        print(heads_markdown(report["heads"]))
        heads = report["heads"]["best_heads"]
        if pointing.seen_objects.sum() < FEW_WORDS:
            print("captioner: so few words that intervals mean little; take more mosaics", file=sys.stderr)
    if arguments.photos:
        chosen = images[: arguments.photos]
        print(f"captioner: deletion and insertion in {len(chosen)} photos", file=sys.stderr)
        report["pixels"] = summarize(pixel_curves(model, tokenizer, chosen, maps=maps, shown=shown))
        print(markdown(f"Deletion and insertion in {len(chosen)} photos, in nats", report["pixels"]))
    weights: tuple[float, ...] = ()
    if arguments.captions and shown is None:
        chosen = images[: arguments.captions]
        features, invented, photos, own = _object_words(captioner, chosen)
        human = [image.captions[number % len(image.captions)] for number, image in enumerate(chosen)]
        tables = {"human captions": human, "its own captions": own}
        nulls = {name: null_summary(read_words(model, tokenizer, chosen, each)) for name, each in tables.items()}
        report["null patch"] = {name: each for name, each in nulls.items() if each}
        if report["null patch"]:
            print(null_markdown(report["null patch"]))
        enough = min(invented.sum(), len(invented) - invented.sum()) >= LEAST_INVENTED
        found = dict(detection(features, invented, photos)) if enough else {}
        weights = tuple(float(weight) for weight in fit(features, invented)) if enough else ()
        report["invented objects"] = {"words": len(invented), "invented": int(invented.sum()), "auc": found}
        print(invented_markdown(report["invented objects"]))
        if not enough:
            print(f"captioner: fewer than {LEAST_INVENTED} invented objects: too few to learn from", file=sys.stderr)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "faithfulness.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if arguments.store:
        # What was not measured this time stays as it was.
        best = tuple((layer, head) for layer, head in heads) or model.config.best_heads
        model.config = replace(model.config, best_heads=best, hallucination=weights or model.config.hallucination)
        card = Path(arguments.model, "README.md")
        captioner.save_pretrained(arguments.model, card=card.read_text(encoding="utf-8") if card.is_file() else None)
        what = f"{len(best)} heads" + (" and what tells invented objects" if weights else "")
        print(f"captioner: {what} stored in {arguments.model}", file=sys.stderr)
    return 0


def _object_words(
    captioner: "Captioner", images: "Sequence[CaptionedImage]"
) -> "tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.int64], list[str]]":
    """Of the model's own captions: features (K, F) of their object words, whether invented (K,), and of which image;
    and the captions.
    """
    import numpy as np

    from captioner.inspection.hallucination import FEATURES, is_invented, object_words_of

    print(f"captioner: objects in {len(images)} captions", file=sys.stderr)
    rows, invented, photos, captions = [], [], [], []
    for photo, image in enumerate(images):
        trace = captioner.inspect(image.path)
        captions.append(trace.text)
        for each in object_words_of(trace):
            rows.append(each.features)
            invented.append(is_invented(each.concept, image.captions))
            photos.append(photo)
    features = np.array(rows).reshape(-1, len(FEATURES))
    return features, np.array(invented, dtype=bool), np.array(photos, dtype=np.int64), captions
