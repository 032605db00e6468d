"""Training that survives signals, kills, full disks and non-finite losses.

Checkpoints are written atomically. A resumed run ends with the same weights as an uninterrupted one.
"""

import json
import logging
import math
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import CheckpointIO
from pytorch_lightning.callbacks import Checkpoint, EarlyStopping, ModelCheckpoint
from torch.optim import Optimizer

from captioner.checkpoint import load_training_file
from captioner.config import Config, TrainingConfig
from captioner.config_files import to_dict
from captioner.data.dataset import SIGNALS, Batch
from captioner.data.features import free_space, require_space
from captioner.errors import CheckpointError, ConfigError, Interrupted, ResourceError, TrainingError
from captioner.files import write_whole
from captioner.text import first_line

log = logging.getLogger(__name__)

LAST, BEST = "last.ckpt", "best.ckpt"
MAY_CHANGE = (
    "name",
    "decoder.init",  # its weights and words are in the checkpoint
    *(f"data.{name}" for name in ("root", "annotations", "images", "format", "text", "shards", "workers")),
    *(f"training.{name}" for name in ("epochs", "patience", "sample_captions", "threads", "trainer")),
    *(f"training.{name}" for name in ("nonfinite_steps", "checkpoint_minutes", "stall_minutes")),
)
"""Prefixes of the settings that may change when a run is resumed; its captions are compared by a fingerprint."""
NOTHING, SAVE, STOP = range(3)
"""What a process asks for after a step; all processes do the highest of their requests."""


