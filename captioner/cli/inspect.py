"""captioner inspect: figures and numbers that show where each word of a caption looked."""

import argparse
import json
import sys
from collections.abc import Sequence
from itertools import chain, count
from pathlib import Path
from typing import Any

from captioner.cli import faithfulness
from captioner.cli.files import check_folder
from captioner.cli.flags import add_model_flags, add_region_flags, number
from captioner.cli.formats import encode
from captioner.cli.inputs import Finder
from captioner.errors import ConfigError, ImageError, InputError
from captioner.text import printable

DEFAULT_FOLDER = "inspection"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Caption photos and show where each word looked; prints `path<TAB>caption` for each."
    add = parser.add_argument
    add("images", nargs="*", metavar="IMAGE", help="a photo, a folder, a glob, @list.txt or - (standard input)")
    add("-r", "--recursive", action="store_true", help="search subfolders too")
    add(
        "-o",
        "--output",
        metavar="DIR",
        help="folder for the results; default: a new one, inspection, inspection-2, ...",
    )
    add_model_flags(add)
    add(
        "--html",
        action="store_true",
        help="write DIR/<stem>.html, an interactive report, and DIR/index.html if several",
    )
    add("--png", action="store_true", help="write DIR/<stem>.png, with a panel for each word (default)")
    add("--json", action="store_true", help="write DIR/<stem>.json, the numbers")
    add("--caption", metavar="TEXT", help="use this caption instead of the model's own")
    add("--num-captions", type=number(int, 1), default=1, metavar="K", help="captions in a report; default: 1")
    add("--trace", action="store_true", help="write DIR/<stem>.npz: all weights, for AttentionTrace.load")
    add(
        "--method",
        choices=("refined", "relevance", "raw", "perturbation"),
        default="refined",
        help="refined (default): relevance on the finer grid of an earlier encoder stage; relevance: what each patch "
        "contributed to the word, by gradients; raw: the attention weights; "
        "perturbation: how much hiding each patch lowers the word's probability (slow)",
    )
    add("--layer", type=_index, metavar="mean|K", help="decoder layer, from 0; default: all")
    add("--head", type=_head, metavar="mean|best|K", help="head, from 0, or the best at pointing; default: all")
    add_region_flags(add)
    add("--tiles", type=_tiles, default=(1, 1), metavar="RxC", help="split a large photo into RxC tiles")
    faithfulness.add_flags(parser)


