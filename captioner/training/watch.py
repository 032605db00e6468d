"""Watching the processes of a run: if one dies or hangs, the others end and say which.

Without it, they would wait for its gradients until the process group times out, with an error that names nobody.
"""

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from torch.distributed import TCPStore, all_gather_object  # type: ignore[attr-defined]

from captioner.errors import Interrupted
from captioner.text import first_line, printable

log = logging.getLogger(__name__)

BEAT_SECONDS = 0.25
"""Time between two looks at the other processes."""
SILENT_SECONDS = 20.0
"""A process whose thread has not reported for this long is dead."""
SILENT_AFTER_ERROR = 3.0
"""The same once an operation between processes has failed, which is likely to be why."""
CONNECT = timedelta(seconds=60)
"""Longest time to connect to the store."""
EXIT_CODE = 1


@dataclass
class Seen:
    """What a process last reported."""

    beats: int = -1
    steps: int = -1
    """How many of Lightning's hooks it has passed; they are the same in all processes."""
    failure: str = ""
    heard: float = 0.0
    """When `beats` last changed, by this process's clock."""


class Watch(Callback):
    """Reports each process's progress to the others through a store, and ends this process if one dies or hangs.

    A process hangs if no process makes progress for `patience` seconds and it has passed fewer hooks than the others,
    which wait for it; 0 waits forever. A run of one process is not watched.
    """

    def __init__(self, patience: float) -> None:
        self.patience = patience
        self._steps, self._failure = 0, ""
        self._silent = SILENT_SECONDS
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def setup(self, trainer: pl.Trainer, task: pl.LightningModule, stage: str) -> None:
        if trainer.world_size == 1:
            return
        host = trainer.strategy.cluster_environment.main_address  # type: ignore[attr-defined]
        store = None
        if trainer.is_global_zero:
            store = TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=CONNECT)
        port: Any = trainer.strategy.broadcast(None if store is None else store.port)
        if store is None:
            store = TCPStore(host, port, is_master=False, timeout=CONNECT)
        self._rank, self._names = trainer.global_rank, _names(trainer)
        self._children: Sequence[Any] = getattr(trainer.strategy.launcher, "procs", ())
        self._report(store, 0)
        trainer.strategy.barrier()  # every process has reported
        self._thread = threading.Thread(target=self._watch, args=(store,), daemon=True)
        self._thread.start()

    def on_train_batch_start(self, *arguments: Any) -> None:
        self._steps += 1

    def on_before_backward(self, *arguments: Any) -> None:
        self._steps += 1

    def on_train_batch_end(self, *arguments: Any) -> None:
        self._steps += 1

    def on_validation_batch_start(self, *arguments: Any) -> None:
        self._steps += 1

    def on_validation_epoch_end(self, *arguments: Any) -> None:
        self._steps += 1

    def on_validation_end(self, *arguments: Any) -> None:
        self._steps += 1

    def on_train_end(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        self._ended.set()

    def on_exception(self, trainer: pl.Trainer, task: pl.LightningModule, exception: BaseException) -> None:
        """Tell the others why this process fails, unless it fails because another one has died."""
        if self._thread is not None and isinstance(exception, Exception) and not isinstance(exception, Interrupted):
            if isinstance(exception, RuntimeError):  # as operations between processes raise
                self._silent = SILENT_AFTER_ERROR
                self._thread.join(2 * SILENT_AFTER_ERROR)  # which ends this process if another one is the reason
            self._failure = f"{type(exception).__name__}: {printable(first_line(exception))}"
            self._thread.join(4 * BEAT_SECONDS)
        self._ended.set()

    def _watch(self, store: Any) -> None:
        """The thread."""
        now = time.monotonic()
        seen, moved = [Seen(heard=now) for _ in self._names], now
        beats, keys = 0, [str(rank) for rank in range(len(self._names))]
        while not self._ended.wait(BEAT_SECONDS):
            beats += 1
            try:
                self._report(store, beats)
                reports = store.multi_get(keys)
            except RuntimeError:  # of a closed connection
                if not self._ended.wait(BEAT_SECONDS):
                    self._end([0], "has died; see its own messages")
                return
            now = time.monotonic()
            before = [each.steps for each in seen]
            for each, report in zip(seen, reports, strict=True):
                number, each.steps, each.failure = json.loads(report)
                if number != each.beats:
                    each.beats, each.heard = number, now
            moved = now if [each.steps for each in seen] != before else moved
            if not self._failure and (found := self._reason(seen, now, moved)):
                self._end(*found)

    def _report(self, store: Any, beats: int) -> None:
        store.set(str(self._rank), json.dumps([beats, self._steps, self._failure]))

    def _reason(self, seen: Sequence[Seen], now: float, moved: float) -> tuple[list[int], str] | None:
        """The processes because of which the run has to end, and what is wrong with them; None if all is well."""
        for rank, child in enumerate(self._children, start=1):
            if code := child.poll():
                how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
                return [rank], f"{how}; see its own messages"
        for rank, each in enumerate(seen):
            if each.failure:
                return [rank], f"failed with {each.failure}"
            if now - each.heard > self._silent:
                return [rank], "has died or lost its connection; see its own messages"
        if not self.patience or now - moved < self.patience:
            return None
        waiting = f"made no progress for {self.patience / 60:g} minutes (training.stall_minutes)"
        late = [rank for rank, each in enumerate(seen) if each.steps == min(each.steps for each in seen)]
        if len(late) == len(seen):
            return late, f"{waiting}, all at the same step; check the network between them"
        return late, f"{waiting}, and the others wait"

    def _end(self, ranks: Sequence[int], problem: str) -> NoReturn:
        """End this process, whose main thread may wait in an operation between processes that nothing interrupts."""
        others = [rank for rank in range(len(self._names)) if rank not in ranks]
        if self._rank == min(others, default=0):  # one report is enough
            names = ", ".join(self._names[rank] for rank in ranks)
            log.critical("captioner: error: %s %s; continue with --resume auto", names, problem)
        if self._rank == 0:  # the store's, which the others need to find the same
            time.sleep(4 * BEAT_SECONDS)
        for child in self._children:
            child.kill()
        os._exit(EXIT_CODE)


def _names(trainer: pl.Trainer) -> list[str]:
    """What each process is called in messages."""
    names: list[Any] = [None] * trainer.world_size
    mine = f"process {trainer.global_rank} of {trainer.world_size} (pid {os.getpid()} on {socket.gethostname()})"
    all_gather_object(names, mine)
    return names
