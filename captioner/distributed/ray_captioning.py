"""Captioning on a Ray cluster: one model an actor, results in the order of the inputs (extra `ray`)."""

import importlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from captioner.caption import Captioned
from captioner.errors import ImageError
from captioner.generation import Strategy
from captioner.pipeline import Captioner

BATCH = 64
"""Images that an actor gets at a time, if the job names no number."""
AHEAD = 3
"""Batches given to each actor ahead of the results that are read."""
RETRIES = 3
"""How often an actor that died is started again, and its batch repeated."""


@dataclass(frozen=True, kw_only=True)
class CaptionJob:
    """How to load the model and to caption, sent to every actor."""

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

    def caption(self, paths: list[str]) -> list[Captioned | ImageError]:
        return list(self.job.stream(self.captioner, paths))


def ray_stream(
    paths: Iterable[str], job: CaptionJob, *, stop: Callable[[], bool] = lambda: False
) -> Iterator[Captioned | ImageError]:
    """Caption with an actor for each GPU of the cluster, or for each `workers` CPUs; yields as `Captioner.stream`.

    Uses the cluster that RAY_ADDRESS names, else one on this machine. The batches of an actor that dies are repeated.
    """
    ray: Any = importlib.import_module("ray")
    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    resources = ray.cluster_resources()
    gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 1))
    count = gpus or max(1, cpus // job.workers)
    needs = {"num_gpus": 1} if gpus else {"num_cpus": min(job.workers, cpus)}
    kind = ray.remote(max_restarts=RETRIES, max_task_retries=RETRIES)(CaptionActor).options(**needs)
    actors = [kind.remote(job) for _ in range(count)]
    waiting: deque[Any] = deque()
    rest = iter(paths)
    try:
        for actor in _cycled(actors):
            batch = [] if stop() else list(islice(rest, job.batch_size or BATCH))
            if batch:
                waiting.append(actor.caption.remote(batch))
            if waiting and (not batch or len(waiting) >= AHEAD * count):
                yield from ray.get(waiting.popleft())
            if stop() or not (batch or waiting):
                return
    finally:
        for actor in actors:
            ray.kill(actor)


def _cycled(actors: list[Any]) -> Iterator[Any]:
    while True:
        yield from actors
