"""Cross-entropy training.   B images · R = B·C caption rows · T tokens · V vocabulary"""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor

from captioner.caption import Caption
from captioner.checkpoint import describe
from captioner.config import Config
from captioner.config_files import to_dict
from captioner.data.dataset import Batch
from captioner.data.mosaics import corner_shares
from captioner.evaluation import Evaluation, ImageId, caption_features, evaluate_captions
from captioner.generation import Greedy
from captioner.model.caption_model import CaptionModel
from captioner.model.memory import Memory
from captioner.tokenizer import Tokenizer
from captioner.training.optimization import optimizer_and_schedule

log = logging.getLogger(__name__)

SEED_STRIDE = 1_000_003
"""Between the seeds of two batches; a prime, so that the batches of runs with other seeds do not meet."""
SMALLEST_MASS = 1e-6
"""Below it a share of attention counts as this, whose logarithm is finite."""
COLLAPSE_IMAGES = 8
"""Fewer different images than this say nothing about a captioner that repeats itself."""


class CaptionTask(pl.LightningModule):
    """Every next word of a caption from the words before it and its image; the loss is in nats a token.

    After an epoch the validation images are captioned by greedy search and scored against `references`.
    """

    def __init__(
        self,
        model: CaptionModel,
        tokenizer: Tokenizer,
        config: Config,
        references: Mapping[ImageId, Sequence[str]] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.config = config
        self.references = references or {}
        self._captions: dict[ImageId, Caption] = {}
        self._steps = 0  # of the whole run, once it begins

    def see(self, batch: Batch) -> Memory:
        """What the batch's B images offer to their captions."""
        features = self.model.encoder(batch.images) if batch.features is None else batch.features.float()
        return self.model.decoder.project(features)

    def loss(self, batch: Batch, memory: Memory, label_smoothing: float = 0.0) -> tuple[Tensor, int]:
        """The mean loss of the batch's real tokens, and how many they are."""
        inputs, targets = batch.tokens[:, :-1], batch.tokens[:, 1:]
        states, _ = self.model.decoder.states(inputs, memory)
        return self._cross_entropy(states, targets, self._real(inputs), label_smoothing)

    def _real(self, inputs: Tensor) -> Tensor:
        """Where inputs (R, T) still have a next token: GPT-2 pads with its end token, so the targets do not tell."""
        after = (inputs == self.tokenizer.eos) | (inputs == self.tokenizer.pad)
        after[:, 0] = False  # GPT-2's start token is its end token too
        return ~after

    def _cross_entropy(
        self, states: Tensor, targets: Tensor, real: Tensor, label_smoothing: float
    ) -> tuple[Tensor, int]:
        chosen = targets[real]
        logits = self.model.decoder.logits(states[real])  # only where there is a word to predict
        return F.cross_entropy(logits, chosen, label_smoothing=label_smoothing), len(chosen)

    def on_train_batch_start(self, batch: Batch, index: int) -> None:
        # Dropout depends on the seed and the batch alone, so that a resumed run draws what the whole one would have.
        batches = self.trainer.fit_loop.total_batch_idx * self.trainer.world_size + self.trainer.global_rank
        torch.manual_seed(self.config.training.seed + SEED_STRIDE * batches)

    def training_step(self, batch: Batch, index: int) -> dict[str, Tensor]:
        """The loss, and what of it is logged."""
        options, decoder, encoder = self.config.optimization, self.model.decoder, self.model.encoder
        memory = self.see(batch)
        inputs, targets = batch.tokens[:, :-1], batch.tokens[:, 1:]
        real = self._real(inputs)
        points = options.pointing > 0 and bool((batch.corners >= 0).any())
        blind = self._blind_images(batch)
        measures = options.null_mass > 0 and len(blind) > 0
        states, weights = decoder.states(inputs, memory, return_weights=points or measures)
        logged: dict[str, Tensor] = {}
        extra = states.new_zeros(())
        if points:
            assert weights is not None
            found = pointing(weights, batch, encoder.grid, encoder.patches)
            if len(found):
                lost = -found.mean(dim=(1, 2)).clamp(min=SMALLEST_MASS).log().mean()
                logged["train_pointing_loss"] = lost.detach()
                extra = extra + self._grown(options.pointing) * lost
        if len(blind):
            rows = torch.arange(len(inputs), device=self.device).view(memory.images, -1)[blind].flatten()
            without, _ = decoder.states(inputs[rows], self.model.blind(memory.select(blind)))
            if measures:
                assert weights is not None
                mass = weights[rows][..., encoder.patches.stop :].sum(dim=-1).mean(dim=(1, 2))  # (R', T)
                there = real[rows]
                lost = self._null_loss(mass[there], states[rows][there], without[there])
                logged["train_null_mass_loss"] = lost.detach()
                extra = extra + self._grown(options.null_mass) * lost
            states = torch.cat([states, without])
            targets, real = (torch.cat([each, each[rows]]) for each in (targets, real))
        loss, tokens = self._cross_entropy(states, targets, real, options.label_smoothing)
        loss = loss + extra
        logged["train_loss"] = loss.detach()
        for name, value in logged.items():
            self.log(name, value, prog_bar=name == "train_loss", batch_size=tokens)
        return logged | {"loss": loss}

    def _grown(self, weight: float) -> float:
        """The weight of a loss on attention at this step: in full from the middle of the run.

        Where a captioner does not use its images yet, such a loss would teach it not to.
        """
        return weight * min(1.0, 2 * self.global_step / max(1, self._steps))

    def _blind_images(self, batch: Batch) -> Tensor:
        """The images whose captions are learned once more without them; never mosaics, where words must look."""
        rate = self.config.optimization.blind
        if not rate:  # nothing is drawn, so that dropout stays what it is without this option
            return batch.corners.new_empty(0)
        drawn = torch.rand(len(batch.corners), device=self.device) < rate
        return (drawn & (batch.corners < 0)).nonzero()[:, 0]

    def _null_loss(self, mass: Tensor, seen: Tensor, blind: Tensor) -> Tensor:
        """Binary cross-entropy of the null patch's mass (K,) and the share of the next word's distribution, with the
        image, that is there without it: Σ min(p, q).

        seen, blind (K, D): the states with the image and without.
        """
        with torch.no_grad():
            with_image, without = (self.model.decoder.logits(each).softmax(dim=-1) for each in (seen, blind))
            share = torch.minimum(with_image, without).sum(dim=-1).clamp(max=1)
        return F.binary_cross_entropy(mass.float().clamp(SMALLEST_MASS, 1 - SMALLEST_MASS), share.float())

    def validation_step(self, batch: Batch, index: int, dataloader_idx: int = 0) -> None:
        memory = self.see(batch)
        if dataloader_idx:
            self._look(batch, memory)
            return
        loss, tokens = self.loss(batch, memory)
        self.log("val_loss", loss, prog_bar=True, batch_size=tokens, sync_dist=True, add_dataloader_idx=False)
        # An image with many captions comes several times.
        new = [place for place, image in enumerate(batch.image_ids) if image not in self._captions]
        if new:
            images = [batch.image_ids[place] for place in new]
            seen = memory.select(torch.tensor(new, device=self.device))
            self._captions |= caption_features(self.model.decoder, self.tokenizer, [(images, seen)], Greedy())

    def _look(self, batch: Batch, memory: Memory) -> None:
        """Log, per layer and head, how object words look at mosaics: pointing, entropy in bits, null mass."""
        encoder = self.model.encoder
        _, weights = self.model.decoder.states(batch.tokens[:, :-1], memory, return_weights=True)
        assert weights is not None
        found = pointing(weights, batch, encoder.grid, encoder.patches)
        if not len(found):
            return
        named = weights.permute(0, 3, 1, 2, 4)[batch.objects[:, 1:]]  # (K, L, H, N)
        patches = named[..., encoder.patches]
        shares = patches / patches.sum(dim=-1, keepdim=True).clamp(min=SMALLEST_MASS)
        measured = {
            "pointing": found,
            "entropy": -(shares * shares.clamp(min=SMALLEST_MASS).log2()).sum(dim=-1),
            "null_mass": named[..., encoder.patches.stop :].sum(dim=-1),
        }
        for name, values in measured.items():
            each = {f"val_{name}": values.mean()}
            each |= {
                f"heads/{name}_{layer}.{head}": values[:, layer, head].mean()
                for layer in range(values.shape[1])
                for head in range(values.shape[2])
            }
            self.log_dict(each, batch_size=len(found), sync_dist=True, add_dataloader_idx=False)

    def on_validation_epoch_end(self) -> None:
        captions, self._captions = self._of_all_ranks(self._captions), {}
        found = evaluate_captions(captions, self.references, tokenizer=self.config.training.metric_tokenizer)
        for name in ("bleu_4", "cider_d"):
            value = found.scores.corpus[name]
            number = math.nan if value is None else value
            self.log(f"val_{name}", number, prog_bar=name == "cider_d", sync_dist=True)
        if self.trainer.is_global_zero:
            self._tell(found)

    def _of_all_ranks(self, captions: dict[ImageId, Caption]) -> dict[ImageId, Caption]:
        """Every process validates some of the images; all score all of them, in the references' order."""
        parts = [captions]
        if self.trainer.world_size > 1:
            gathered: list[Any] = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(gathered, captions)
            parts = gathered
        merged = {image: caption for part in parts for image, caption in part.items()}
        return {image: merged[image] for image in self.references if image in merged}

    def _tell(self, found: Evaluation) -> None:
        """Scores and some captions, in the log; a warning where all images get the same caption."""
        texts = [caption.text for caption in found.captions.values()]
        scores, statistics = found.scores.corpus, found.statistics
        log.info(
            "epoch %d: CIDEr-D %s, BLEU-4 %.4f of %d images; %d %% of the captions distinct, %.1f words",
            self.current_epoch,
            "undefined" if scores["cider_d"] is None else f"{scores['cider_d']:.4f}",
            scores["bleu_4"],
            len(texts),
            round(100 * statistics.distinct_captions),
            statistics.mean_length,
        )
        for text in texts[: self.config.training.sample_captions]:
            log.info("epoch %d: %s", self.current_epoch, text)
        for logger in self.loggers:
            if isinstance(logger, pl.loggers.TensorBoardLogger):
                shown = "\n\n".join(texts[: self.config.training.sample_captions])
                logger.experiment.add_text("captions", shown, self.global_step)
        if len(texts) >= COLLAPSE_IMAGES and len(set(texts)) == 1 and not self.trainer.sanity_checking:
            log.warning(
                "all %d validation images get the same caption (%s): early in training this is normal; later it means "
                "that the image is ignored: look for features that are all alike, a learning rate that is too high, "
                "or captions paired with the wrong images",
                len(texts),
                texts[0],
            )

    def configure_optimizers(self) -> Any:
        self._steps = self._total_steps()
        optimizer, schedule = optimizer_and_schedule(
            self.model,
            self.config.optimization,
            total_steps=self._steps,
            fused=self.trainer.precision != "16-mixed",  # whose gradients are scaled until they are clipped
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _total_steps(self) -> int:
        """Optimizer steps of the whole run; Lightning's own estimate would fetch data before a run is restored."""
        trainer: Any = self.trainer
        batches: int = trainer.datamodule.train_batches
        steps: int = math.ceil(batches / trainer.accumulate_grad_batches) * max(1, trainer.max_epochs or 1)
        return steps

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["captioner"] = describe(self.model, self.tokenizer) | {"run": to_dict(self.config)}


def pointing(weights: Tensor, batch: Batch, grid: tuple[int, int], patches: slice) -> Tensor:
    """The share of the attention on patches that K object words of mosaics put on their own photo: (K, L, H).

    weights (R, L, H, T, N) of the steps that predict the tokens after the first.
    """
    rows = len(batch.tokens) // len(batch.corners)
    corners = batch.corners.repeat_interleave(rows)
    named = batch.objects[:, 1:] & (corners >= 0)[:, None]  # (R, T)
    seen = weights.permute(0, 3, 1, 2, 4)[named][..., patches]  # (K, L, H, h·w)
    shares = torch.from_numpy(corner_shares(grid)).to(weights)[corners.clamp(min=0)]  # (R, h·w)
    own = shares[:, None].expand(-1, named.shape[1], -1)[named]  # (K, h·w)
    return (seen @ own[:, None, :, None]).squeeze(-1) / seen.sum(dim=-1).clamp(min=SMALLEST_MASS)
