"""The card of a trained model, README.md in its folder."""

from pathlib import Path
from typing import Literal

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint

from captioner.config import Config, DataConfig
from captioner.config_files import dump_yaml


def model_card(config: Config, init: Path | None, best: ModelCheckpoint, trainer: pl.Trainer) -> str:
    """The README.md of a trained model: what it is, its data, its validation score and its configuration."""
    if best.best_model_score is None:
        score = "not measured"
    elif best.monitor == "val_loss":
        score = f"cross-entropy {best.best_model_score:.3f} nats a token, of the best epoch"
    else:
        score = f"CIDEr-D {best.best_model_score:.4f} (greedy search), of the best epoch by this score"
    origin = init or config.decoder.init
    start = f"* Started from `{origin}`: the terms in its card apply too.\n" if origin else ""
    return (
        f"# {config.name or 'captioner model'}\n\n"
        f"An image captioner trained with captioner. Encoder: timm `{config.encoder.name}`"
        f" at {config.encoder.image_size}; decoder: {config.decoder.layers} layers of width {config.decoder.width}.\n\n"
        f"* Data: {_list(config.data, 'train_split')}; its terms apply to the weights too.\n"
        f"{start}"
        f"* Validation: {_list(config.data, 'val_split')}: {score}.\n"
        f"* Seed {config.training.seed}, {trainer.current_epoch} epochs, {trainer.global_step} steps.\n\n"
        f"```yaml\n{dump_yaml(config)}```\n"
    )


def _list(data: DataConfig, split: Literal["train_split", "val_split"]) -> str:
    """The data sets in words, each with a split."""
    return " and ".join(f"`{each.root}` (split `{getattr(each, split)}`)" for each in data.sources or [data])
