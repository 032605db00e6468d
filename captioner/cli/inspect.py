"""captioner inspect: pictures and numbers of where each word of a caption looked."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captioner.errors import ConfigError, ImageError, InputError

if TYPE_CHECKING:
    from captioner.inspection.trace import AttentionTrace

DIGITS = 6
"""Decimals of the numbers in JSON; float32 has no more to say about shares."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Caption photos and show where each word looked; prints `path<TAB>caption` for each."
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="photos")
    parser.add_argument("-o", "--output", required=True, metavar="DIR", help="folder for the results, made if missing")
    parser.add_argument("--model", default="bundled", metavar="M", help="a model folder or a .ckpt; default: bundled")
    parser.add_argument("--png", action="store_true", help="write DIR/<stem>.png, a panel a word (the default)")
    parser.add_argument("--json", action="store_true", help="write DIR/<stem>.json, the numbers")
    parser.add_argument("--caption", metavar="TEXT", help="read this caption instead of the model's own")
    parser.add_argument("--layer", type=_index, metavar="mean|K", help="decoder layer, from 0; default: mean")
    parser.add_argument("--head", type=_index, metavar="mean|K", help="attention head, from 0; default: mean")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps; default: auto")


def run(arguments: argparse.Namespace) -> int:
    if not arguments.images:
        raise InputError("no photos given; name at least one: captioner inspect photo.jpg -o DIR")
    folder = Path(arguments.output)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"-o {folder}: a file; name a folder")

    from captioner.inspection.sheet import draw_sheet
    from captioner.pipeline import Captioner

    captioner = Captioner.from_pretrained(arguments.model, device=arguments.device)
    folder.mkdir(parents=True, exist_ok=True)
    if arguments.caption and (unknown := captioner.unknown_words(arguments.caption)):
        print(f"captioner: the model does not know {', '.join(unknown)}: shown as <unk>", file=sys.stderr)
    failed = False
    for path, target in zip(arguments.images, _targets(arguments.images, folder), strict=True):
        try:
            trace = captioner.inspect(path, caption=arguments.caption)
        except ImageError as error:
            print(f"captioner: error: {error}", file=sys.stderr)
            failed = True
            continue
        if arguments.png or not arguments.json:
            draw_sheet(trace, layer=arguments.layer, head=arguments.head).save(f"{target}.png", format="PNG")
        if arguments.json:
            record = {"path": path, "model": captioner.name, **_record(trace, arguments.layer, arguments.head)}
            Path(f"{target}.json").write_text(f"{json.dumps(record, ensure_ascii=False)}\n", encoding="utf-8")
        print(f"{path}\t{trace.text}")
    return int(failed)


def _index(text: str) -> int | None:
    if text == "mean":
        return None
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: give mean or a number, from 0") from None


def _targets(images: Sequence[str], folder: Path) -> list[Path]:
    """Where each photo's results go, without suffix: none on another's place, nor on a photo that was given."""
    given = {Path(image).resolve() for image in images}
    taken: set[str] = set()
    targets = []
    for image in images:
        stem = name = Path(image).stem or "image"
        count = 1
        # Some file systems do not tell capitals from small letters.
        while name.casefold() in taken or (folder / f"{name}.png").resolve() in given:
            count += 1
            name = f"{stem}-{count}"
        taken.add(name.casefold())
        targets.append(folder / name)
    return targets


def _record(trace: "AttentionTrace", layer: int | None, head: int | None) -> dict[str, Any]:
    """Plain data: a map (h, w) a word, its weights shares of all attention; null_mass is null without a null patch."""
    chosen = trace.select(layer, head)
    entropy, null_mass = chosen.entropy.tolist(), chosen.null_mass.tolist()
    return {
        "caption": trace.text,
        "grid": list(trace.grid),
        "geometry": trace.geometry.to_dict(),
        "layer": "mean" if layer is None else layer,
        "head": "mean" if head is None else head,
        "words": [
            {
                "text": text,
                "log_prob": round(trace.log_probs[word], DIGITS),
                "entropy": round(entropy[word], DIGITS),
                "null_mass": round(null_mass[word], DIGITS) if trace.has_null_patch else None,
                "map": [[round(value, DIGITS) for value in row] for row in chosen.patches(word).tolist()],
            }
            for word, text in enumerate(trace.words)
        ],
    }
