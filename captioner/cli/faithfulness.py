"""captioner inspect --annotations: how far the maps of a model can be trusted, measured on a split."""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from captioner.cli.flags import number
from captioner.data.formats import load_captions
from captioner.errors import ConfigError
from captioner.model_files import CARD, CONFIG

if TYPE_CHECKING:
    from captioner.faithfulness import Report
    from captioner.pipeline import Captioner


def add_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "how far maps can be trusted",
        "with --annotations instead of photos: tables of pointing and of deletion and insertion, as Markdown on "
        "standard output and in DIR/faithfulness.json",
    ).add_argument
    group("--annotations", metavar="FILE", help="captions in any layout that training takes")
    group("--images", dest="folder", metavar="DIR", help="image folder; default: as for training")
    group("--split", default="val", help="default: val")
    group("--mosaics", type=number(int, 0), default=500, metavar="N", help="mosaics of four photos; default: 500")
    group("--photos", type=number(int, 0), default=0, metavar="N", help="photos for the pixel test (slow); default: 0")
    group(
        "--captions",
        type=number(int, 0),
        default=500,
        metavar="N",
        help="captions to check for hallucination; default: 500",
    )
    group("--grounding", metavar="INSTANCES.json", help="COCO instances, for pointing at annotated objects")
    group("--perturbation", action="store_true", help="measure perturbation too; slow")
    group("--random-weights", action="store_true", help="test maps of the untrained network, which must fail")
    group(
        "--store",
        action="store_true",
        help="store the best heads (for --head best) and the hallucination weights in the model folder",
    )


def check_flags(arguments: argparse.Namespace) -> None:
    """Raise ConfigError for flags that contradict each other."""
    only = ("grounding", "perturbation", "random_weights", "store")
    if arguments.annotations is None:
        for name in only:
            if getattr(arguments, name):
                raise ConfigError(f"--{name.replace('_', '-')}: measures a split; add --annotations FILE")
        return
    if arguments.images:
        raise ConfigError("--annotations: measures a split; leave the photos out")
    for name in ("caption", "layer", "head", "region", "hide"):
        if getattr(arguments, name) is not None:
            raise ConfigError(f"--{name}: is for photos; leave it out with --annotations")
    if arguments.store and arguments.random_weights:
        raise ConfigError("--store: findings for random weights are not worth storing; leave out --random-weights")
    if arguments.store and not (Path(arguments.model) / CONFIG).is_file():
        raise ConfigError(f"--store: {arguments.model} is not a model folder of yours; save one, and give its path")


def run(arguments: argparse.Namespace, folder: Path) -> int:
    """Measure the maps; print the tables and write them to the folder."""
    given = Path(arguments.annotations)
    root, file = (given, None) if given.is_dir() else (None, given)
    images = load_captions(root, file, arguments.folder).split(arguments.split).images

    from captioner.faithfulness import Options, measure
    from captioner.pipeline import Captioner

    captioner = Captioner.from_pretrained(arguments.model, device=arguments.device)
    options = Options(
        mosaics=arguments.mosaics,
        photos=arguments.photos,
        captions=arguments.captions,
        instances=None if arguments.grounding is None else Path(arguments.grounding),
        perturbation=arguments.perturbation,
        random_weights=arguments.random_weights,
    )
    if arguments.html:
        from captioner.cli.reports import INDEX, write_split_reports

        folder.mkdir(parents=True, exist_ok=True)
        for error in write_split_reports(captioner, images, folder, arguments.method):
            _log(str(error))
        _log(f"wrote {folder / INDEX}")
    report = measure(captioner, images, options, _log)
    print(report.to_markdown())
    for note in report.notes:
        _log(note)
    folder.mkdir(parents=True, exist_ok=True)
    found = {"model": arguments.model, "split": arguments.split, **report.to_dict()}
    (folder / "faithfulness.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    if arguments.store:
        _store(captioner, report, arguments.model)
    return 0


def _store(captioner: "Captioner", report: "Report", folder: str) -> None:
    """Store the findings in the model folder; what was not measured this time stays."""
    config = captioner.model.config
    heads = report.best_heads or config.best_heads
    weights = report.hallucination_weights or config.hallucination
    captioner.model.config = replace(config, best_heads=heads, hallucination=weights)
    card = Path(folder, CARD)
    captioner.save_pretrained(folder, card=card.read_text(encoding="utf-8") if card.is_file() else None)
    what = f"{len(heads)} heads" + (" and hallucination weights" if report.hallucination_weights else "")
    _log(f"stored {what} in {folder}")


def _log(message: str) -> None:
    print(f"captioner: {message}", file=sys.stderr)
