"""Caption jobs for worker processes on several devices or machines, and the distribution of batches to them."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import TypeVar

from captioner.any_image import AnyImage
from captioner.caption import Captioned
from captioner.errors import ImageError
from captioner.generation import Strategy
from captioner.pipeline import Captioner

BATCH = 64
"""Images that a worker gets at a time, if the job names no number."""
AHEAD = 3
"""Batches given to each worker ahead of the results that are read."""

Given = TypeVar("Given")


@dataclass(frozen=True, kw_only=True)
class CaptionJob:
    """How to load the model and to caption, sent to every worker."""

    load: Callable[[], tuple[Captioner, Strategy]]
    """Loads the model, from the same path on all machines."""
    stream: Callable[..., Iterator[Captioned | ImageError]]
    """`Captioner.stream` with its options, but without the captioner and the sources."""
    batch_size: int | None
    workers: int
    folder: str
    """The working folder, to which paths are relative; all machines have it."""


class CaptionActor:
    """A captioner in a process of its own."""

    def __init__(self, job: CaptionJob) -> None:
        os.chdir(job.folder)
        self.job = job
        self.captioner, _ = job.load()

    def caption(self, sources: list[AnyImage]) -> list[Captioned | ImageError]:
        return list(self.job.stream(self.captioner, sources))


def spread(
    sources: Iterable[AnyImage],
    workers: Sequence[Callable[[list[AnyImage]], Given]],
    batch_size: int | None,
    stop: Callable[[], bool],
) -> Iterator[Given]:
    """Give batches of images to the workers in turn; yield what they return, in the order of the images.

    Once `stop` returns true, no batch is given out, and at most one more result is yielded.
    """
    waiting: deque[Given] = deque()
    rest = iter(sources)
    for give in cycle(workers):
        batch = [] if stop() else list(islice(rest, batch_size or BATCH))
        if batch:
            waiting.append(give(batch))
        if waiting and (not batch or len(waiting) >= AHEAD * len(workers)):
            yield waiting.popleft()
        if stop() or not (batch or waiting):
            return
