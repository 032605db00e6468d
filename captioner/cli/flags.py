"""The flags of `captioner caption`, and those for search, batches and devices that other verbs share."""

import argparse
import os
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, TypeVar

from captioner.errors import ConfigError, ResourceError
from captioner.model_files import BUNDLED, existing_model
from captioner.search_options import DEFAULT_BEAM, LENGTHS, SearchOptions, parse_region

if TYPE_CHECKING:
    from captioner.generation import Strategy
    from captioner.pipeline import Captioner

UNRELATED = {"verb", "debug", "inputs", "recursive", "null", "shard", "dry_run", "output", "resume"}
UNRELATED |= {"device", "batch_size", "workers", "engine", "isolate", "quiet", "verbose", "watch"}
"""Flags that results do not depend on, so that a run can be resumed with other values."""

Number = TypeVar("Number", int, float)


def add_caption_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `captioner caption`."""
    parser.description = (
        "Describe images. Results go to standard output or OUT, everything else to standard error. Unusable images are "
        "reported and skipped; the exit code is then 1, and 3 if there is no input at all."
    )
    add = parser.add_argument
    add(
        "inputs",
        metavar="INPUT",
        nargs="+",
        help="an image, a folder, a tar or Parquet file of images, a glob (** for any depth), @list.txt or - (standard "
        "input): a path per line",
    )
    add("-r", "--recursive", action="store_true", help="search subfolders too; links to folders are not followed")
    add("-0", dest="null", action="store_true", help="paths on standard input end with NUL, as from find -print0")
    add("--watch", action="store_true", help="go on with images that arrive in the folders, until a signal")
    add("--shard", type=_shard, default=(1, 1), metavar="I/N", help="only every Nth input, from the Ith: 1/4 ... 4/4")
    add("--dry-run", action="store_true", help="print what would be captioned; load and write nothing")
    shown = parser.add_mutually_exclusive_group().add_argument
    shown("-q", "--quiet", action="store_true", help="report failures only: no progress, no counts")
    shown("-v", "--verbose", action="store_true", help="also report the device and each photo")

    add = parser.add_argument_group("output").add_argument
    add(
        "--format",
        choices=("text", "jsonl", "csv", "coco", "parquet", "sidecar"),
        help="by default that of OUT's extension (.json: coco), else text; text: the caption, after "
        "its path if there are several inputs; jsonl: a record per input, also if it failed; csv: a row per caption; "
        "coco: COCO's results, written at the end, with the numbers that end file names as ids, or paths where they "
        "repeat; parquet: the records of jsonl, written to OUT at the end; sidecar: photo.txt beside photo.jpg, or in "
        "the folder OUT, which mirrors the tree",
    )
    add("-o", "--output", metavar="OUT", help="a file, or the folder of sidecars; .OUT.journal.jsonl during the run")
    existing = ("skip", "overwrite", "append", "error")
    add("--existing", choices=existing, default="error", help="what to do if OUT or a sidecar exists; default: error")
    add("--resume", action="store_true", help="continue an interrupted run; the later line of a changed input counts")
    add("--ext", default=".txt", metavar=".EXT", help="extension of sidecars; default: .txt")
    add("--embed", choices=("xmp", "iptc"), help="write the caption into a copy of the photo, in the folder OUT")
    add("--in-place", action="store_true", help="--embed: write it into the photo itself")
    add(
        "--min-confidence",
        type=number(float, 0, 1),
        default=0.0,
        metavar="P",
        help="leave out captions of less confidence (0 to 1); jsonl keeps them, with the note low_confidence",
    )

    add_text_flags(parser)
    add_search_flags(parser)
    add = parser.add_argument_group("photos").add_argument
    add("--prefix", default="", metavar="TEXT", help="the first words of every caption, such as 'a photo of'")
    add_region_flags(add)
    add("--allow-truncated", action="store_true", help="caption truncated files, as far as they can be read")
    slow = "an image that crashes its decoder or takes over 20 s fails alone"
    add("--isolate", action="store_true", help=f"decode in --workers processes instead of threads: {slow}")
    add_machine_flags(parser)


def add_text_flags(parser: argparse.ArgumentParser) -> None:
    """Flags that change the text of captions; JSONL keeps the model's own under `captions`."""
    add = parser.add_argument_group("text").add_argument
    add("--sentence", action="store_true", help="begin with a capital and end with a period")
    add("--trigger", default="", metavar="WORD", help="put this word and a comma before every caption")
    add("--prepend", default="", metavar="TEXT", help="put this before every caption, verbatim")
    add("--replace", type=_pair, action="append", default=[], metavar="A=B", help="write B for the word or phrase A")
    add("--blacklist", type=_words, default=(), metavar="WORDS", help="leave out these words or phrases (a,b,c)")
    tags = "write up to N object words of the best captions, not the caption; jsonl: also `tags`, with confidence"
    add("--tags", type=number(int, 1), default=0, metavar="N", help=tags)


