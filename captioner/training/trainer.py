"""Lightning's Trainer, made from a configuration."""

import importlib
import inspect
import json
from collections.abc import Callable, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.callbacks import Callback, GradientAccumulationScheduler, LearningRateMonitor, WeightAveraging
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from captioner.config import Config
from captioner.errors import ConfigError
from captioner.text import did_you_mean, first_line
from captioner.training.durability import WholeCheckpoints
from captioner.training.progress import StderrProgressBar
from captioner.training.watch import Watch


def training_device(config: Config) -> torch.device:
    """The device on which this process will train. Raises ConfigError if Lightning rejects `training.trainer`."""
    options = {name: value for name, value in trainer_options(config).items() if name not in ("callbacks", "logger")}
    return _trainer(options | {"logger": False, "enable_checkpointing": False}).strategy.root_device


def make_trainer(
    config: Config, callbacks: Sequence[Callback], loggers: Sequence[Logger], *, fast_dev_run: bool
) -> pl.Trainer:
    """A Trainer with these callbacks and loggers and those that `training.trainer` lists."""
    options = trainer_options(config)
    watchers = [LearningRateMonitor("step"), *callbacks]
    if options.get("enable_progress_bar", True):
        watchers.append(StderrProgressBar(refresh_rate=20))
    if config.optimization.ema_decay is not None:
        watchers.append(WeightAveraging(multi_avg_fn=_moving_average(config.optimization.ema_decay)))
    watchers += _instances(options.pop("callbacks", []), Callback, "callbacks")
    watchers.append(Watch(60 * config.training.stall_minutes))  # the last, so that it counts what the others finished
    if any(isinstance(each, GradientAccumulationScheduler) for each in watchers):
        raise ConfigError(
            "GradientAccumulationScheduler changes how many batches a step takes, by which "
            "losses are normalized; set training.trainer.accumulate_grad_batches instead"
        )
    writers = [*loggers, *_instances(options.pop("logger", []), Logger, "logger")]
    return _trainer(options | {"callbacks": watchers, "logger": writers, "fast_dev_run": fast_dev_run})


def _moving_average(decay: float) -> Callable[[Sequence[Tensor], Sequence[Tensor], Any], None]:
    """PyTorch's exponential average, in the average's own dtype where weights have 16 bits.

    It interpolates, so a frozen encoder stays the same bit for bit.
    """
    interpolate = get_ema_multi_avg_fn(decay)

    def average(averaged: Sequence[Tensor], current: Sequence[Tensor], steps: Any) -> None:
        interpolate(averaged, [new.to(old.dtype) for old, new in zip(averaged, current, strict=True)], steps)

    return average


def is_first_process() -> bool:
    """Whether this is the process of a run that reports, as far as its launcher says: there may be only one."""
    return not getattr(rank_zero_only, "rank", 0)


def trainer_options(config: Config) -> dict[str, Any]:
    """The options of Lightning's Trainer. Raises ConfigError for one that it does not have."""
    options = dict(config.training.trainer)
    known = list(inspect.signature(pl.Trainer.__init__).parameters)
    if "max_steps" in options:
        raise ConfigError("training.trainer.max_steps: set the length of a run with training.epochs")
    for option in options:
        if option not in known:
            hint = did_you_mean(option, known)
            raise ConfigError(f"training.trainer.{option}: Lightning's Trainer has no such option{hint}")
    defaults = {
        "max_epochs": config.training.epochs,
        "gradient_clip_val": config.optimization.gradient_clip or None,
        # Self-critical training is compared with the model that it starts from.
        "num_sanity_val_steps": -1 if config.training.objective == "self_critical" else 0,
        "log_every_n_steps": 10,
        "enable_model_summary": False,
    }
    return defaults | options


def _trainer(options: dict[str, Any]) -> pl.Trainer:
    try:
        # GroupSampler distributes the batches itself.
        return pl.Trainer(**options, plugins=[WholeCheckpoints()], use_distributed_sampler=False)
    except (TypeError, ValueError, RuntimeError, MisconfigurationException) as error:
        raise ConfigError(f"training.trainer: rejected by Lightning ({first_line(error)})") from error


def _instances(entries: Any, kind: type[Any], key: str) -> list[Any]:
    """Objects from entries `{class_path: module.Class, init_args: {...}}`, in the notation of LightningCLI."""
    instances = []
    for entry in entries if isinstance(entries, list) else [entries]:
        place = f"training.trainer.{key}: {json.dumps(entry)}"
        known = isinstance(entry, dict) and entry.keys() <= {"class_path", "init_args"}
        path = str(entry.get("class_path")) if known else ""
        module, _, name = path.rpartition(".")
        try:
            found = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise ConfigError(
                f"{place} names no class ({first_line(error)}); write {{class_path: pytorch_lightning.{key}."
                "NAME, init_args: {...}}"
            ) from error
        if not (isinstance(found, type) and issubclass(found, kind)):
            raise ConfigError(f"{place}: {path} is not a {kind.__module__.split('.')[0]} {kind.__name__}")
        try:
            instances.append(found(**entry.get("init_args") or {}))
        except (TypeError, ValueError, ModuleNotFoundError, MisconfigurationException) as error:
            raise ConfigError(f"{place}: {name} rejects its init_args ({first_line(error)})") from error
    return instances