class WholeCheckpoints(CheckpointIO):
    """Reads and writes checkpoints of plain data; a new one replaces the old one only once it is on disk."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Raises ResourceError if the file cannot be written; the old file is kept."""
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            write_whole(Path(path), lambda file: torch.save(checkpoint, file), sync=True)
        except (OSError, RuntimeError) as error:  # torch.save raises RuntimeError where the disk is full
            free = free_space(Path(path).parent)
            reason = getattr(error, "strerror", None) or first_line(error)
            raise ResourceError(
                f"{path}: cannot be written ({reason}; {free / 2**20:.0f} MiB free); earlier checkpoints are intact: "
                "make room, or repair the folder, and continue with --resume auto"
            ) from error

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return load_training_file(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


class Durability(Checkpoint):
    """Saves `folder/last.ckpt` every `checkpoint_minutes`, before each validation, after each epoch, and on a signal.

    Steps with a non-finite gradient are skipped. Too many in a row raise TrainingError, and so do non-finite weights.
    A signal raises Interrupted after the current step; a second signal kills the process.
    """

    def __init__(self, folder: Path, identity: dict[str, Any], config: TrainingConfig) -> None:
        self.path = folder / LAST
        self.identity = identity
        self.config = config
        self._signal: int | None = None
        self._handlers_before: dict[int, Any] = {}
        self._saved_at = math.inf
        self._saved_step = 0
        self._nonfinite = 0
        self._images: list[int | str] = []

    def on_train_start(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        self._saved_at, self._saved_step = time.monotonic(), trainer.global_step
        if trainer.is_global_zero:  # it holds the folder's lock, so nobody writes these any more
            for partial in self.path.parent.glob(".*.partial"):
                partial.unlink()
        existing = sum(each.stat().st_size for each in self.path.parent.glob("*.ckpt"))
        # The last, the best, and one being written.
        require_space(self.path.parent, 3 * _checkpoint_bytes(task) - existing, "checkpoints")
        trainer.should_stop |= stopped_early(trainer)  # a finished run that is resumed
        if trainer.received_sigterm:  # before our handlers are installed
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
        step = trainer.global_step + 1  # the one that begins, as metrics.csv counts
        log.warning("step %d: non-finite loss or gradient; step skipped", step)
        if self._nonfinite >= self.config.nonfinite_steps:
            self._fail(f"non-finite loss or gradient in {self._nonfinite} steps up to step {step}")

    def on_train_batch_end(
        self, trainer: pl.Trainer, task: pl.LightningModule, outputs: Any, batch: Batch, index: int
    ) -> None:
        left = trainer.num_training_batches - 1 - index
        if isinstance(trainer.val_check_batch, int):
            done = trainer.fit_loop.total_batch_idx if trainer.check_val_every_n_epoch is None else index
            left = min(left, -(done + 1) % trainer.val_check_batch)
        # Resuming right before a validation would skip it; resuming within a step would lose gradients.
        if not left or not stepped(trainer, index):
            return
        minutes = (time.monotonic() - self._saved_at) / 60
        # An interrupted validation is repeated from the last step before it that can be resumed.
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
        """Adapt the saved state of Lightning's loops and callbacks, which is restored after this, to this run."""
        batches: int = trainer.datamodule.train_batches  # type: ignore[attr-defined]
        loops = checkpoint["loops"]["fit_loop"]
        progress = loops["epoch_loop.batch_progress"]
        if checkpoint["train_batches"] != batches:
            if progress["current"]["processed"] < checkpoint["train_batches"]:
                raise ConfigError(
                    f"{self.path.parent}: the checkpoint was saved within an epoch of {checkpoint['train_batches']} "
                    f"batches per process, and now there are {batches}; resume with as many processes and batches as "
                    f"before, or name a checkpoint from the end of an epoch: --resume {self.path.with_name(BEST)}"
                )
            epochs = loops["epoch_progress"]["current"]["processed"]
            progress["current"] = dict.fromkeys(progress["current"], batches)
            progress["total"] = dict.fromkeys(progress["total"], epochs * batches)
        states = checkpoint["callbacks"]
        for stopping in _early_stopping(trainer):
            if stopping.state_key in states:
                states[stopping.state_key]["patience"] = stopping.patience
        for saver in trainer.checkpoint_callbacks:
            if isinstance(saver, ModelCheckpoint) and saver.state_key in states:
                _relocate(states, saver)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._signal = number
        for each in SIGNALS:
            signal.signal(each, signal.default_int_handler if each == signal.SIGINT else signal.SIG_DFL)
        log.warning("%s: saving and stopping after this step", signal.Signals(number).name)

    def _decide(self, trainer: pl.Trainer, request: int) -> int:
        """The highest request of all processes."""
        if trainer.world_size == 1:
            return request
        level = torch.tensor(request, device=trainer.strategy.root_device)
        return int(trainer.strategy.reduce(level, reduce_op="max"))

    def _end_on_signal(self, trainer: pl.Trainer) -> None:
        if self._decide(trainer, NOTHING if self._signal is None else STOP):
            self._end(trainer)

    def _save(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        if self._nonfinite:
            return  # keep the checkpoint from before the skipped steps
        self._check_weights(task)
        trainer.save_checkpoint(self.path)
        self._saved_at, self._saved_step = time.monotonic(), trainer.global_step

    def _check_weights(self, task: pl.LightningModule) -> None:
        """Raise TrainingError if a weight or running statistic is not finite: it would never recover."""
        for name, each in task.state_dict().items():
            if each.is_floating_point() and not each.isfinite().all():
                self._fail(f"{name} is not finite")

    def _fail(self, why: str) -> NoReturn:
        kept = f"the last good checkpoint is {self.path}; " if self.path.exists() else ""
        raise TrainingError(
            f"{why}; the last batch held images {self._images[:5]} and {max(0, len(self._images) - 5)} more; {kept}"
            "lower optimization.learning_rate, or check these images"
        )

    def _end(self, trainer: pl.Trainer) -> None:
        number = self._signal or signal.SIGTERM
        kept = "continue with --resume auto" if self.path.exists() else "nothing was saved yet"
        if self.path.exists() and self._saved_step != trainer.global_step:  # a validation is repeated
            kept += f", from step {self._saved_step}"
        ended = Interrupted(f"{signal.Signals(number).name} after step {trainer.global_step}; {kept}")
        ended.exit_code = 128 + number
        raise ended

    def _restore_handlers(self) -> None:
        for number, handler in self._handlers_before.items():
            signal.signal(number, handler)
        self._handlers_before = {}


def stepped(trainer: pl.Trainer, index: int) -> bool:
    """Whether the optimizer took a step after batch `index` of the epoch."""
    return (index + 1) % trainer.accumulate_grad_batches == 0 or index + 1 == trainer.num_training_batches


def stopped_early(trainer: pl.Trainer) -> bool:
    """Whether validation has not improved within the patience of a callback."""
    return any(0 < each.patience <= each.wait_count for each in _early_stopping(trainer))


def newest_checkpoint(folder: Path) -> Path | None:
    """The readable checkpoint with the most steps, preferably `last.ckpt`; None if the folder has no checkpoints.

    Raises CheckpointError if none of them can be read.
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


def check_same_run(identity: dict[str, Any], checkpoint: dict[str, Any], source: Path) -> None:
    """Raise ConfigError if the settings or captions of a resumed run differ from those that the checkpoint stores.

    The settings of the run's own config.yaml, which describe the network as it was built, are accepted too.
    """
    if "identity" not in checkpoint:
        raise CheckpointError(f"{source}: written by another version of captioner; start a new run with --init")
    before, now, resolved = map(_leaves, (checkpoint["identity"], identity, checkpoint["captioner"]["run"]))
    before = _leaves(to_dict(Config())) | before  # an older version had fewer settings
    for each in (before, now, resolved):  # sources may lie anywhere, too
        each["data.sources"] = [(source["name"], source["weight"]) for source in each.get("data.sources", [])]
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
            f"{source}: the run was started with other settings: {'; '.join(changed)}. Restore them, or start a new "
            "run with -o (and --init, to start from this run's model)"
        )


def _early_stopping(trainer: pl.Trainer) -> list[EarlyStopping]:
    return [each for each in trainer.early_stopping_callbacks if isinstance(each, EarlyStopping)]


def _relocate(states: dict[str, Any], saver: ModelCheckpoint) -> None:
    """Let a callback find its checkpoints where its folder is now; without its best one it starts afresh.

    Lightning drops the best score if the folder's real path has changed.
    """
    state, folder = states[saver.state_key], Path(str(saver.dirpath))

    def moved(path: str) -> str:
        return str(folder / Path(path).name) if path else ""

    if not Path(moved(state["best_model_path"])).is_file():
        del states[saver.state_key]
        return
    state["dirpath"] = saver.dirpath
    for name in ("best_model_path", "kth_best_model_path", "last_model_path"):
        state[name] = moved(state[name])
    state["best_k_models"] = {moved(path): score for path, score in state["best_k_models"].items()}


def _leaves(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted name."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= _leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


def _checkpoint_bytes(task: pl.LightningModule) -> int:
    """An estimate: the weights, their average, and two moments of those that are trained."""
    return sum(each.nbytes * (4 if each.requires_grad else 2) for each in task.parameters())
