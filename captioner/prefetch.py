"""Reading ahead: batches of inputs, read by threads while the batch before them is used."""

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Generic, TypeVar

BATCHES = 2
"""Batches in memory at a time, the one in use included."""
PATIENCE = 0.05
"""Seconds to wait for another source before an incomplete batch is handed out."""

Source = TypeVar("Source")
Item = TypeVar("Item")


def prefetch(
    sources: Iterable[Source], read: Callable[[Source], Item], batch_size: int, workers: int
) -> Generator[list[Item], None, None]:
    """Batches of what `read` returns for each source, in order, read ahead by `workers` threads.

    A batch is handed out when it is full, or when everything in it is read and no other source has arrived: a slow
    iterable, such as a pipe, holds nothing back. `sources` is iterated in a daemon thread, which may be left blocked in
    it when the batches are closed. An error of `sources` is raised at once, one of `read` in place of its batch.
    """
    queue = _Queue(sources, read, batch_size, workers)
    try:
        while batch := queue.take():
            yield [future.result() for future in batch]
    finally:
        queue.close()


class _Queue(Generic[Source, Item]):
    """Reads in progress, started by a thread. One condition guards everything here."""

    def __init__(
        self, sources: Iterable[Source], read: Callable[[Source], Item], batch_size: int, workers: int
    ) -> None:
        self._batch_size = batch_size
        self._changed = threading.Condition()
        self._pool = ThreadPoolExecutor(workers)
        self._pending: deque[Future[Item]] = deque()
        self._in_use = 0
        self._arrival = 0.0
        self._error: BaseException | None = None
        self._ended = self._closed = False
        threading.Thread(target=self._fill, args=(sources, read), daemon=True).start()

    def take(self) -> list[Future[Item]]:
        """The next batch, already read; empty at the end."""
        with self._changed:
            self._in_use = 0
            self._changed.notify_all()
            while not self._is_ready():
                self._changed.wait(PATIENCE)
            if self._error is not None:
                raise self._error
            batch = [self._pending.popleft() for _ in range(min(self._batch_size, len(self._pending)))]
            self._in_use = len(batch)
            return batch

    def close(self) -> None:
        """Wait for the reads in progress, and for nothing else."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._pool.shutdown(cancel_futures=True)

    def _is_ready(self) -> bool:
        batch = list(islice(self._pending, self._batch_size))
        waited = bool(batch) and time.monotonic() - self._arrival >= PATIENCE
        complete = len(batch) == self._batch_size or self._ended or waited
        return self._error is not None or (complete and all(future.done() for future in batch))

    def _fill(self, sources: Iterable[Source], read: Callable[[Source], Item]) -> None:
        try:
            for source in sources:
                with self._changed:
                    if not self._closed:
                        self._pending.append(self._pool.submit(read, source))
                        self._pending[-1].add_done_callback(self._notify)
                        self._arrival = time.monotonic()
                        self._changed.wait_for(self._has_room)
                    if self._closed:
                        return
        except BaseException as error:  # for `take` to raise
            self._error = error
        finally:
            self._ended = True
            self._notify()

    def _has_room(self) -> bool:
        return self._closed or len(self._pending) + self._in_use < BATCHES * self._batch_size

    def _notify(self, _: Future[Item] | None = None) -> None:
        with self._changed:
            self._changed.notify_all()
