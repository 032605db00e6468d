"""captioner caption: describe images."""

import argparse
import os
import signal
import sys
import threading
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from itertools import chain, islice
from types import FrameType

from tqdm import tqdm

from captioner.cli.finishing import Finishing
from captioner.cli.flags import add_caption_flags, check_flags, search_of
from captioner.cli.formats import FORMAT_OF_SUFFIX, Result, format_named, output_format
from captioner.cli.inputs import STDIN, Finder, Input
from captioner.cli.journal import Stamp, stamp
from captioner.cli.output import Output, SidecarOutput, exclusive, open_output
from captioner.errors import ImageError
from captioner.text import printable

UNFAMILIAR = "unlike the photos this model was trained on; its caption may be wrong"
add_arguments = add_caption_flags


class Tally:
    """Counts of outcomes. One thread finds the inputs, another captions them."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def count(self, outcome: str) -> None:
        with self._lock:
            self.counts[outcome] += 1

    def note(self, message: str) -> None:
        """Print a line on standard error, above the progress bar if there is one."""
        tqdm.write(f"captioner: {message}", file=sys.stderr)

    def complain(self, message: str) -> None:
        """Report a failure, which the exit code shows too."""
        self.count("failed")
        self.note(message)

    def __str__(self) -> str:
        always, others = ("captioned", "failed"), ("skipped", "below --min-confidence")
        shown = (*always, *(outcome for outcome in others if self.counts[outcome]))
        return ", ".join(f"{self.counts[outcome]} {outcome}" for outcome in shown)


def run(arguments: argparse.Namespace) -> int:
    arguments.format = output_format(arguments.format, arguments.output)
    check_flags(arguments)
    with exclusive(arguments):
        return _run(arguments)


def _run(arguments: argparse.Namespace) -> int:
    tally = Tally()
    finder = Finder(recursive=arguments.recursive, null=arguments.null, complain=tally.complain, note=tally.note)
    inputs = finder.find(arguments.inputs)
    # Standard input counts as several inputs, so that the first need not wait for the second.
    streamed = STDIN in arguments.inputs
    first = list(islice(inputs, 1 if streamed else 2))
    suffix = os.path.splitext(arguments.output or "")[1].lower()
    if FORMAT_OF_SUFFIX.get(suffix, arguments.format) != arguments.format:
        tally.note(f"{printable(arguments.output)}: written as {arguments.format}, whatever its extension says")
    format = format_named(arguments.format, single=len(first) == 1 and not streamed)
    output = open_output(arguments, format)
    if output is None:
        reason = (
            "complete, so there is nothing to resume"
            if arguments.resume
            else "exists, so nothing is done (--existing skip)"
        )
        tally.note(f"{printable(arguments.output)}: {reason}")
        return 0
    shard, shards = arguments.shard
    with closing(output):
        pending = _pending(islice(chain(first, inputs), shard - 1, None, shards), output, tally)
        if arguments.dry_run:
            _preview(pending, output, tally)
        else:
            _caption(pending, output, arguments, tally)
    return 1 if tally.counts["failed"] else 0


def _pending(inputs: Iterable[Input], output: Output, tally: Tally) -> Iterator[Input]:
    """The inputs that still have to be captioned."""
    claimed: set[int] = set()  # hashes, which are smaller than names
    for item in inputs:
        claim = output.claim(item)
        if claim is not None and hash(claim) in claimed:
            problem = f"another input has {printable(claim)}"
            tally.complain(f"{printable(item.path)}: {problem}; rename the file, or use another --format")
            continue
        claimed.add(hash(claim))
        state = output.state(item)
        if state == "pending":
            yield item
        else:
            tally.count("failed" if state == "failed" else "skipped")


def _preview(pending: Iterable[Input], output: Output, tally: Tally) -> None:
    for item in pending:
        tally.count("to caption")
        target = f" -> {printable(str(output.target(item)))}" if isinstance(output, SidecarOutput) else ""
        print(f"{printable(item.path)}{target}")
    counts = ", ".join(f"{tally.counts[outcome]} {outcome}" for outcome in ("to caption", "failed", "skipped"))
    tally.note(f"{counts} (--dry-run: nothing is written)")


def _caption(pending: Iterable[Input], output: Output, arguments: argparse.Namespace, tally: Tally) -> None:
    from captioner.data.features import hash_weights
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
            finishing = Finishing.of(arguments)
            search = finishing.search(search_of(arguments))
            captioner = Captioner.from_pretrained(arguments.model, device=arguments.device, int8=arguments.int8)
            if output.journal:
                output.journal.check_weights(hash_weights(captioner.model.state_dict()))
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
                least = arguments.min_confidence
                result = Result.of(item.path, outcome, arguments.model, arguments.prepend, least, finishing)
                output.add(item, seen, result)
                if isinstance(outcome, ImageError):
                    tally.complain(str(outcome))
                    continue
                tally.count("captioned")
                if outcome.caption.unfamiliar:
                    tally.note(f"{printable(item.path)}: {UNFAMILIAR}")
                if outcome.caption.confidence < least:
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
