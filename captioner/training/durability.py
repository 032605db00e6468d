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
from typing import Any, NoReturn

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import CheckpointIO
from pytorch_lightning.callbacks import Checkpoint, EarlyStopping
from torch.optim import Optimizer

from captioner.checkpoint import load_training_file
from captioner.config import Config
from captioner.config_files import config_from_dict, to_dict
from captioner.data.datamodule import SIGNALS
from captioner.data.dataset import Batch
from captioner.data.features import require_space
from captioner.errors import CheckpointError, ConfigError, Interrupted, ResourceError, TrainingError
from captioner.files import write_whole

log = logging.getLogger(__name__)

LAST, BEST = "last.ckpt", "best.ckpt"
MAY_CHANGE = (
    "name",
    "decoder.init",  # where it was: its weights and words are in the checkpoint
    *(f"data.{name}" for name in ("root", "annotations", "images", "format", "workers")),
    *(f"training.{name}" for name in ("epochs", "patience", "sample_captions", "threads", "trainer")),
    *(f"training.{name}" for name in ("nonfinite_steps", "checkpoint_minutes")),
)
"""Settings that may differ when a run goes on; that the captions are the same is seen from the captions."""


class WholeCheckpoints(CheckpointIO):
    """Checkpoints of plain data that replace older ones only when they are on the disk."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Raises ResourceError where the file cannot be written; what was there before stays."""
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            write_whole(Path(path), lambda file: torch.save(checkpoint, file), sync=True)
        except (OSError, RuntimeError) as error:  # torch.save tells a full disk as a RuntimeError
            free = shutil.disk_usage(Path(path).parent).free
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
            raise ResourceError(
                f"{path}: cannot be written ({reason}; {free / 2**20:.0f} MiB free); what was there before is whole: "
                "make room, or mend the folder, and go on with --resume auto"
            ) from error

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return load_training_file(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


class Durability(Checkpoint):
    """Keeps `folder/last.ckpt`: every so many minutes, before each validation, after each epoch, and on a signal.

    A step whose gradient is not finite changes no weight; too many in a row raise TrainingError, and so do weights that
    are not finite. A signal raises Interrupted after the step that is under way; a second one acts at once.
    """

    def __init__(self, folder: Path, asked: dict[str, Any], *, minutes: float, nonfinite_steps: int) -> None:
        self.path = folder / LAST
        self.asked = asked
        self.minutes, self.nonfinite_steps = minutes, nonfinite_steps
        self._signal: int | None = None
        self._handlers_before: dict[int, Any] = {}
        self._saved_at = math.inf
        self._nonfinite = 0
        self._images: list[int | str] = []

    def on_train_start(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        self._saved_at = time.monotonic()
        for partial in self.path.parent.glob(".*.partial"):
            partial.unlink()
        there = sum(each.stat().st_size for each in self.path.parent.glob("*.ckpt"))
        # The last one, the best one, and one that is being written.
        require_space(self.path.parent, 3 * _checkpoint_bytes(task) - there, "checkpoints")
        # A run that stopped early and is called again does not train on.
        trainer.should_stop |= had_enough(trainer)
        if trainer.received_sigterm:  # it came before this hook
            self._signal = signal.SIGTERM
        if threading.current_thread() is threading.main_thread():
            self._handlers_before = {each: signal.signal(each, self._hear) for each in SIGNALS}

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
        log.warning("step %d: loss or gradient not finite; passed over", trainer.global_step)
        if self._nonfinite >= self.nonfinite_steps:
            self._give_up(f"loss or gradient not finite in {self._nonfinite} steps up to step {trainer.global_step}")

    def on_train_batch_end(
        self, trainer: pl.Trainer, task: pl.LightningModule, outputs: Any, batch: Batch, index: int
    ) -> None:
        left = trainer.num_training_batches - 1 - index
        if isinstance(trainer.val_check_batch, int):
            left = min(left, -(index + 1) % trainer.val_check_batch)
        # A checkpoint after the last batch would pass over its validation; within a step it would lose gradients.
        if not left or not stepped(trainer, index):
            return
        stopping = self._agreed(trainer, self._signal is not None)
        # In validation a run can only be ended, so that the step before it is the last chance.
        due = time.monotonic() - self._saved_at >= 60 * self.minutes or left <= trainer.accumulate_grad_batches
        if stopping or self._agreed(trainer, due):
            self._save(trainer, task)
        if stopping:
            self._end(trainer)

    def on_validation_start(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        self._check_weights(task)  # before Lightning may take them for the best

    def on_validation_batch_start(
        self, trainer: pl.Trainer, task: pl.LightningModule, batch: Batch, index: int, dataloader_idx: int = 0
    ) -> None:
        if self._agreed(trainer, self._signal is not None):
            self._end(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        self._save(trainer, task)
        if self._agreed(trainer, self._signal is not None):
            self._end(trainer)

    def on_train_end(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        self._restore_handlers()

    def on_exception(self, trainer: pl.Trainer, task: pl.LightningModule, exception: BaseException) -> None:
        self._restore_handlers()

    def on_save_checkpoint(self, trainer: pl.Trainer, task: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["asked"] = self.asked
        checkpoint["train_batches"] = trainer.num_training_batches

    def on_load_checkpoint(self, trainer: pl.Trainer, task: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Lightning's own callbacks are restored after this: what they keep is brought to where the run is now."""
        batches: int = trainer.datamodule.train_batches  # type: ignore[attr-defined]
        done = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["processed"]
        if checkpoint.get("train_batches", batches) != batches and done < checkpoint["train_batches"]:
            raise ConfigError(
                f"{self.path.parent}: the checkpoint is from within an epoch of {checkpoint['train_batches']} batches, "
                f"and now there are {batches} in each process; go on with as many processes as before"
            )
        for state in checkpoint["callbacks"].values():
            if "patience" in state:
                state["patience"] = next((each.patience for each in _early_stopping(trainer)), state["patience"])
            if state.get("dirpath"):  # the folder may have been moved
                state["dirpath"] = str(self.path.parent)
                for name in ("best_model_path", "kth_best_model_path"):
                    state[name] = str(self.path.parent / Path(state[name]).name) if state[name] else ""
                state["best_k_models"] = {
                    str(self.path.parent / Path(path).name): score for path, score in state["best_k_models"].items()
                }

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self._signal = number
        for each in SIGNALS:
            signal.signal(each, signal.default_int_handler if each == signal.SIGINT else signal.SIG_DFL)
        log.warning("%s: saving after this step", signal.Signals(number).name)

    def _agreed(self, trainer: pl.Trainer, wish: bool) -> bool:
        """Whether any process wishes it."""
        return wish if trainer.world_size == 1 else bool(trainer.strategy.reduce_boolean_decision(wish, all=False))

    def _save(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        if self._nonfinite:
            return  # the older one is better
        self._check_weights(task)
        trainer.save_checkpoint(self.path)
        self._saved_at = time.monotonic()

    def _check_weights(self, task: pl.LightningModule) -> None:
        """Also running statistics: those that are not finite never recover."""
        for name, each in task.state_dict().items():
            if each.is_floating_point() and not each.isfinite().all():
                self._give_up(f"{name} is not finite")

    def _give_up(self, why: str) -> NoReturn:
        kept = f"the last good checkpoint is {self.path}; " if self.path.exists() else ""
        raise TrainingError(
            f"{why}, the last on images {self._images[:5]} and {max(0, len(self._images) - 5)} more; {kept}lower "
            "optimization.learning_rate, or look at these images"
        )

    def _end(self, trainer: pl.Trainer) -> None:
        number = self._signal or signal.SIGTERM
        kept = "the same command with --resume auto goes on" if self.path.exists() else "nothing was saved yet"
        ended = Interrupted(f"{signal.Signals(number).name} after step {trainer.global_step}; {kept}")
        ended.exit_code = 128 + number
        raise ended

    def _restore_handlers(self) -> None:
        for number, handler in self._handlers_before.items():
            signal.signal(number, handler)
        self._handlers_before = {}


def stepped(trainer: pl.Trainer, index: int) -> bool:
    """Whether the optimizer took a step after batch `index` of the epoch, rather than gathering more gradients."""
    return (index + 1) % trainer.accumulate_grad_batches == 0 or index + 1 == trainer.num_training_batches


def had_enough(trainer: pl.Trainer) -> bool:
    """Whether validation has been no better for as many epochs as patience allows."""
    return any(0 < each.patience <= each.wait_count for each in _early_stopping(trainer))


def newest_checkpoint(folder: Path) -> Path | None:
    """The run's checkpoint of the most steps that can be read, the last one where two have equally many; None where
    there is none. Raises CheckpointError where there are some and none can be read.
    """
    found: list[tuple[int, bool, Path]] = []
    problem: CheckpointError | None = None
    for path in sorted(folder.glob("*.ckpt")):
        try:
            found.append((int(load_training_file(path)["global_step"]), path.name == LAST, path))
        except CheckpointError as error:
            log.warning("%s; passed over", error)
            problem = error
    if problem is not None and not found:
        raise problem
    return max(found)[2] if found else None


def what_was_asked(config: Config, captions: str) -> dict[str, Any]:
    """What a checkpoint keeps of a run: its settings, and a fingerprint of its captions."""
    return {"config": to_dict(config), "captions": captions}


def check_same_run(asked: dict[str, Any], checkpoint: dict[str, Any], source: Path) -> None:
    """Raise ConfigError where a run would go on with settings, or captions, that change what it learns.

    Those of the run's own config.yaml, where the network is as it became, are as good as those that were given.
    """
    if "asked" not in checkpoint:  # written before checkpoints held it
        return
    restored = to_dict(config_from_dict(Config, checkpoint["asked"]["config"], str(source)))
    before, now = dict(_leaves(restored)), dict(_leaves(asked["config"]))
    before["captions"], now["captions"] = checkpoint["asked"]["captions"], asked["captions"]
    resolved = checkpoint["asked"].get("resolved")
    became = {} if resolved is None else dict(_leaves(to_dict(config_from_dict(Config, resolved, str(source)))))
    if before["data.features"] and now["data.features"]:
        before["data.features"] = now["data.features"]  # wherever they are kept
    changed = [
        f"{name} was {json.dumps(before.get(name))} and is {json.dumps(now.get(name))}"
        for name in sorted(before.keys() | now.keys())
        if now.get(name) not in (before.get(name), became.get(name, before.get(name)))
        and not name.startswith(MAY_CHANGE)
    ]
    if changed:
        raise ConfigError(
            f"{source}: the run was begun with other settings: {'; '.join(changed)}. Set them back, or begin another "
            "run with -o (and --init, to learn on from this one's model)"
        )


def _early_stopping(trainer: pl.Trainer) -> list[EarlyStopping]:
    return [each for each in trainer.early_stopping_callbacks if isinstance(each, EarlyStopping)]


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
