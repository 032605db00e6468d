"""Reading ahead: batches of inputs, read by threads while the batch before them is used."""

import os
import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, wait
from queue import Empty, SimpleQueue
from typing import TypeVar

BATCHES = 2
"""Batches in memory at a time, the one in use included."""
PATIENCE = 0.05
"""Seconds to wait for another source before an incomplete batch is handed out, between two calls of `stop`, and for
each thread to end."""

Source = TypeVar("Source")
Item = TypeVar("Item")


def prefetch(
    sources: Iterable[Source],
    read: Callable[[Source], Item],
    batch_size: int,
    workers: int | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Generator[list[Item], None, None]:
    """Batches of what `read` returns for each source, in order, read ahead by `workers` threads.

    A batch is handed out when it is full, or when everything in it is read and no other source has arrived: a slow
    iterable, such as a pipe, holds nothing back. Once `stop` returns true, there are no further batches, even if a read
    never ends. All threads are daemons, which may be left blocked in `sources` or `read` when the batches are closed.
    An error of `sources` or `read` is raised in place of its batch.
    """
    workers = workers or min(32, (os.cpu_count() or 1) + 4)
    tasks: SimpleQueue[tuple[Source, Future[Item]] | None] = SimpleQueue()
    reads: SimpleQueue[Future[Item] | BaseException | None] = SimpleQueue()
    room = threading.Semaphore(BATCHES * batch_size - 1)
    closed = threading.Event()

    def submit() -> None:
        try:
            for source in sources:
                future: Future[Item] = Future()
                tasks.put((source, future))
                reads.put(future)
                room.acquire()
                if closed.is_set():
                    return
            reads.put(None)
        except BaseException as error:
            reads.put(error)

    def work() -> None:
        while (task := tasks.get()) is not None and not closed.is_set():
            source, future = task
            try:
                future.set_result(read(source))
            except BaseException as error:
                future.set_exception(error)

    threads = [threading.Thread(target=target, daemon=True) for target in (submit, *[work] * workers)]
    for thread in threads:
        thread.start()
    try:
        while batch := _next_batch(reads, batch_size, stop):
            yield [future.result() for future in batch]
            room.release(len(batch))
    finally:
        closed.set()
        room.release()
        for _ in range(workers):
            tasks.put(None)
        for thread in threads:  # one that Python has to kill at exit may abort the process from C++ code
            thread.join(PATIENCE)


def _next_batch(
    reads: SimpleQueue[Future[Item] | BaseException | None], size: int, stop: Callable[[], bool]
) -> list[Future[Item]]:
    """Up to `size` finished reads; none at the end, or after `stop`. Raises an error that arrives among them."""
    batch: list[Future[Item]] = []
    while len(batch) < size and not stop():
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
    while wait(batch, PATIENCE).not_done and not stop():
        pass
    return [] if stop() else batch
