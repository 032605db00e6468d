"""Training that survives signals, kills, full disks and losses that are not finite.

A checkpoint appears whole or not at all, and a run that goes on from it does what an uninterrupted one would have done.
"""

import json
import logging
import math
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import CheckpointIO
from pytorch_lightning.callbacks import Checkpoint
from torch.optim import Optimizer

from captioner.checkpoint import load_training_file, write_whole
from captioner.data.dataset import Batch
from captioner.data.features import require_space
from captioner.errors import CheckpointError, ConfigError, Interrupted, ResourceError, TrainingError

log = logging.getLogger(__name__)

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))
"""After which a run saves itself and ends; SLURM sends the last before it takes a machine away."""
LAST, BEST = "last.ckpt", "best.ckpt"
MAY_CHANGE = (
    "name",
    *(f"data.{name}" for name in ("root", "annotations", "images", "format", "workers", "features")),
    *(f"training.{name}" for name in ("epochs", "patience", "sample_captions", "threads", "trainer")),
    *(f"training.{name}" for name in ("nonfinite_steps", "checkpoint_minutes")),
)
"""Settings that may differ when a run goes on; that the captions are the same is seen from the captions."""


class WholeCheckpoints(CheckpointIO):
    """Checkpoints of plain data that replace older ones only when they are on the disk."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Raises ResourceError where the file cannot be written; what was there before stays."""
        try:
            write_whole(Path(path), lambda file: torch.save(checkpoint, file))
        except (OSError, RuntimeError) as error:  # torch.save tells a full disk as a RuntimeError
            free = shutil.disk_usage(Path(path).parent).free
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
            raise ResourceError(
                f"{path}: cannot be written ({reason}; {free / 2**20:.0f} MiB free); what was there before is whole: "
                "make room and go on with --resume auto"
            ) from error

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return load_training_file(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


class Durability(Checkpoint):
    """Keeps `folder/last.ckpt`: every so many minutes, before each validation, after each epoch, and on a signal.

    A step whose gradient is not finite changes no weight; too many in a row raise TrainingError. A signal raises
    Interrupted after the step that is under way; a second one acts at once.
    """

    def __init__(self, folder: Path, asked: dict[str, Any], *, minutes: float, nonfinite_steps: int) -> None:
        self.path = folder / LAST
        self.asked = asked
        self.minutes, self.nonfinite_steps = minutes, nonfinite_steps
        self._signal: int | None = None
        self._before: dict[int, Any] = {}
        self._saved = math.inf
        self._nonfinite = 0
        self._images: list[int | str] = []

    def on_train_start(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        self._saved = time.monotonic()
        require_space(self.path.parent, _checkpoint_bytes(task) * 3, "checkpoints")  # last, best, and one being written
        if threading.current_thread() is threading.main_thread():
            self._before = {each: signal.signal(each, self._hear) for each in SIGNALS}

    def on_train_batch_start(self, trainer: pl.Trainer, task: pl.LightningModule, batch: Batch, index: int) -> None:
        self._images = batch.image_ids

    def on_before_optimizer_step(self, trainer: pl.Trainer, task: pl.LightningModule, optimizer: Optimizer) -> None:
        trained = [each for group in optimizer.param_groups for each in group["params"] if each.grad is not None]
        if torch.nn.utils.get_total_norm([each.grad for each in trained]).isfinite():
            self._nonfinite = 0
            return
        for each in trained:
            each.grad = None  # nothing is learned from this step
        self._nonfinite += 1
        log.warning("step %d: loss or gradient not finite; skipped", trainer.global_step)
        if self._nonfinite >= self.nonfinite_steps:
            kept = f"the last good checkpoint is {self.path}; " if self.path.exists() else ""
            raise TrainingError(
                f"loss or gradient not finite in {self._nonfinite} steps up to step {trainer.global_step}, the last on "
                f"images {self._images[:5]} and {max(0, len(self._images) - 5)} more; {kept}lower "
                "optimization.learning_rate, or look at these images"
            )

    def on_train_batch_end(
        self, trainer: pl.Trainer, task: pl.LightningModule, outputs: Any, batch: Batch, index: int
    ) -> None:
        left = trainer.num_training_batches - 1 - index
        if not left:  # the epoch ends; a checkpoint here would pass over its validation
            return
        stopping = self._agreed(trainer, self._signal is not None)
        # In validation a run can only be ended, so that one batch before it is the last chance.
        due = time.monotonic() - self._saved >= 60 * self.minutes or left == 1
        if stopping or self._agreed(trainer, due):
            self._save(trainer, task)
        if stopping:
            self._end(trainer)

    def on_validation_batch_start(
        self, trainer: pl.Trainer, task: pl.LightningModule, batch: Batch, index: int, dataloader_idx: int = 0
    ) -> None:
        if trainer.state.fn == "fit" and self._agreed(trainer, self._signal is not None):
            self._end(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        self._save(trainer, task)
        if self._agreed(trainer, self._signal is not None):
            self._end(trainer)

    def on_train_end(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        self._give_back()

    def on_save_checkpoint(self, trainer: pl.Trainer, task: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["asked"] = self.asked

    def on_exception(self, trainer: pl.Trainer, task: pl.LightningModule, exception: BaseException) -> None:
        self._give_back()

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self._signal = number
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        log.warning("%s: saving after this step", signal.Signals(number).name)

    def _agreed(self, trainer: pl.Trainer, wish: bool) -> bool:
        """Whether any process wishes it."""
        return wish if trainer.world_size == 1 else bool(trainer.strategy.reduce_boolean_decision(wish, all=False))

    def _save(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        finite = self._nonfinite == 0 and all(bool(each.isfinite().all()) for each in task.parameters())
        if self._agreed(trainer, not finite):
            return  # the older one is better
        trainer.save_checkpoint(self.path)
        self._saved = time.monotonic()

    def _end(self, trainer: pl.Trainer) -> None:
        number = self._signal or signal.SIGTERM
        raise Interrupted(
            f"{signal.Signals(number).name} after step {trainer.global_step}; go on with --resume auto", number
        )

    def _give_back(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


def newest_checkpoint(folder: Path) -> Path | None:
    """The run's checkpoint of the most steps that can be read, the last one where two have equally many; None where
    there is none. Raises CheckpointError where there are some and none can be read.
    """
    found: list[tuple[int, bool, Path]] = []
    problems: list[CheckpointError] = []
    for path in sorted(folder.glob("*.ckpt")):
        try:
            found.append((int(load_training_file(path)["global_step"]), path.name == LAST, path))
        except CheckpointError as error:
            problems.append(error)
    for problem in problems:
        log.warning("%s; passed over", problem)
    if problems and not found:
        raise problems[0]
    return max(found)[2] if found else None


def check_same_run(asked: dict[str, Any], checkpoint: dict[str, Any], source: Path) -> None:
    """Raise ConfigError where a run would go on with settings, or captions, that change what it learns."""
    if "asked" not in checkpoint:  # written before checkpoints held it
        return
    before, now = dict(_leaves(checkpoint["asked"])), dict(_leaves(asked))
    changed = [
        f"{name} was {json.dumps(before.get(name))} and is {json.dumps(now.get(name))}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name) and not name.startswith(MAY_CHANGE)
    ]
    if changed:
        raise ConfigError(
            f"{source}: the run was begun with other settings: {'; '.join(changed)}. Set them back, or begin another "
            "run with -o (and --init, to learn on from this one's model)"
        )


def _leaves(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _checkpoint_bytes(task: pl.LightningModule) -> int:
    """About so much: the weights, their average, and two moments of those that are trained."""
    total = sum(each.numel() * each.element_size() for each in task.parameters())
    trained = sum(each.numel() * each.element_size() for each in task.parameters() if each.requires_grad)
    return 2 * total + 2 * trained