def add_region_flags(add: Callable[..., object]) -> None:
    """Flags that hide patches from the caption."""
    box = "X,Y,W,H"
    add("--region", type=region, metavar=box, help="describe only this part: fractions of the photo, 0,0 top left")
    add("--hide", type=region, metavar=box, help="hide the patches of this part; others may still show traces of it")


def add_search_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that `search_of` reads."""
    group = parser.add_argument_group("search")
    how = group.add_mutually_exclusive_group().add_argument
    how("--beam", type=number(int, 1), metavar="W", help=f"beam search of this width; default: {DEFAULT_BEAM}")
    how("--greedy", action="store_true", help="take the most probable word at every step: faster")
    how("--sample", action="store_true", help="draw words at random, for variety")
    add = group.add_argument
    add("--temperature", type=number(float, 0), metavar="T", help="--sample: below 1 safer, above 1 wilder; default: 1")
    add("--top-p", type=number(float, 0, 1), metavar="P", help="--sample: the likeliest words of sum P; default: 0.9")
    add("--seed", type=int, metavar="N", help="--sample: the seed of the random draws; default: 0")
    add("--num-captions", type=number(int, 1), default=1, metavar="K", help="captions per image; default: 1")
    lengths = "; ".join(f"{name}: {low} to {high} tokens, penalty {a:g}" for name, (low, high, a) in LENGTHS.items())
    learned = "a model trained with data.length_control writes the length that it has learned"
    add("--length", choices=tuple(LENGTHS), help=f"{lengths}; default: medium; {learned}")
    add("--style", metavar="NAME", help="write in this style, which the model has learned (data.control)")
    add("--max-length", type=number(int, 1), metavar="T", help="maximum number of tokens, the end token included")
    add(
        "--no-repeat-ngram",
        type=number(int, 0),
        metavar="N",
        help="no run of N tokens comes twice; 0 allows all; default: models of whole words repeat no pair of words and "
        "name no object twice",
    )
    add("--length-penalty", type=float, metavar="A", help="beam search: above 1 favors long captions, below 1 short")
    consensus = "beam search: the most probable caption, not the one that has most in common with the other beams"
    add("--no-consensus", dest="consensus", action="store_false", help=consensus)


def add_model_flags(add: Callable[..., object]) -> None:
    """--model and --device."""
    add(
        "--model", type=existing_model, default=BUNDLED, metavar="M", help="a model folder or a .ckpt; default: bundled"
    )
    names = "auto, cpu, cuda, cuda:N or mps; `caption` also takes several, such as cuda:0,1; default: auto"
    add("--device", default="auto", help=names)


def add_machine_flags(parser: argparse.ArgumentParser) -> None:
    """Flags for model, device and batches."""
    add = parser.add_argument_group("model and machine").add_argument
    add_model_flags(add)
    add("--int8", action="store_true", help="8-bit weights, on x86 processors: faster, but a few captions change")
    add("--batch-size", type=_batch_size, metavar="auto|N", help="images per batch; default: auto")
    add("--workers", type=number(int, 1), default=2, metavar="N", help="threads that read photos; default: 2")
    add("--engine", choices=("local", "ray"), default="local", help="ray: on a Ray cluster; default: local")


def check_flags(arguments: argparse.Namespace) -> None:
    """Raise ConfigError for flags of `captioner caption` that contradict each other."""
    from captioner.images import IMAGE_EXTENSIONS

    ext = arguments.ext
    if arguments.resume and arguments.output is None and arguments.format != "sidecar":
        raise ConfigError("--resume: the journal is kept beside OUT; add -o")
    if arguments.embed and (arguments.format != "text" or arguments.existing == "append"):
        raise ConfigError("--embed: writes photos; leave out --format and --existing append")
    if arguments.in_place + bool(arguments.embed and arguments.output) != bool(arguments.embed):
        raise ConfigError("--embed and --in-place: --embed needs a folder for the copies (-o) or --in-place")
    if arguments.watch and (arguments.format in ("coco", "parquet") or arguments.dry_run):
        other = "--dry-run" if arguments.dry_run else f"--format {arguments.format}"
        raise ConfigError(f"--watch and {other}: choose one; --watch never comes to an end")
    if arguments.watch and arguments.engine != "local":
        raise ConfigError(f"--watch and --engine {arguments.engine}: choose one; the engine fills whole batches")
    if arguments.watch and not all(map(os.path.isdir, arguments.inputs)):
        raise ConfigError("--watch: name folders only")
    if ext != ".txt" and arguments.format != "sidecar":
        raise ConfigError(f"--ext {ext}: is for sidecars; add --format sidecar")
    if not ext.startswith(".") or ext == "." or set(ext) & set("/\\\0") or ext.lower() in IMAGE_EXTENSIONS:
        raise ConfigError(f"--ext {ext}: not an extension for texts; give one such as .txt or .caption")
    check_machine_flags(arguments)
    check_search_flags(arguments)


def check_machine_flags(arguments: argparse.Namespace) -> None:
    if arguments.engine != "local" and arguments.verb != "caption":
        raise ConfigError(f"--engine {arguments.engine}: is for captioner caption; use local")
    if arguments.engine == "ray" and find_spec("ray") is None:
        raise ResourceError('--engine ray needs Ray; pip install "captioner[ray]"')
    devices = devices_of(arguments.device)
    if len(devices) > 1 and (arguments.engine != "local" or arguments.verb != "caption" or arguments.watch):
        when = "captioner caption alone, without --watch and --engine"
        raise ConfigError(f"--device {arguments.device}: several are for {when}; use {devices[0]}")


def devices_of(names: str) -> tuple[str, ...]:
    """Devices of a list: `cuda:0,1` is cuda:0 and cuda:1."""
    first, *others = names.split(",")
    kind = first.partition(":")[0]
    return first, *(f"{kind}:{each}" if each.isdecimal() else each for each in others)


def check_search_flags(arguments: argparse.Namespace) -> None:
    for name in ("temperature", "top_p", "seed"):
        if getattr(arguments, name) is not None and not arguments.sample:
            raise ConfigError(f"--{name.replace('_', '-')}: is for sampling; add --sample")
    if arguments.greedy and arguments.num_captions > 1:
        raise ConfigError(f"--num-captions {arguments.num_captions}: greedy search finds one; use --beam or --sample")
    beam = not (arguments.greedy or arguments.sample)
    if arguments.length_penalty is not None and not beam:
        raise ConfigError("--length-penalty: is for beam search; leave out --greedy and --sample")
    if not arguments.consensus and not beam:
        raise ConfigError("--no-consensus: is for beam search; leave out --greedy and --sample")


def styled_captioner(arguments: argparse.Namespace) -> tuple["Captioner", "Strategy"]:
    """The captioner in the style and length that the flags choose, and its search."""
    from captioner.device import find_device
    from captioner.pipeline import Captioner

    search_of(arguments, learned_length=True)  # what never fits together is an error before the model is loaded
    first, *others = devices_of(arguments.device)
    for device in others:
        find_device(device)
    captioner = Captioner.from_pretrained(arguments.model, device=first, int8=arguments.int8)
    learned = bool(captioner.tokenizer.controls("length"))
    styled = captioner.styled(arguments.style, arguments.length if learned else None)
    return styled, search_of(arguments, learned_length=learned)


def search_of(arguments: argparse.Namespace, *, learned_length: bool = False) -> "Strategy":
    """The search that the flags describe. Raises ConfigError where they do not fit together."""
    if arguments.length == "short" and not learned_length and (arguments.greedy or arguments.sample):
        raise ConfigError("--length short: works by beam search's length penalty; leave out --greedy and --sample")
    return SearchOptions(
        method="greedy" if arguments.greedy else "sample" if arguments.sample else "beam",
        length=arguments.length or "medium",
        learned_length=learned_length,
        captions=arguments.num_captions,
        beam=arguments.beam,
        max_length=arguments.max_length,
        length_penalty=arguments.length_penalty,
        consensus=arguments.consensus,
        no_repeat_ngram=arguments.no_repeat_ngram,
        temperature=1.0 if arguments.temperature is None else arguments.temperature,
        top_p=0.9 if arguments.top_p is None else arguments.top_p,
        seed=arguments.seed or 0,
    ).strategy()


def number(kind: type[Number], low: float, high: float = float("inf")) -> Callable[[str], Number]:
    """A type for argparse: a number between bounds, which are included."""

    def read(text: str) -> Number:
        number = kind(text)
        if not low <= number <= high:
            bounds = f"{low} or more" if high == float("inf") else f"from {low} to {high}"
            raise argparse.ArgumentTypeError(f"{text}: not {bounds}")
        return number

    read.__name__ = kind.__name__  # argparse's messages name it
    return read


def _pair(text: str) -> tuple[str, str]:
    old, equals, new = (part.strip() for part in text.partition("="))
    if not (old and equals):
        raise argparse.ArgumentTypeError(f"{text}: not A=B, such as grey=gray")
    return old, new


def _words(text: str) -> tuple[str, ...]:
    return tuple(filter(None, map(str.strip, text.split(","))))


def _batch_size(text: str) -> int | None:
    return None if text == "auto" else number(int, 1)(text)


def _shard(text: str) -> tuple[int, int]:
    shard, _, shards = text.partition("/")
    if not (shard.isdecimal() and shards.isdecimal() and 1 <= int(shard) <= int(shards)):
        raise argparse.ArgumentTypeError(f"{text}: not I/N with I from 1 to N")
    return int(shard), int(shards)


def region(text: str) -> tuple[float, float, float, float]:
    """A type for argparse: x, y, width, height as fractions of a photo."""
    try:
        return parse_region(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