def run(arguments: argparse.Namespace) -> int:
    faithfulness.check_flags(arguments)
    if arguments.annotations is None and not arguments.images:
        raise InputError("no photos given; name at least one: captioner inspect photo.jpg")
    folder = Path(arguments.output) if arguments.output else _new_folder()
    check_folder("-o", folder)
    if arguments.annotations is not None:
        return faithfulness.run(arguments, folder)
    failed = False

    def complain(message: str) -> None:
        nonlocal failed
        print(f"captioner: error: {message}", file=sys.stderr)
        failed = True

    finder = Finder(recursive=arguments.recursive, complain=complain)
    paths = [each.path for each in finder.find(arguments.images)]

    from captioner.cli.reports import INDEX, output_paths, write_index, write_report
    from captioner.inspection.report import IndexEntry
    from captioner.inspection.sheet import draw_sheet
    from captioner.pipeline import Captioner
    from captioner.records import UNFAMILIAR_SENTENCE, trace_record
    from captioner.search_options import SearchOptions

    captioner = Captioner.from_pretrained(arguments.model, device=arguments.device)
    selection = _selection(arguments, captioner.model.config.best_heads)
    folder.mkdir(parents=True, exist_ok=True)
    if arguments.caption and (unknown := captioner.tokenizer.unknown_words(arguments.caption)):
        named = ", ".join(word[:30] for word in unknown[:10]) + (", ..." if len(unknown) > 10 else "")
        print(f"captioner: the model does not know {named}: shown as <unk>", file=sys.stderr)
    search = SearchOptions(captions=arguments.num_captions).strategy()
    entries = []
    for path, target in zip(paths, output_paths(paths, folder), strict=True):
        try:
            trace = captioner.inspect(
                path,
                caption=arguments.caption,
                search=search,
                region=arguments.region,
                hide=arguments.hide,
                tiles=arguments.tiles,
                method=arguments.method,
            )
        except ImageError as error:
            complain(str(error))
            continue
        if arguments.method != trace.method:
            why = (
                "the encoder has no earlier stage" if arguments.tiles == (1, 1) else "the grid of tiles is fine already"
            )
            print(f"captioner: maps by relevance, not refined: {why}", file=sys.stderr)
        if trace.unfamiliar:
            print(f"captioner: {printable(path)}: {UNFAMILIAR_SENTENCE}", file=sys.stderr)
        written = []
        if arguments.html:
            written.append(Path(f"{target}.html"))
            write_report(trace, written[-1], photo=path, model=captioner.name, index=len(paths) > 1)
            note = UNFAMILIAR_SENTENCE.capitalize() if trace.unfamiliar else ""
            entries.append(IndexEntry(Path(path), trace.text, trace.confidence, written[-1].name, note=note))
        if arguments.png or not (arguments.html or arguments.json or arguments.trace):
            written.append(Path(f"{target}.png"))
            draw_sheet(trace, **selection).save(written[-1], format="PNG")
        if arguments.trace:
            written.append(Path(f"{target}.npz"))
            trace.save(written[-1])
        if arguments.json:
            record = {"path": path, "model": captioner.name, **trace_record(trace, **selection)}
            record |= {name: getattr(arguments, name) for name in ("region", "hide") if getattr(arguments, name)}
            written.append(Path(f"{target}.json"))
            written[-1].write_bytes(encode(f"{json.dumps(record, ensure_ascii=False)}\n"))
        print(f"{printable(path)}\t{' '.join(trace.text.splitlines())}")
        print(f"captioner: wrote {', '.join(printable(str(each)) for each in written)}", file=sys.stderr)
    if arguments.html and len(paths) > 1:
        write_index(folder / INDEX, entries, measure="confidence", model=captioner.name)
    return int(failed)


def _new_folder() -> Path:
    names = chain([DEFAULT_FOLDER], (f"{DEFAULT_FOLDER}-{number}" for number in count(2)))
    return next(folder for folder in map(Path, names) if not folder.exists())


def _selection(arguments: argparse.Namespace, best: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """The arguments of `AttentionTrace.select`. Raises ConfigError for flags that contradict each other."""
    if arguments.num_captions > 1 and (arguments.caption is not None or not arguments.html):
        raise ConfigError(f"--num-captions {arguments.num_captions}: is for --html without --caption; leave it out")
    if arguments.method == "perturbation" and (arguments.layer is not None or arguments.head is not None):
        raise ConfigError("--method perturbation: hides patches from all layers and heads; leave --layer, --head out")
    if arguments.head != "best":
        return {"layer": arguments.layer, "head": arguments.head, "heads": None}
    if arguments.layer is not None:
        raise ConfigError("--head best: names heads of several layers; leave --layer out")
    if not best:
        remedy = "choose mean or a number, or measure a model folder with inspect --annotations FILE --store"
        raise ConfigError(f"--head best: {arguments.model} has no heads measured; {remedy}")
    return {"layer": None, "head": None, "heads": best}


def _head(text: str) -> int | str | None:
    return text if text == "best" else _index(text)


def _tiles(text: str) -> tuple[int, int]:
    rows, _, columns = text.partition("x")
    if not (rows.isdecimal() and columns.isdecimal() and int(rows) and int(columns)):
        raise argparse.ArgumentTypeError(f"{text}: not ROWSxCOLUMNS, such as 2x3")
    return int(rows), int(columns)


def _index(text: str) -> int | None:
    if text == "mean":
        return None
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: give mean or a number, from 0") from None
