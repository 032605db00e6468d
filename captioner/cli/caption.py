"""captioner caption: describe images."""

import argparse
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from functools import cache, partial
from itertools import chain, islice
from typing import TYPE_CHECKING

from captioner.cli.finishing import Finishing
from captioner.cli.flags import add_caption_flags, check_flags, devices_of, styled_captioner
from captioner.cli.formats import FORMAT_OF_SUFFIX, Result, format_named, output_format
from captioner.cli.inputs import STDIN, Finder, Input
from captioner.cli.journal import Stamp, stamp
from captioner.cli.output import Output, SidecarOutput, exclusive, open_output
from captioner.cli.terminal import Interruption, Progress, Tally
from captioner.errors import ImageError
from captioner.records import UNFAMILIAR_SENTENCE
from captioner.text import printable

if TYPE_CHECKING:
    from captioner.caption import Captioned
    from captioner.files import Inner

add_arguments = add_caption_flags


def run(arguments: argparse.Namespace) -> int:
    arguments.format = output_format(arguments.format, arguments.output)
    check_flags(arguments)
    with exclusive(arguments):
        return _run(arguments)


def _run(arguments: argparse.Namespace) -> int:
    tally = Tally(quiet=arguments.quiet)
    complain = cache(tally.complain) if arguments.watch else tally.complain  # once, not at every look
    finder = Finder(recursive=arguments.recursive, null=arguments.null, inside=True, complain=complain, note=tally.note)
    interruption = Interruption()
    if arguments.watch:
        inputs = finder.watch(arguments.inputs, interruption.requested)
    else:
        inputs = finder.find(arguments.inputs)
    # Standard input counts as several inputs, so that the first need not wait for the second.
    streamed = STDIN in arguments.inputs or arguments.watch
    first = list(islice(inputs, 0 if arguments.watch else 1 if streamed else 2))
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

    def shard(inputs: Iterator[Input]) -> Iterator[Input]:
        first, step = arguments.shard
        return islice(inputs, first - 1, None, step)

    def total() -> int:
        again = Finder(recursive=arguments.recursive, inside=True, counting=True, complain=lambda _: None)
        return sum(1 for _ in shard(again.find(arguments.inputs)))

    with closing(output):
        pending = _pending(shard(chain(first, inputs)), output, tally)
        if arguments.dry_run:
            _preview(pending, output, tally)
        else:
            _caption(pending, output, arguments, tally, interruption, None if streamed else total)
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


def _caption(
    pending: Iterable[Input],
    output: Output,
    arguments: argparse.Namespace,
    tally: Tally,
    interruption: Interruption,
    total: Callable[[], int] | None,
) -> None:
    from captioner.data.features import hash_weights
    from captioner.distributed.jobs import CaptionJob
    from captioner.pipeline import Captioner

    reading: deque[tuple[Input, Stamp]] = deque()

    def sources() -> "Iterator[str | Inner]":
        for item in pending:
            reading.append((item, stamp(item.path)))
            yield item.source

    try:
        with interruption.handled():
            finishing = Finishing.of(arguments)
            captioner, search = styled_captioner(arguments)
            search = finishing.search(search)
            if arguments.min_confidence and not captioner.model.config.confidence:
                tally.note("--min-confidence: this model's confidence is not calibrated: it is the words' probability")
            if arguments.verbose:
                tally.note(f"model {arguments.model} on {captioner.device}")
            if output.journal:
                output.journal.check_weights(hash_weights(captioner.model.state_dict()))
            stream = partial(
                Captioner.stream,
                search=search,
                prefix=arguments.prefix,
                region=arguments.region,
                hide=arguments.hide,
                batch_size=arguments.batch_size,
                workers=arguments.workers,
                allow_truncated=arguments.allow_truncated,
                isolate=arguments.isolate,
            )

            def job(device: str) -> CaptionJob:
                there = argparse.Namespace(**vars(arguments) | {"device": device})
                return CaptionJob(
                    load=partial(styled_captioner, there),
                    stream=stream,
                    batch_size=arguments.batch_size,
                    workers=arguments.workers,
                    folder=os.getcwd(),
                )

            devices = devices_of(arguments.device)
            if arguments.engine == "ray":
                from captioner.distributed.ray_captioning import ray_stream

                outcomes = ray_stream(sources(), job(arguments.device), stop=interruption.requested)
            elif len(devices) > 1:
                from captioner.distributed.device_captioning import device_stream

                jobs = [(device, job(device)) for device in devices]
                outcomes = device_stream(sources(), jobs, stop=interruption.requested)
            else:
                outcomes = stream(captioner, sources(), stop=interruption.requested)
            # A bar would run through results on the same terminal.
            results_shown = arguments.output is None and sys.stdout.isatty()
            with closing(Progress(tally, results_shown=results_shown, total=total)) as progress:
                for outcome in outcomes:
                    item, seen = reading.popleft()
                    least = arguments.min_confidence
                    result = Result.of(item.path, outcome, arguments.model, arguments.prepend, least, finishing)
                    try:
                        output.add(item, seen, result)
                        if isinstance(outcome, ImageError):
                            raise outcome
                        _report(item, outcome, arguments, tally)
                    except ImageError as error:
                        tally.complain(str(error))
                    progress.advance()
            interruption.check()
            output.finish()
    except BaseException:
        if tally.counts["captioned"] or tally.counts["failed"]:
            tally.warn(f"stopped: {tally}{'; continue with --resume' if arguments.output else ''}")
        raise
    tally.note(str(tally))


def _report(item: Input, captioned: "Captioned", arguments: argparse.Namespace, tally: Tally) -> None:
    tally.count("captioned")
    if arguments.verbose:
        notes = f" ({', '.join(captioned.notes)})" if captioned.notes else ""
        tally.note(f"{printable(item.path)}: {captioned.width} x {captioned.height}{notes}")
    if captioned.caption.unfamiliar:
        tally.note(f"{printable(item.path)}: {UNFAMILIAR_SENTENCE}")
    if captioned.caption.confidence < arguments.min_confidence:
        tally.count("below --min-confidence")
