"""Reading ahead: batches of inputs, read by threads while the batch before them is used."""

import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from queue import Empty, SimpleQueue
from typing import TypeVar

BATCHES = 2
"""Batches in memory at a time, the one in use included."""
PATIENCE = 0.05
"""Seconds to wait for another source before an incomplete batch is handed out."""

Source = TypeVar("Source")
Item = TypeVar("Item")


def prefetch(
    sources: Iterable[Source], read: Callable[[Source], Item], batch_size: int, workers: int | None = None
) -> Generator[list[Item], None, None]:
    """Batches of what `read` returns for each source, in order, read ahead by `workers` threads.

    A batch is handed out when it is full, or when everything in it is read and no other source has arrived: a slow
    iterable, such as a pipe, holds nothing back. `sources` is iterated in a daemon thread, which may be left blocked in
    it when the batches are closed. An error of `sources` or `read` is raised in place of its batch.
    """
    reads: SimpleQueue[Future[Item] | BaseException | None] = SimpleQueue()
    room = threading.Semaphore(BATCHES * batch_size - 1)
    closed = threading.Event()
    pool = ThreadPoolExecutor(workers)

    def submit() -> None:
        try:
            for source in sources:
                reads.put(pool.submit(read, source))  # fails once the pool is shut down
                room.acquire()
                if closed.is_set():
                    return
            reads.put(None)
        except BaseException as error:
            reads.put(error)

    threading.Thread(target=submit, daemon=True).start()
    try:
        while batch := _next_batch(reads, batch_size):
            yield [future.result() for future in batch]
            room.release(len(batch))
    finally:
        closed.set()
        room.release()
        pool.shutdown(cancel_futures=True)


def _next_batch(reads: SimpleQueue[Future[Item] | BaseException | None], size: int) -> list[Future[Item]]:
    """Up to `size` reads; none at the end. Raises an error that arrives among them."""
    batch: list[Future[Item]] = []
    while len(batch) < size:
        try:
            arrived = reads.get(timeout=PATIENCE)
        except Empty:
            if batch and all(future.done() for future in batch):
                break
            continue
        if isinstance(arrived, BaseException):
            raise arrived
        if arrived is None:
            reads.put(None)  # the next batch ends at once
            break
        batch.append(arrived)
    return batch
