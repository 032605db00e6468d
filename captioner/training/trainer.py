"""Lightning's Trainer as a configuration asks for it."""

import importlib
import inspect
import json
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.callbacks import Callback, LearningRateMonitor, WeightAveraging
from pytorch_lightning.loggers import Logger
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from captioner.config import Config
from captioner.errors import ConfigError
from captioner.text import first_line
from captioner.training.durability import WholeCheckpoints
from captioner.training.progress import StderrProgressBar

LOG_EVERY = "log_every_n_steps"


def training_device(config: Config) -> torch.device:
    """The device on which this process will train. Raises ConfigError where Lightning refuses `training.trainer`."""
    options = {name: value for name, value in _options(config).items() if name not in ("callbacks", "logger")}
    return _trainer(options | {"logger": False, "enable_checkpointing": False}).strategy.root_device


def make_trainer(
    config: Config, callbacks: Sequence[Callback], loggers: Sequence[Logger], *, fast_dev_run: bool
) -> pl.Trainer:
    """The Trainer with these callbacks and loggers and those that `training.trainer` lists."""
    options = _options(config)
    watchers = [LearningRateMonitor("step"), *callbacks]
    if options.get("enable_progress_bar", True):
        watchers.append(StderrProgressBar(refresh_rate=20))
    if config.optimization.ema_decay is not None:
        watchers.append(WeightAveraging(multi_avg_fn=_moving_average(config.optimization.ema_decay)))
    watchers += _instances(options.pop("callbacks", []), Callback, "callbacks")
    writers = [*loggers, *_instances(options.pop("logger", []), Logger, "logger")]
    return _trainer(options | {"callbacks": watchers, "logger": writers, "fast_dev_run": fast_dev_run})


def _moving_average(decay: float) -> Callable[[Sequence[Tensor], Sequence[Tensor], Any], None]:
    """PyTorch's average by interpolation, which leaves what does not change, such as a frozen encoder, bit for bit; it
    is kept in float32 where weights have 16 bits.
    """
    interpolate = get_ema_multi_avg_fn(decay)

    def average(averaged: Sequence[Tensor], current: Sequence[Tensor], steps: Any) -> None:
        interpolate(averaged, [new.to(old.dtype) for old, new in zip(averaged, current, strict=True)], steps)

    return average


def _options(config: Config) -> dict[str, Any]:
    options = dict(config.training.trainer)
    known = list(inspect.signature(pl.Trainer.__init__).parameters)
    if "max_steps" in options:
        raise ConfigError("training.trainer.max_steps: a run is as long as training.epochs says; set that")
    for option in options:
        if option not in known:
            close = "".join(f"; did you mean {name}?" for name in get_close_matches(option, known, n=1))
            raise ConfigError(f"training.trainer.{option}: Lightning's Trainer has no such option{close}")
    defaults = {
        "max_epochs": config.training.epochs,
        "gradient_clip_val": config.optimization.gradient_clip or None,
        "num_sanity_val_steps": 0,
        LOG_EVERY: 10,
        "enable_model_summary": False,
    }
    return defaults | options


def _trainer(options: dict[str, Any]) -> pl.Trainer:
    try:
        # GroupSampler shares the batches out itself.
        return pl.Trainer(**options, plugins=[WholeCheckpoints()], use_distributed_sampler=False)
    except (TypeError, ValueError, MisconfigurationException) as error:
        raise ConfigError(f"training.trainer: Lightning does not take it ({first_line(error)})") from error


def _instances(entries: Any, kind: type[Any], key: str) -> list[Any]:
    """Objects from entries `{class_path: module.Class, init_args: {...}}`, as Lightning writes them."""
    made = []
    for entry in entries if isinstance(entries, list) else [entries]:
        place = f"training.trainer.{key}: {json.dumps(entry)}"
        path = (
            entry.get("class_path") if isinstance(entry, dict) and entry.keys() <= {"class_path", "init_args"} else ""
        )
        module, _, name = str(path).rpartition(".")
        try:
            found = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise ConfigError(
                f"{place} names no class ({first_line(error)}); write {{class_path: pytorch_lightning.{key}."
                "NAME, init_args: {...}}"
            ) from error
        if not (isinstance(found, type) and issubclass(found, kind)):
            raise ConfigError(f"{place}: {path} is no {kind.__module__.split('.')[0]} {kind.__name__}")
        try:
            made.append(found(**entry.get("init_args") or {}))
        except (TypeError, ValueError, ModuleNotFoundError, MisconfigurationException) as error:
            raise ConfigError(f"{place}: {name} does not take this ({first_line(error)})") from error
    return made
