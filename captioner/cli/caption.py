"""captioner caption: describe images."""

import argparse
import signal
import sys
import threading
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from itertools import chain, islice
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from captioner.cli.flags import UNRELATED, add_caption_flags, check_flags, search_of
from captioner.errors import ConfigError, ImageError
from captioner.text import printable

if TYPE_CHECKING:
    from captioner.cli.formats import Format
    from captioner.cli.inputs import Input
    from captioner.cli.journal import Stamp
    from captioner.cli.output import Output


class Tally:
    """Counts of what became of the inputs. Inputs are found in one thread and captioned in another."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def count(self, outcome: str) -> None:
        with self._lock:
            self.counts[outcome] += 1

    def note(self, message: str) -> None:
        """Print a line on standard error, above the progress bar if there is one."""
        from tqdm import tqdm

        tqdm.write(f"captioner: {message}", file=sys.stderr)

    def complain(self, message: str) -> None:
        """Report something that failed, which the exit code shows too."""
        self.count("failed")
        self.note(message)

    def __str__(self) -> str:
        parts = [f"{self.counts[outcome]} {outcome}" for outcome in ("captioned", "failed")]
        rest = ("skipped", "below --min-confidence")
        return ", ".join(parts + [f"{self.counts[outcome]} {outcome}" for outcome in rest if self.counts[outcome]])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_caption_flags(parser)


def run(arguments: argparse.Namespace) -> int:
    check_flags(arguments)

    from captioner.cli.formats import format_named
    from captioner.cli.inputs import STDIN, Finder, nothing_found, standard_input

    tally = Tally()
    finder = Finder(recursive=arguments.recursive, null=arguments.null, stdin=standard_input(), complain=tally.complain)
    inputs = finder.find(arguments.inputs)
    # A stream is several inputs: whether it has a second one may take a while to learn.
    streamed = STDIN in arguments.inputs
    first = list(islice(inputs, 1 if streamed else 2))
    if not first:
        raise nothing_found(arguments.inputs)
    shard, shards = arguments.shard
    chosen = islice(chain(first, inputs), shard - 1, None, shards)

    format = format_named(arguments.format, single=len(first) == 1 and not streamed)
    output = _open_output(arguments, format, tally)
    if output is None:
        tally.note(f"{printable(arguments.output)}: exists, so nothing is done (--existing skip)")
        return 0
    with closing(output):
        pending = _pending(_with_distinct_ids(chosen, tally) if format.name == "coco" else chosen, output, tally)
        if arguments.dry_run:
            _preview(pending, output, tally)
        else:
            _caption(pending, output, arguments, tally)
    return 1 if tally.counts["failed"] else 0


def _open_output(arguments: argparse.Namespace, format: "Format", tally: Tally) -> "Output | None":
    """Where results go; None if they exist and are to be kept. Raises ConfigError where they must not go."""
    from captioner.cli.journal import Journal
    from captioner.cli.output import FileOutput, StreamOutput
    from captioner.cli.sidecars import SidecarOutput

    path, existing = None if arguments.output is None else Path(arguments.output), arguments.existing
    settings = {name: str(value) for name, value in vars(arguments).items() if name not in UNRELATED}
    if format.name == "sidecar":
        if path is not None and path.exists() and not path.is_dir():
            raise ConfigError(f"{printable(str(path))}: not a folder; --format sidecar writes into one")
        journal = None if path is None else Journal(path, settings, resume=arguments.resume)
        return SidecarOutput(path, arguments.ext, format, existing, journal, tally.note)
    if path is None:
        return StreamOutput(sys.stdout, format)
    name = printable(str(path))
    if path.is_dir():
        raise ConfigError(f"{name}: a folder; name a file, or use --format sidecar")
    if path.exists() and not path.is_file():
        return StreamOutput(path.open("w", encoding="utf-8", errors="backslashreplace", newline="\n"), format)
    journal = Journal(path, settings, resume=arguments.resume)
    if not journal.entries and existing != "overwrite":
        if journal.path.exists() and not arguments.resume:
            raise ConfigError(
                f"{name}: of a run that was interrupted; continue it with --resume, or replace it with --existing "
                "overwrite"
            )
        if existing != "append" and path.exists() and path.stat().st_size > 0:
            if existing == "skip":
                return None
            raise ConfigError(f"{name}: exists; choose --existing skip, overwrite or append, or name another file")
    return FileOutput(path, format, existing, journal)


def _with_distinct_ids(inputs: Iterable["Input"], tally: Tally) -> Iterator["Input"]:
    """The inputs without those whose COCO id an earlier one has: a scorer would take one caption for both."""
    from captioner.cli.formats import coco_id

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
        else:
            tally.count("failed" if state == "failed" else "skipped")


def _preview(pending: Iterable["Input"], output: "Output", tally: Tally) -> None:
    from captioner.cli.sidecars import SidecarOutput

    for item in pending:
        tally.count("to caption")
        target = f" -> {printable(str(output.target(item)))}" if isinstance(output, SidecarOutput) else ""
        print(f"{printable(item.path)}{target}")
    counts = [f"{tally.counts[outcome]} {outcome}" for outcome in ("to caption", "failed", "skipped")]
    tally.note(f"{', '.join(counts)} (--dry-run: nothing is written)")


def _caption(pending: Iterable["Input"], output: "Output", arguments: argparse.Namespace, tally: Tally) -> None:
    from tqdm import tqdm

    from captioner.cli.formats import Result
    from captioner.cli.journal import stamp
    from captioner.pipeline import Captioner

    reading: deque[tuple[Input, Stamp]] = deque()

    def sources() -> Iterator[str]:
        for item in pending:
            reading.append((item, stamp(item.path)))
            yield item.path

    # A bar would run through results on the same terminal.
    hidden = not sys.stderr.isatty() or (arguments.output is None and sys.stdout.isatty())
    try:
        with _exit_on_sigterm():
            search = search_of(arguments)
            captioner = Captioner.from_pretrained(arguments.model, device=arguments.device, int8=arguments.int8)
            outcomes = captioner.stream(
                sources(),
                search=search,
                prefix=arguments.prefix,
                region=arguments.region,
                hide=arguments.hide,
                batch_size=arguments.batch_size,
                workers=arguments.workers,
                allow_truncated=arguments.allow_truncated,
            )
            for outcome in tqdm(outcomes, unit=" images", file=sys.stderr, disable=hidden):
                item, seen = reading.popleft()
                result = Result.of(
                    item.path,
                    outcome,
                    model=arguments.model,
                    prepend=arguments.prepend,
                    min_confidence=arguments.min_confidence,
                )
                output.add(item, seen, result)
                if isinstance(outcome, ImageError):
                    tally.complain(str(outcome))
                    continue
                tally.count("captioned")
                if outcome.caption.confidence < arguments.min_confidence:
                    tally.count("below --min-confidence")
            output.finish()
    except BaseException:
        if tally.counts["captioned"] or tally.counts["failed"]:
            tally.note(f"stopped: {tally}{'; continue with --resume' if arguments.output else ''}")
        raise
    tally.note(str(tally))


@contextmanager
def _exit_on_sigterm() -> Iterator[None]:
    """Turn SIGTERM into SystemExit, so that files are left whole."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
