"""captioner caption: describe images."""

import argparse
import signal
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from captioner.cli.flags import DECISIVE, add_caption_flags, check_flags, search_of
from captioner.errors import ConfigError, ImageError

if TYPE_CHECKING:
    from captioner.cli.inputs import Input
    from captioner.cli.output import Output
    from captioner.cli.records import Speller
    from captioner.pipeline import Captioned


@dataclass
class Tally:
    """What became of the inputs, told on standard error."""

    captioned: int = 0
    failed: int = 0
    skipped: int = 0
    unsure: int = 0

    def note(self, message: str) -> None:
        from tqdm import tqdm

        tqdm.write(f"captioner: {message}", file=sys.stderr)  # above the progress bar where there is one

    def complain(self, message: str) -> None:
        """Something is not as it should be, which shows in the exit code."""
        self.failed += 1
        self.note(message)

    def __str__(self) -> str:
        parts = [f"{self.captioned} captioned", f"{self.failed} failed"]
        parts += [f"{self.skipped} skipped"] if self.skipped else []
        return ", ".join(parts + ([f"{self.unsure} below --min-confidence"] if self.unsure else []))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_caption_flags(parser)


def run(arguments: argparse.Namespace) -> int:
    check_flags(arguments)

    from captioner.cli.inputs import Finder, nothing_found
    from captioner.cli.records import Speller

    tally = Tally()
    finder = Finder(
        recursive=arguments.recursive,
        null=arguments.null,
        stdin=sys.stdin.buffer,
        complain=tally.complain,
    )
    finder.check(arguments.inputs)
    inputs = finder.find(arguments.inputs)
    first = list(islice(inputs, 2))
    if not first:
        raise nothing_found(arguments.inputs)
    shard, shards = arguments.shard
    speller = Speller(
        format=arguments.format,
        model=arguments.model,
        prepend=arguments.prepend,
        min_confidence=arguments.min_confidence,
        alone=len(first) == 1,
    )
    output = _open_output(arguments, speller, tally)
    if output is None:
        tally.note(f"{arguments.output}: exists, so nothing is done (--existing skip)")
        return 0
    with closing(output):
        chosen: Iterator[Input] = islice(chain(first, inputs), shard - 1, None, shards)
        if arguments.format == "coco":
            chosen = _of_one_id(chosen, tally)
        work = _pending(chosen, output, tally)
        if arguments.dry_run:
            _preview(work, output, tally)
        else:
            _caption(work, arguments, output, tally)
    return 1 if tally.failed else 0


def _of_one_id(inputs: Iterable["Input"], tally: Tally) -> Iterator["Input"]:
    """The inputs whose id in COCO's results no earlier input has: a scorer would take one caption for both."""
    from captioner.cli.records import coco_id
    from captioner.text import printable

    taken: set[int | str] = set()
    for item in inputs:
        image_id = coco_id(item.path)
        if image_id in taken:
            tally.complain(f"{printable(item.path)}: another input has the COCO id {image_id}; rename the file")
        else:
            taken.add(image_id)
            yield item


def _pending(inputs: Iterable["Input"], output: "Output", tally: Tally) -> Iterator["Input"]:
    """The inputs that have still to be captioned."""
    for item in inputs:
        state = output.state(item)
        if state == "pending":
            yield item
        elif state == "failed":
            tally.failed += 1
        else:
            tally.skipped += 1


def _preview(work: Iterable["Input"], output: "Output", tally: Tally) -> None:
    from captioner.cli.sidecars import SidecarOutput
    from captioner.text import printable

    count = 0
    for count, item in enumerate(work, start=1):  # noqa: B007
        target = f" -> {printable(str(output.target(item)))}" if isinstance(output, SidecarOutput) else ""
        print(f"{printable(item.path)}{target}")
    tally.note(f"{count} to caption, {tally.failed} failed, {tally.skipped} skipped (--dry-run: nothing is written)")


def _caption(work: Iterable["Input"], arguments: argparse.Namespace, output: "Output", tally: Tally) -> None:
    from tqdm import tqdm

    from captioner.cli.journal import Stamp, stamp

    waiting: deque[tuple[Input, Stamp]] = deque()

    def sources() -> Iterator[str]:
        for item in work:
            waiting.append((item, stamp(item.path)))
            yield item.path

    done = False
    # A bar would run through results on the same terminal.
    hidden = not sys.stderr.isatty() or (arguments.output is None and sys.stdout.isatty())
    try:
        with _terminable():
            outcomes = _stream(sources(), arguments)
            for outcome in tqdm(outcomes, unit=" images", file=sys.stderr, disable=hidden):
                item, seen = waiting.popleft()
                output.add(item, seen, outcome)
                if isinstance(outcome, ImageError):
                    tally.complain(str(outcome))
                else:
                    tally.captioned += 1
                    tally.unsure += outcome.caption.confidence < arguments.min_confidence
            output.finish()
            done = True
    finally:
        if done:
            tally.note(str(tally))
        elif tally.captioned or tally.failed:
            tally.note(f"stopped: {tally}{'; --resume goes on' if arguments.output else ''}")


def _stream(sources: Iterator[str], arguments: argparse.Namespace) -> "Iterator[Captioned | ImageError]":
    from captioner.pipeline import Captioner

    search = search_of(arguments)
    captioner = Captioner.from_pretrained(arguments.model, device=arguments.device, int8=arguments.int8)
    return captioner.stream(
        sources,
        search=search,
        prefix=arguments.prefix,
        region=arguments.region,
        hide=arguments.hide,
        batch_size=arguments.batch_size,
        workers=arguments.workers,
        allow_truncated=arguments.allow_truncated,
    )


def _open_output(arguments: argparse.Namespace, speller: "Speller", tally: Tally) -> "Output | None":
    """Where results go; None where they are there and to be left alone. Raises ConfigError where they may not go."""
    from captioner.cli.journal import Journal
    from captioner.cli.output import FileOutput, StreamOutput
    from captioner.cli.sidecars import SidecarOutput
    from captioner.text import printable

    path = None if arguments.output is None else Path(arguments.output)
    settings = {name: str(getattr(arguments, name)) for name in DECISIVE}
    existing = arguments.existing
    if speller.format == "sidecar":
        if path is not None and path.exists() and not path.is_dir():
            raise ConfigError(f"{printable(str(path))}: not a folder; --format sidecar writes into one")
        journal = None if path is None else Journal(path, settings, resume=arguments.resume)
        return SidecarOutput(path, arguments.ext, speller, existing, journal, tally.note)
    if path is None:
        return StreamOutput(sys.stdout, speller)
    name = printable(str(path))
    if path.is_dir():
        raise ConfigError(f"{name}: a folder; name a file, or use --format sidecar")
    if path.exists() and not path.is_file():
        return StreamOutput(path.open("w", encoding="utf-8", newline="\n"), speller)
    journal = Journal(path, settings, resume=arguments.resume)
    if not journal.entries and existing != "overwrite":
        if journal.path.exists() and not arguments.resume:
            raise ConfigError(
                f"{name}: of a run that was interrupted; --resume goes on, --existing overwrite begins anew"
            )
        if existing != "append" and path.exists() and path.stat().st_size > 0:
            if existing == "skip":
                return None
            raise ConfigError(f"{name}: exists; choose --existing skip, overwrite or append, or name another file")
    return FileOutput(path, speller, existing, journal)


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends the program as an exception does, so that files are left whole."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
