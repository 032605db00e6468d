"""Training tasks: a loss and validation.   B images · R = B·C caption rows · T tokens · V vocabulary"""

import logging
import math
from functools import cached_property
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor

from captioner.checkpoint import describe
from captioner.config import Config
from captioner.config_files import to_dict
from captioner.data.dataset import Batch
from captioner.model.caption_model import CaptionModel
from captioner.model.memory import Memory
from captioner.tokenizer import Tokenizer
from captioner.training.attention_losses import pointing, pointing_loss
from captioner.training.optimization import optimizer_and_schedule
from captioner.training.validation import CaptionValidation

log = logging.getLogger(__name__)

SEED_STRIDE = 1_000_003
"""Distance between the seeds of two batches; a large prime, so that runs with other seeds do not share them."""


class CaptionTask(pl.LightningModule):
    """What all tasks share; a subclass adds `training_step`, and with it the loss."""

    def __init__(
        self, model: CaptionModel, tokenizer: Tokenizer, config: Config, validation: CaptionValidation
    ) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.config = config
        self.validation = validation
        self.skipped = 0
        self.schedule_shift = 0
        """Steps that the schedule is ahead of Lightning's count; not 0 if earlier epochs had other numbers of steps."""

    def encode(self, batch: Batch) -> Memory:
        """The memory of the batch's B images, from pixels or stored features."""
        if batch.features is None:
            return self.model.encode(batch.images)  # type: ignore[arg-type]
        return self.model.decoder.project(batch.features.to(self.model.decoder.token_embedding.weight.dtype))

    def cross_entropy(self, states: Tensor, batch: Batch, label_smoothing: float = 0.0) -> Tensor:
        """The mean loss over the batch's tokens without padding, in nats, from the decoder's states (R, T - 1, D)."""
        rows, places = batch.predicting
        logits = self.model.decoder.logits(states[rows, places])
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return F.cross_entropy(logits, batch.tokens[rows, places + 1], label_smoothing=label_smoothing)

    def step_share(self, batch: Batch) -> Tensor | float:
        """The factor that turns Lightning's mean over processes and batches into a mean over the step's tokens."""
        if self.config.data.shards is not None:  # the tokens of other processes are not known in advance
            return self.token_share(batch.predicting.shape[1], batch)
        return self._weighted(batch)

    def token_share(self, tokens: int, batch: Batch) -> Tensor | float:
        """The same for a loss that is a mean over `tokens` of this process; those of the others are asked for.

        Of several batches a step, each counts by its weight.
        """
        if self.trainer.world_size == 1:
            return self._weighted(batch)
        mine = tokens * (batch.weight > 0)
        device = batch.tokens.device
        sums = [torch.full((), each, dtype=torch.float64, device=device) for each in (mine, batch.weight)]
        total, weight = self.trainer.strategy.reduce(torch.stack(sums), reduce_op="sum")
        factor: Tensor = mine / total.clamp(min=1) * weight * self.trainer.world_size
        return factor * self.trainer.accumulate_grad_batches

    def _weighted(self, batch: Batch) -> float:
        return batch.weight * self.trainer.world_size * self.trainer.accumulate_grad_batches

    @cached_property
    def epoch_steps(self) -> int:
        """Optimizer steps of an epoch; Lightning's estimate would fetch data before a run is restored."""
        trainer: Any = self.trainer
        steps: int = math.ceil(trainer.datamodule.train_batches / trainer.accumulate_grad_batches)
        return steps

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.epoch_steps * max(1, self.trainer.max_epochs or 1)

    @property
    def batch_seed(self) -> int:
        """The seed of the current batch, another one in each process."""
        batches: int = self.trainer.fit_loop.total_batch_idx * self.trainer.world_size + self.trainer.global_rank
        return self.config.training.seed + SEED_STRIDE * batches

    def on_train_batch_start(self, batch: Batch, index: int) -> None:
        # Seeded by batch, so that a resumed run draws the same dropout as an uninterrupted one.
        torch.manual_seed(self.batch_seed)
        self.skipped += batch.skipped

    def on_train_epoch_end(self) -> None:
        if self.skipped:
            log.warning("epoch %d: %d samples left out, as they cannot be used", self.current_epoch, self.skipped)
            self.skipped = 0

    def validation_step(self, batch: Batch, index: int, dataloader_idx: int = 0) -> None:
        if not batch.weight:  # a repeated batch, which keeps processes in step
            return
        memory = self.encode(batch)
        if dataloader_idx:
            self.validation.add_mosaics(self.model, batch, memory)
        else:
            self.validation.add_loss(batch, self.validation_loss(batch, memory))
            self.validation.add_images(self.model, batch, memory)

    def validation_loss(self, batch: Batch, memory: Memory) -> Tensor:
        """The cross-entropy of the batch's captions without label smoothing, in nats a token."""
        states, _ = self.model.decoder.states(batch.tokens[:, :-1], memory)
        return self.cross_entropy(states, batch)

    def on_validation_epoch_end(self) -> None:
        self.validation.log_results(self)

    def configure_optimizers(self) -> Any:
        optimizer, schedule = optimizer_and_schedule(
            self.model,
            self.config.optimization,
            total_steps=self.total_steps,
            shift=lambda: self.schedule_shift,
            fused=not self.trainer.precision.endswith("-mixed"),  # Lightning clips no fused gradients then
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["captioner"] = describe(self.model, self.tokenizer) | {"run": to_dict(self.config)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Let the schedule go on by epochs: with another number of processes, an epoch has other steps."""
        loops = checkpoint["loops"]["fit_loop"]
        done = loops["epoch_loop.batch_progress"]["current"]["processed"]
        steps = 0 if done >= checkpoint["train_batches"] else done // self.trainer.accumulate_grad_batches
        steps += loops["epoch_progress"]["current"]["processed"] * self.epoch_steps
        self.schedule_shift = steps - checkpoint["global_step"]


class CrossEntropyTask(CaptionTask):
    """Predicts each token of a caption from its image and the tokens before."""

    def training_step(self, batch: Batch, index: int) -> dict[str, Tensor]:
        """The loss, and the parts of it that are logged."""
        loss, pointed = self.loss(batch, self.encode(batch))
        logged = {"train_loss": loss.detach()}
        if pointed is not None:
            logged["train_pointing_loss"] = pointed.detach()
        for name, value in logged.items():
            self.log(name, value, prog_bar=name == "train_loss", batch_size=len(batch.lengths))
        return logged | {"loss": loss * self.step_share(batch)}

    def loss(self, batch: Batch, memory: Memory) -> tuple[Tensor, Tensor | None]:
        """The loss in nats a token, and its pointing loss if the batch has object words in mosaics."""
        options, encoder = self.config.optimization, self.model.encoder
        points = options.pointing > 0 and bool(batch.objects.any())
        states, weights = self.model.decoder.states(batch.tokens[:, :-1], memory, return_weights=points)
        loss = self.cross_entropy(states, batch, options.label_smoothing)
        if weights is None:
            return loss, None
        pointed = pointing_loss(pointing(weights, batch, encoder.grid, encoder.patches))
        # At full strength only from the middle of the run: a captioner that does not use its images yet would learn
        # not to.
        ramp = min(1.0, 2 * (self.global_step + self.schedule_shift) / self.total_steps)
        return loss + options.pointing * ramp * pointed, pointed
