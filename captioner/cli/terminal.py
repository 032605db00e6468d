"""Messages and progress of a run on standard error, and its handling of signals."""

import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from tqdm import tqdm

from captioner.errors import CaptionerError, Interrupted

SECONDS = 30.0
"""Time between two lines of progress where there is no terminal."""


class Tally:
    """Counts of outcomes, and messages. One thread finds the inputs, another captions them."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.counts: Counter[str] = Counter()
        self.quiet = quiet
        self._lock = threading.Lock()

    def count(self, outcome: str) -> None:
        with self._lock:
            self.counts[outcome] += 1

    def note(self, message: str) -> None:
        """Print a line, above the progress bar if there is one; nothing with `quiet`."""
        if not self.quiet:
            self.warn(message)

    def warn(self, message: str) -> None:
        """Print a line, whatever `quiet` says."""
        tqdm.write(f"captioner: {message}", file=sys.stderr)

    def complain(self, message: str) -> None:
        """Report a failure, which the exit code shows too."""
        self.count("failed")
        self.warn(message)

    def __str__(self) -> str:
        always, others = ("captioned", "failed"), ("skipped", "below --min-confidence")
        shown = (*always, *(outcome for outcome in others if self.counts[outcome]))
        return ", ".join(f"{self.counts[outcome]} {outcome}" for outcome in shown)


class Progress:
    """A bar on a terminal, else a line every 30 seconds; with the rate, and the time left once inputs are counted.

    Results that go to the same terminal are progress enough. `total` counts the inputs in a thread of its own.
    """

    def __init__(self, tally: Tally, *, results_shown: bool, total: Callable[[], int] | None) -> None:
        terminal = sys.stderr.isatty()
        self._tally, self._lines = tally, not terminal and not tally.quiet
        self._bar = tqdm(unit=" images", file=sys.stderr, disable=not terminal or results_shown or tally.quiet)
        self._start = self._shown = time.monotonic()
        self._done = 0
        self._total: int | None = None
        if total is not None and (self._lines or not self._bar.disable):
            threading.Thread(target=self._count, args=(total,), daemon=True).start()

    def advance(self) -> None:
        """Count one more outcome."""
        self._done += 1
        left = self._left()
        if left is not None:
            self._bar.total = self._done + left
        self._bar.update()
        now = time.monotonic()
        if self._lines and now - self._shown >= SECONDS:
            self._shown = now
            rate = self._done / (now - self._start)
            end = "" if left is None else f", about {tqdm.format_interval(left / rate)} left"
            self._tally.note(f"{self._tally}; {rate:.3g} images/s{end}")

    def close(self) -> None:
        self._bar.close()

    def _left(self) -> int | None:
        """How many inputs are neither done nor skipped."""
        return None if self._total is None else max(0, self._total - self._done - self._tally.counts["skipped"])

    def _count(self, total: Callable[[], int]) -> None:
        with suppress(CaptionerError, OSError):  # the run itself reports it
            self._total = total()


class Interruption:
    """SIGINT or SIGTERM: the first lets the batch in progress finish, the second stops at once."""

    def __init__(self) -> None:
        self.number: int | None = None

    def requested(self) -> bool:
        return self.number is not None

    def check(self) -> None:
        """Raise Interrupted after a signal."""
        if self.number is not None:
            interrupted = Interrupted("interrupted")
            interrupted.exit_code = 128 + self.number
            raise interrupted

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Handle the signals while the block runs."""
        before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        line = f"captioner: {signal.Signals(number).name}: finishing this batch; send it again to stop at once\n"
        with suppress(OSError, ValueError):  # unbuffered: the signal may have come within a print
            os.write(sys.stderr.fileno(), line.encode())
