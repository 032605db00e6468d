"""Captioning on several devices of one machine: a process for each, results in the order of the inputs."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from functools import cache
from multiprocessing.connection import Connection, wait
from typing import Any

from captioner.any_image import AnyImage
from captioner.caption import Captioned
from captioner.distributed.jobs import CaptionActor, CaptionJob, spread
from captioner.errors import ImageError, ResourceError

SPAWN = multiprocessing.get_context("spawn")  # a forked process could not use CUDA

Outcomes = list[Captioned | ImageError]

_jobs: list[CaptionJob] = []
"""The job of this process, if it is a worker."""


def device_stream(
    sources: Iterable[AnyImage], jobs: Sequence[tuple[str, CaptionJob]], *, stop: Callable[[], bool] = lambda: False
) -> Iterator[Captioned | ImageError]:
    """Caption with a process for each device and its job; yields as `Captioner.stream`.

    Raises what loading a model raises, and ResourceError for a process that dies.
    """
    with ExitStack() as stack:
        workers = [stack.enter_context(_process(name, job)) for name, job in jobs]
        for name, outcomes in spread(sources, workers, jobs[0][1].batch_size, stop):
            with _reported(name):
                yield from outcomes.result()


@contextmanager
def _process(name: str, job: CaptionJob) -> Iterator[Callable[[list[AnyImage]], tuple[str, Future[Outcomes]]]]:
    """A process that captions lists of images. It ends when the block does, or this process."""
    ours, theirs = SPAWN.Pipe()
    executor = ProcessPoolExecutor(1, SPAWN, _start, (theirs, job))

    def give(sources: list[AnyImage]) -> tuple[str, Future[Outcomes]]:
        with _reported(name):
            return name, executor.submit(_caption, sources)

    try:
        yield give
    finally:
        ours.close()
        executor.shutdown(cancel_futures=True)


@contextmanager
def _reported(name: str) -> Iterator[None]:
    """Raise ResourceError if the device's process has died."""
    try:
        yield
    except BrokenProcessPool as error:
        raise ResourceError(
            f"the process of device {name} died, perhaps for lack of memory; continue with --resume, and with fewer "
            "devices or a smaller --batch-size"
        ) from error


def _start(parent: "Connection[Any, Any]", job: CaptionJob) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # may be sent to all processes; the parent finishes its work
        signal.signal(number, signal.SIG_IGN)

    def end_with_parent() -> None:
        wait([parent])  # until the other end is closed
        os._exit(0)

    threading.Thread(target=end_with_parent, daemon=True).start()
    _jobs.append(job)


def _caption(sources: list[AnyImage]) -> Outcomes:
    return _actor().caption(sources)


@cache
def _actor() -> CaptionActor:
    return CaptionActor(_jobs[0])
