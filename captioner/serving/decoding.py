"""Decoding in separate processes: a file that crashes or stalls its decoder fails alone."""

import asyncio
import multiprocessing
import signal
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any, TypeVar

from captioner.errors import ImageError
from captioner.images import OpenedImage, open_image
from captioner.text import printable

SECONDS = 20.0
"""How long a file may take."""
SPAWN = multiprocessing.get_context("spawn")

Result = TypeVar("Result")


@dataclass(frozen=True)
class File:
    """An uploaded file; its name is used in messages only."""

    name: str
    data: bytes


def full_size(opened: OpenedImage) -> OpenedImage:
    """For `Decoders.decode`: the photo as it is."""
    return opened


class Decoders:
    """Decoder processes, each with a thread that waits for it; one that crashes or times out is replaced."""

    def __init__(self, count: int, max_pixels: int, on_replace: Callable[[], object]) -> None:
        self._max_pixels, self._on_replace = max_pixels, on_replace
        self._threads = ThreadPoolExecutor(count, "decoder")
        self._idle: SimpleQueue[_Decoder] = SimpleQueue()
        for _ in range(count):
            self._idle.put(_Decoder(max_pixels))

    async def decode(self, file: File, convert: Callable[[OpenedImage], Result]) -> Result:
        """What `convert`, which must be picklable, makes of the photo in the decoder. Raises ImageError."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._decode, file, convert)

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)
        while not self._idle.empty():
            self._idle.get().close()

    def _decode(self, file: File, convert: Callable[[OpenedImage], Result]) -> Result:
        decoder = self._idle.get()
        try:
            if not decoder.process.is_alive():  # killed while it was idle
                decoder = self._replace(decoder)
            outcome = decoder.decode(file, convert)
        except TimeoutError:
            decoder = self._replace(decoder)
            raise ImageError(f"{file.name}: not decoded within {SECONDS:g} s; save it again", "timeout") from None
        except (EOFError, OSError):
            decoder = self._replace(decoder)
            raise ImageError(f"{file.name}: its decoder crashed; save it again", "decoder_crash") from None
        finally:
            self._idle.put(decoder)
        if isinstance(outcome, ImageError):
            raise outcome
        return outcome

    def _replace(self, decoder: "_Decoder") -> "_Decoder":
        decoder.close()
        self._on_replace()
        return _Decoder(self._max_pixels)


class _Decoder:
    """A process that ends when its pipe is closed, even if the server was killed."""

    def __init__(self, max_pixels: int) -> None:
        self._pipe, theirs = SPAWN.Pipe()
        self.process = SPAWN.Process(target=_decode_files, args=(theirs, max_pixels), daemon=True)
        self.process.start()
        theirs.close()

    def decode(self, file: File, convert: Callable[[OpenedImage], Result]) -> Result | ImageError:
        """Raises TimeoutError, and EOFError or OSError if the process dies."""
        self._pipe.send((file, convert))
        if not self._pipe.poll(SECONDS):
            raise TimeoutError
        outcome: Result | ImageError = self._pipe.recv()
        return outcome

    def close(self) -> None:
        self.process.kill()
        self.process.join()
        self._pipe.close()


def _decode_files(pipe: "Connection[Any, tuple[File, Callable[[OpenedImage], Any]]]", max_pixels: int) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # may be sent to all processes; the server finishes its requests
        signal.signal(number, signal.SIG_IGN)
    warnings.simplefilter("ignore")  # about odd metadata
    while True:
        try:
            file, convert = pipe.recv()
        except EOFError:
            return
        name = printable(file.name)
        try:
            pipe.send(convert(replace(open_image(file.data, max_pixels=max_pixels), name=name)))
        except ImageError as error:
            pipe.send(ImageError(str(error).replace("<bytes>", name, 1), error.code))
