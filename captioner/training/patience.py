"""Early stopping that noise does not end."""

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping


class Patience(EarlyStopping):
    """Stops a run once neither its score nor its validation loss has improved for `patience` validations.

    The CIDEr-D of a few dozen photos moves up and down while a model still learns; the loss moves less.
    """

    def __init__(self, monitor: str, mode: str, patience: int) -> None:
        super().__init__(monitor, mode=mode, patience=patience, check_finite=False, strict=False)
        self.best_loss = float("inf")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        loss = float(trainer.callback_metrics.get("val_loss", torch.inf))
        if not trainer.sanity_checking and loss < self.best_loss:
            self.best_loss = loss
            self.wait_count = -1  # Lightning adds 1 where the score is not better
        super().on_validation_end(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"best_loss": self.best_loss}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.best_loss = state_dict.get("best_loss", float("inf"))
