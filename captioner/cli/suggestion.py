"""captioner data suggest: photos worth captioning next."""

import argparse
import json
import os
import sys
from pathlib import Path

from captioner.cli.files import check_output, write_whole
from captioner.cli.flags import add_model_flags, number
from captioner.cli.inputs import Finder
from captioner.data.checks import usable
from captioner.data.formats import read_listing
from captioner.errors import InputError
from captioner.text import printable

MAX_CAPTIONED = 1000
"""Captioned photos that are encoded, evenly spaced; more change little."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("folder", metavar="FOLDER", help="the photos; those with a text file beside them are captioned already")
    add("-r", "--recursive", action="store_true", help="search subfolders too")
    add("-n", "--number", type=number(int, 1), default=50, metavar="N", help="photos to suggest; default: 50")
    add("--captioned", metavar="DATA", help="a data set of captioned photos; default: those in FOLDER")
    add_model_flags(add)
    formats = (
        "text: a path per line, the most useful photo first; jsonl: also the caption and what the model is sure of"
    )
    add("--format", choices=("text", "jsonl"), default="text", help=formats)
    add("-o", "--output", type=Path, metavar="FILE", help="default: standard output")


def run(arguments: argparse.Namespace) -> int:
    if arguments.output is not None:
        check_output("-o", arguments.output)
    complaints: list[str] = []
    finder = Finder(recursive=arguments.recursive, complain=complaints.append)
    paths = [item.path for item in finder.find([arguments.folder])]
    captioned = captioned_photos(Path(arguments.captioned or arguments.folder))
    done = set(captioned)
    left = [path for path in paths if os.path.realpath(path) not in done]
    if not left:
        raise InputError(f"{arguments.folder}: all of its {len(paths)} photos are captioned; name another folder")

    from captioner.data.sampler import evenly_spaced
    from captioner.pipeline import Captioner
    from captioner.records import DIGITS, UNFAMILIARITY_DIGITS
    from captioner.suggestion import candidates, suggest

    captioner = Captioner.from_pretrained(arguments.model, device=arguments.device)
    known = candidates(captioner, evenly_spaced(captioned, MAX_CAPTIONED))
    found = candidates(captioner, left, lambda error: complaints.append(str(error)))
    chosen = suggest([*found], arguments.number, [*known])
    lines = []
    for each in chosen:
        measured = each.caption.unfamiliarity
        record = {
            "path": each.path,
            "caption": each.caption.text,
            "confidence": round(each.caption.confidence, DIGITS),
            **({} if measured is None else {"unfamiliarity": round(measured, UNFAMILIARITY_DIGITS)}),
        }
        lines.append(printable(each.path) if arguments.format == "text" else json.dumps(record, ensure_ascii=False))
    text = "".join(f"{line}\n" for line in lines)
    if arguments.output is None:
        print(text, end="")
    else:
        write_whole(arguments.output, text)
    for complaint in complaints:
        print(f"captioner: {complaint}", file=sys.stderr)
    print(f"{len(chosen)} of {len(left)} photos without captions", file=sys.stderr)
    return 1 if complaints else 0


def captioned_photos(data: Path) -> list[str]:
    """The resolved paths of the photos in a data set that have captions, sorted."""
    root, file = (data, None) if data.is_dir() else (None, data)
    return sorted(os.path.realpath(image.path) for image in usable(read_listing(root, file), decode=False).images)
