"""Training that survives signals, kills, full disks and losses that are not finite.

A checkpoint is written whole or not at all. A run that resumes from it ends with the weights of an uninterrupted one.
"""

import json
import logging
import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import CheckpointIO
from pytorch_lightning.callbacks import Checkpoint, EarlyStopping
from torch.optim import Optimizer

from captioner.checkpoint import load_training_file
from captioner.config import Config, TrainingConfig
from captioner.config_files import to_dict
from captioner.data.datamodule import SIGNALS
from captioner.data.dataset import Batch
from captioner.data.features import require_space
from captioner.errors import CheckpointError, ConfigError, Interrupted, ResourceError, TrainingError
from captioner.files import write_whole
from captioner.text import first_line

log = logging.getLogger(__name__)

LAST, BEST = "last.ckpt", "best.ckpt"
MAY_CHANGE = (
    "name",
    "decoder.init",  # its weights and words are in the checkpoint
    *(f"data.{name}" for name in ("root", "annotations", "images", "format", "workers")),
    *(f"training.{name}" for name in ("epochs", "patience", "sample_captions", "threads", "trainer")),
    *(f"training.{name}" for name in ("nonfinite_steps", "checkpoint_minutes")),
)
"""Settings that may differ when a run is resumed; a fingerprint tells whether the captions are the same."""
NOTHING, SAVE, STOP = range(3)
"""What a process wants after a step; the highest of all processes is done."""


