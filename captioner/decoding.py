"""Decoding in separate processes: a file that crashes or stalls its decoder fails alone."""

import multiprocessing
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any, TypeVar

from captioner.errors import ImageError
from captioner.images import MAX_JPEG_PIXELS, ImageSource, OpenedImage, open_image, source_name
from captioner.text import printable

SECONDS = 20.0
"""How long a file may take."""
START_SECONDS = 120.0
"""How long a process may take to start; it loads Python's main module again."""
SPAWN = multiprocessing.get_context("spawn")

Result = TypeVar("Result")


def full_size(opened: OpenedImage) -> OpenedImage:
    """Return the photo unchanged; a `convert` for `Decoders.decode`."""
    return opened


class Decoders:
    """Decoder processes that threads share; one that crashes or times out is replaced, and `on_replace` is called.

    The other options are those of `open_image`.
    """

    def __init__(
        self,
        count: int,
        *,
        allow_truncated: bool = False,
        max_pixels: int = MAX_JPEG_PIXELS,
        on_replace: Callable[[], object] | None = None,
    ) -> None:
        self._open = partial(open_image, allow_truncated=allow_truncated, max_pixels=max_pixels)
        self._on_replace = on_replace
        self._lock = threading.Lock()
        self._closed = False
        self._all = {_Decoder(self._open) for _ in range(count)}
        self._idle: SimpleQueue[_Decoder] = SimpleQueue()
        for decoder in self._all:
            self._idle.put(decoder)

    def decode(self, source: ImageSource, convert: Callable[[OpenedImage], Result], name: str | None = None) -> Result:
        """Decode a photo in an idle decoder and return `convert` of it; `convert` must be picklable.

        `name` replaces the source's in messages. Raises ImageError.
        """
        name = source_name(source) if name is None else printable(name)
        decoder = self._idle.get()
        try:
            if not decoder.process.is_alive():  # killed while it was idle
                decoder = self._replace(decoder)
            outcome = decoder.decode(source, convert, name)
        except TimeoutError:
            decoder = self._replace(decoder)
            raise ImageError(f"{name}: not decoded within {SECONDS:g} s; save it again", "timeout") from None
        except (EOFError, OSError):
            decoder = self._replace(decoder)
            raise ImageError(f"{name}: its decoder crashed; save it again", "decoder_crash") from None
        finally:
            self._idle.put(decoder)
        if isinstance(outcome, ImageError):
            raise outcome
        return outcome

    def close(self) -> None:
        """Kill the processes. A file that one of them is decoding fails."""
        with self._lock:
            self._closed = True
            for decoder in self._all:
                decoder.kill()

    def _replace(self, decoder: "_Decoder") -> "_Decoder":
        with self._lock:
            if self._closed:
                return decoder
            decoder.kill()
            new = _Decoder(self._open)
            self._all = self._all - {decoder} | {new}
        if self._on_replace is not None:
            self._on_replace()
        return new


class _Decoder:
    """A process that ends when its pipe is closed, even if its parent was killed."""

    def __init__(self, open: Callable[..., OpenedImage]) -> None:
        self._pipe, theirs = SPAWN.Pipe()
        self.process = SPAWN.Process(target=_decode_files, args=(theirs, open), daemon=True)
        self.process.start()
        self._started = False
        theirs.close()

    def decode(self, source: ImageSource, convert: Callable[[OpenedImage], Result], name: str) -> Result | ImageError:
        """Raises TimeoutError, and EOFError or OSError if the process dies."""
        if not self._started:
            if not self._pipe.poll(START_SECONDS):
                raise TimeoutError
            self._started = self._pipe.recv()
        self._pipe.send((source, convert, name))
        if not self._pipe.poll(SECONDS):
            raise TimeoutError
        outcome: Result | ImageError = self._pipe.recv()
        return outcome

    def kill(self) -> None:
        self.process.kill()
        self.process.join()


def _decode_files(pipe: "Connection[Any, Any]", open: Callable[..., OpenedImage]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # may be sent to all processes; the parent finishes its work
        signal.signal(number, signal.SIG_IGN)
    warnings.simplefilter("ignore")  # about odd metadata
    with suppress(OSError):  # the parent has ended
        pipe.send(True)
    while True:
        try:
            source, convert, name = pipe.recv()
            if sys.platform != "win32":
                signal.alarm(2 * int(SECONDS))  # kills this process if nobody else does
            try:
                outcome = convert(open(source, name=name))
            except ImageError as error:
                outcome = error
            pipe.send(outcome)
        except (EOFError, OSError):  # the parent has ended
            return
        if sys.platform != "win32":
            signal.alarm(0)
