"""Batches of photos whose requests arrive at about the same time."""

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from captioner.caption import Caption
from captioner.device import halve_batch
from captioner.photo import Photo
from captioner.pipeline import ACCELERATOR_BATCH, CPU_BATCH, Captioner
from captioner.serving.options import CaptionQuery

WINDOW = 0.004
"""Seconds to wait for a batch to fill."""

Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class _Waiting:
    photo: Photo
    query: CaptionQuery
    caption: asyncio.Future[Caption]
    """Cancelled when its request ends early."""


class Batcher:
    """Captions photos with equal queries together. All work of the model runs on one thread."""

    def __init__(self, captioner: Captioner, batch_size: int | None, on_batch: Callable[[int], object]) -> None:
        self._captioner, self._on_batch = captioner, on_batch
        self._batch_size = batch_size or (CPU_BATCH if captioner.device.type == "cpu" else ACCELERATOR_BATCH)
        self._waiting: deque[_Waiting] = deque()
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "model")
        self._task = asyncio.create_task(self._run())

    async def caption(self, photo: Photo, query: CaptionQuery) -> Caption:
        """The caption of a photo. Once all requests of a batch are cancelled, its search stops before the next step.

        Raises ConfigError for options that do not fit the model.
        """
        waiting = _Waiting(photo, query, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._arrived.set()
        return await waiting.caption

    async def run(self, work: Callable[[], Result]) -> Result:
        """What `work` returns. If cancelled early enough, `work` is not started."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])
        self._thread.shutdown()

    async def _run(self) -> None:
        while True:
            await self._arrived.wait()
            if len(self._waiting) < self._batch_size:
                await asyncio.sleep(WINDOW)
            if batch := self._next_batch():
                await self._caption(batch)
            if not self._waiting:
                self._arrived.clear()

    def _next_batch(self) -> list[_Waiting]:
        """The photo that has waited longest, and others with the same query."""
        waiting = [each for each in self._waiting if not each.caption.done()]
        batch = [each for each in waiting if each.query == waiting[0].query][: self._batch_size]
        self._waiting = deque(each for each in waiting if each not in batch)
        return batch

    async def _caption(self, batch: list[_Waiting]) -> None:
        query = batch[0].query
        self._on_batch(len(batch))
        work = partial(
            self._captioner.caption_photos,
            [each.photo for each in batch],
            prefix=query.prefix,
            region=query.region,
            hide=query.hide,
            stop=lambda: all(each.caption.done() for each in batch),
        )
        try:
            captions = await self.run(lambda: work(search=query.search_options().strategy()))
        except Exception as error:
            self._handle(error, batch)
            return
        for each, caption in zip(batch, captions, strict=True):
            if not each.caption.done():
                each.caption.set_result(caption)

    def _handle(self, error: Exception, batch: list[_Waiting]) -> None:
        """Retry a batch that ran out of memory in halves; pass any other error to its requests."""
        try:
            self._batch_size = halve_batch(len(batch), error)
            self._waiting.extendleft(reversed(batch))
        except Exception as final:
            for each in batch:
                if not each.caption.done():
                    each.caption.set_exception(final)