class WholeCheckpoints(CheckpointIO):
    """Checkpoints of plain data, each of which replaces an older one only once it is on the disk."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Raises ResourceError where the file cannot be written; what was there before stays."""
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            write_whole(Path(path), lambda file: torch.save(checkpoint, file), sync=True)
        except (OSError, RuntimeError) as error:  # torch.save raises RuntimeError where the disk is full
            free = shutil.disk_usage(Path(path).parent).free
            reason = getattr(error, "strerror", None) or first_line(error)
            raise ResourceError(
                f"{path}: cannot be written ({reason}; {free / 2**20:.0f} MiB free); what was there before is whole: "
                "make room, or repair the folder, and continue with --resume auto"
            ) from error

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return load_training_file(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


class Durability(Checkpoint):
    """Saves `folder/last.ckpt` every so many minutes, before each validation, after each epoch, and on a signal.

    A step whose gradient is not finite changes no weight; too many in a row raise TrainingError, and so do weights that
    are not finite. A signal raises Interrupted after the current step; a second one acts at once.
    """

    def __init__(self, folder: Path, identity: dict[str, Any], config: TrainingConfig) -> None:
        self.path = folder / LAST
        self.identity = identity
        self.config = config
        self._signal: int | None = None
        self._handlers_before: dict[int, Any] = {}
        self._saved_at = math.inf
        self._nonfinite = 0
        self._images: list[int | str] = []

    def on_train_start(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        self._saved_at = time.monotonic()
        if trainer.is_global_zero:  # which holds the lock of the folder: whoever wrote these is dead
            for partial in self.path.parent.glob(".*.partial"):
                partial.unlink()
        there = sum(each.stat().st_size for each in self.path.parent.glob("*.ckpt"))
        # The last one, the best one, and one being written.
        require_space(self.path.parent, 3 * _checkpoint_bytes(task) - there, "checkpoints")
        trainer.should_stop |= stopped_early(trainer)  # a run that is resumed after it had ended
        if trainer.received_sigterm:  # before this hook
            self._signal = signal.SIGTERM
        if threading.current_thread() is threading.main_thread():
            self._handlers_before = {each: signal.signal(each, self._handle) for each in SIGNALS}

    def on_train_batch_start(self, trainer: pl.Trainer, task: pl.LightningModule, batch: Batch, index: int) -> None:
        self._images = batch.image_ids

    def on_before_optimizer_step(self, trainer: pl.Trainer, task: pl.LightningModule, optimizer: Optimizer) -> None:
        trained = [each for group in optimizer.param_groups for each in group["params"] if each.grad is not None]
        if torch.nn.utils.get_total_norm([each.grad for each in trained]).isfinite():
            self._nonfinite = 0
            return
        for each in trained:
            each.grad = None
        self._nonfinite += 1
        log.warning("step %d: loss or gradient not finite; step skipped", trainer.global_step)
        if self._nonfinite >= self.config.nonfinite_steps:
            self._fail(f"loss or gradient not finite in {self._nonfinite} steps up to step {trainer.global_step}")

    def on_train_batch_end(
        self, trainer: pl.Trainer, task: pl.LightningModule, outputs: Any, batch: Batch, index: int
    ) -> None:
        left = trainer.num_training_batches - 1 - index
        if isinstance(trainer.val_check_batch, int):
            left = min(left, -(index + 1) % trainer.val_check_batch)
        # Resuming after the last batch would skip its validation; within a step it would lose gradients.
        if not left or not stepped(trainer, index):
            return
        # A validation cannot be resumed, so this is the last chance before it.
        minutes = (time.monotonic() - self._saved_at) / 60
        due = minutes >= self.config.checkpoint_minutes or left <= trainer.accumulate_grad_batches
        decision = self._decide(trainer, STOP if self._signal is not None else SAVE if due else NOTHING)
        if decision:
            self._save(trainer, task)
        if decision == STOP:
            self._end(trainer)

    def on_validation_start(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        self._check_weights(task)  # before Lightning may save them as the best

    def on_validation_batch_start(
        self, trainer: pl.Trainer, task: pl.LightningModule, batch: Batch, index: int, dataloader_idx: int = 0
    ) -> None:
        self._end_on_signal(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        self._save(trainer, task)
        self._end_on_signal(trainer)

    def on_train_end(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        self._restore_handlers()

    def on_exception(self, trainer: pl.Trainer, task: pl.LightningModule, exception: BaseException) -> None:
        self._restore_handlers()

    def on_save_checkpoint(self, trainer: pl.Trainer, task: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["identity"] = self.identity
        checkpoint["train_batches"] = trainer.num_training_batches

    def on_load_checkpoint(self, trainer: pl.Trainer, task: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Adapt the states of Lightning's own callbacks, which are restored after this, to the run as it is now."""
        batches: int = trainer.datamodule.train_batches  # type: ignore[attr-defined]
        done = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["processed"]
        if checkpoint["train_batches"] != batches and done < checkpoint["train_batches"]:
            raise ConfigError(
                f"{self.path.parent}: the checkpoint is from within an epoch of {checkpoint['train_batches']} batches, "
                f"and now there are {batches} in each process; resume with as many processes as before"
            )
        # The folder may have been moved. Lightning compares real paths, and forgets the best score where they differ.
        folder = os.path.realpath(self.path.parent)
        for state in checkpoint["callbacks"].values():
            if "patience" in state:
                state["patience"] = next((each.patience for each in _early_stopping(trainer)), state["patience"])
            if state.get("dirpath"):
                state["dirpath"] = folder
                for name in ("best_model_path", "kth_best_model_path"):
                    state[name] = _moved(state[name], folder)
                state["best_k_models"] = {_moved(path, folder): score for path, score in state["best_k_models"].items()}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._signal = number
        for each in SIGNALS:
            signal.signal(each, signal.default_int_handler if each == signal.SIGINT else signal.SIG_DFL)
        log.warning("%s: saving after this step", signal.Signals(number).name)

    def _decide(self, trainer: pl.Trainer, wanted: int) -> int:
        """The highest of what the processes want, in all of them."""
        if trainer.world_size == 1:
            return wanted
        level = torch.tensor(wanted, device=trainer.strategy.root_device)
        return int(trainer.strategy.reduce(level, reduce_op="max"))

    def _end_on_signal(self, trainer: pl.Trainer) -> None:
        if self._decide(trainer, NOTHING if self._signal is None else STOP):
            self._end(trainer)

    def _save(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        if self._nonfinite:
            return  # the older checkpoint is better
        self._check_weights(task)
        trainer.save_checkpoint(self.path)
        self._saved_at = time.monotonic()

    def _check_weights(self, task: pl.LightningModule) -> None:
        """Raise TrainingError where a weight is not finite, or a running statistic, which would never recover."""
        for name, each in task.state_dict().items():
            if each.is_floating_point() and not each.isfinite().all():
                self._fail(f"{name} is not finite")

    def _fail(self, why: str) -> NoReturn:
        kept = f"the last good checkpoint is {self.path}; " if self.path.exists() else ""
        raise TrainingError(
            f"{why}, the last on images {self._images[:5]} and {max(0, len(self._images) - 5)} more; {kept}lower "
            "optimization.learning_rate, or look at these images"
        )

    def _end(self, trainer: pl.Trainer) -> None:
        number = self._signal or signal.SIGTERM
        kept = "the same command with --resume auto continues" if self.path.exists() else "nothing was saved yet"
        ended = Interrupted(f"{signal.Signals(number).name} after step {trainer.global_step}; {kept}")
        ended.exit_code = 128 + number
        raise ended

    def _restore_handlers(self) -> None:
        for number, handler in self._handlers_before.items():
            signal.signal(number, handler)
        self._handlers_before = {}


def stepped(trainer: pl.Trainer, index: int) -> bool:
    """Whether the optimizer took a step after batch `index` of the epoch, rather than accumulating more gradients."""
    return (index + 1) % trainer.accumulate_grad_batches == 0 or index + 1 == trainer.num_training_batches


def stopped_early(trainer: pl.Trainer) -> bool:
    """Whether validation has not improved for as many epochs as patience allows."""
    return any(0 < each.patience <= each.wait_count for each in _early_stopping(trainer))


def newest_checkpoint(folder: Path) -> Path | None:
    """The readable checkpoint of the most steps, `last.ckpt` before others; None where there is no checkpoint.

    Raises CheckpointError where there are some and none can be read.
    """
    found: list[tuple[int, bool, Path]] = []
    problem: CheckpointError | None = None
    for path in sorted(folder.glob("*.ckpt")):
        try:
            found.append((int(load_training_file(path)["global_step"]), path.name == LAST, path))
        except CheckpointError as error:
            log.warning("%s; skipped", error)
            problem = error
    if problem is not None and not found:
        raise problem
    return max(found)[2] if found else None


def run_identity(config: Config, captions: str) -> dict[str, Any]:
    """What makes a run the same run when it is resumed: its settings, and a fingerprint of its captions."""
    return to_dict(config) | {"captions": captions}


def check_same_run(identity: dict[str, Any], checkpoint: dict[str, Any], source: Path) -> None:
    """Raise ConfigError where a run would be resumed with settings, or captions, that change what it learns.

    The settings in the run's own config.yaml, which describe the network as it was built, are accepted too.
    """
    if "identity" not in checkpoint:
        raise CheckpointError(f"{source}: written by another version of captioner; begin another run with --init")
    before, now = dict(_leaves(checkpoint["identity"])), dict(_leaves(identity))
    resolved = dict(_leaves(checkpoint["captioner"]["run"]))
    if before["data.features"] and now["data.features"]:
        before["data.features"] = now["data.features"]  # a store may be kept anywhere
    changed = [
        f"{name} was {json.dumps(before.get(name))} and is {json.dumps(now.get(name))}"
        for name in sorted(before.keys() | now.keys())
        if now.get(name) not in (before.get(name), resolved.get(name, before.get(name)))
        and not name.startswith(MAY_CHANGE)
    ]
    if changed:
        raise ConfigError(
            f"{source}: the run was begun with other settings: {'; '.join(changed)}. Set them back, or begin another "
            "run with -o (and --init, to start from this one's model)"
        )


def _early_stopping(trainer: pl.Trainer) -> list[EarlyStopping]:
    return [each for each in trainer.early_stopping_callbacks if isinstance(each, EarlyStopping)]


def _moved(path: str, folder: str) -> str:
    return os.path.join(folder, os.path.basename(path)) if path else ""


def _leaves(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _checkpoint_bytes(task: pl.LightningModule) -> int:
    """An estimate: the weights, their average, and two moments of those that are trained."""
    total = sum(each.numel() * each.element_size() for each in task.parameters())
    trained = sum(each.numel() * each.element_size() for each in task.parameters() if each.requires_grad)
    return 2 * total + 2 * trained
