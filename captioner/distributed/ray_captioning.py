"""Captioning on a Ray cluster: one model an actor, results in the order of the inputs (extra `ray`)."""

import importlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from captioner.any_image import AnyImage
from captioner.caption import Captioned
from captioner.distributed.jobs import CaptionActor, CaptionJob, spread
from captioner.errors import ImageError

RETRIES = 3
"""How often an actor that died is started again, and its batch repeated."""


def ray_stream(
    sources: Iterable[AnyImage], job: CaptionJob, *, stop: Callable[[], bool] = lambda: False
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
    try:
        for given in spread(sources, [actor.caption.remote for actor in actors], job.batch_size, stop):
            yield from ray.get(given)
    finally:
        for actor in actors:
            ray.kill(actor)
