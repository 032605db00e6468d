"""Validation: loss, scores of greedy captions, and attention metrics.   L layers · H heads"""

import logging
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed
from torch import Tensor

from captioner.caption import Caption
from captioner.config import TrainingConfig
from captioner.data.annotations import CaptionedImage
from captioner.data.dataset import Batch
from captioner.evaluation import Evaluation, ImageId, caption_features, evaluate_captions
from captioner.generation import Greedy
from captioner.model.caption_model import CaptionModel
from captioner.model.decoder import TextDecoder
from captioner.model.memory import Memory
from captioner.model.packed import pack
from captioner.tokenizer import Tokenizer
from captioner.training.attention_losses import attention_measures

log = logging.getLogger(__name__)

COLLAPSE_IMAGES = 8
"""Smallest number of images for which equal captions are reported; fewer may really be alike."""


@dataclass
class Found:
    """Captions and sums over (a part of) the validation split; parts of several processes are added up."""

    captions: dict[ImageId, Caption] = field(default_factory=dict)
    loss: float = 0.0
    """Summed over tokens."""
    tokens: int = 0
    attention: dict[str, Tensor] = field(default_factory=dict)
    """(L, H), summed over object words."""
    words: int = 0

    def add(self, other: "Found") -> None:
        """Add another part of the split."""
        self.captions |= other.captions
        self.loss, self.tokens = self.loss + other.loss, self.tokens + other.tokens
        for name, values in other.attention.items():
            self.attention[name] = self.attention.get(name, 0) + values
        self.words += other.words

    def means(self) -> dict[str, float]:
        """The loss in nats a token and, if there were object words, their attention metrics: overall and by head."""
        found = {"val_loss": self.loss / self.tokens}
        for name, values in self.attention.items() if self.words else ():
            means = values / self.words
            found[f"val_{name}"] = float(means.mean())
            for layer, heads in enumerate(means.tolist()):
                found |= {f"heads/{name}_{layer}.{head}": value for head, value in enumerate(heads)}
        return found


class CaptionValidation:
    """Collects the results of each process's validation batches; the first process scores all captions.

    `images` are those of the validation split. An image is captioned in the style of its references, or in none if
    these differ. Captions are scored in the order of the images, each data set by itself; the mean of its data sets'
    scores is the run's.
    """

    def __init__(self, tokenizer: Tokenizer, images: Sequence[CaptionedImage], config: TrainingConfig) -> None:
        self.tokenizer = tokenizer
        self.references: dict[str, dict[ImageId, Sequence[str]]] = {}
        self.controls: dict[ImageId, tuple[int, ...]] = {}
        known = tokenizer.controls("style")
        for image in images:
            self.references.setdefault(image.dataset, {})[image.image_id] = image.captions
            styles = {known.get(style or "") for style in image.styles}
            self.controls[image.image_id] = tuple(filter(None, styles)) if len(styles) == 1 else ()
        self.config = config
        self._found = Found()
        self._decoder: TextDecoder | None = None

    def add_loss(self, batch: Batch, loss: Tensor) -> None:
        """Add a batch's loss, a mean over tokens."""
        tokens = batch.predicting.shape[1]
        self._found.add(Found(loss=float(loss) * tokens, tokens=tokens))

    def add_images(self, model: CaptionModel, batch: Batch, memory: Memory) -> None:
        """Caption a batch's images that have no caption yet, in the style of their references."""
        new: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
        for place, image in enumerate(batch.image_ids):
            if image not in self._found.captions:  # an image with many captions is in several batches
                new[self.controls.get(image, ())].append(place)
        for control, places in new.items():
            images = [batch.image_ids[place] for place in places]
            chosen = memory.select(torch.tensor(places, device=batch.tokens.device))
            self._decoder = self._decoder or pack(model.decoder)  # once an epoch
            self._found.add(
                Found(caption_features(self._decoder, self.tokenizer, [(images, chosen)], Greedy(), control))
            )

    def add_mosaics(self, model: CaptionModel, batch: Batch, memory: Memory) -> None:
        """Add the attention metrics of a batch of mosaics."""
        _, weights = model.decoder.states(batch.tokens[:, :-1], memory, return_weights=True)
        assert weights is not None
        measured = attention_measures(weights, batch, model.encoder.grid, model.encoder.patches)
        sums = {name: values.double().sum(dim=0).cpu() for name, values in measured.items()}
        self._found.add(Found(attention=sums, words=len(measured["pointing"])))

    def log_results(self, task: pl.LightningModule) -> dict[str, float]:
        """Merge the results of all processes, score and log them, and reset for the next epoch."""
        trainer = task.trainer
        parts, self._found, self._decoder = gather(self._found, trainer), Found(), None
        numbers: dict[str, float] = {}
        if trainer.is_global_zero:
            found = Found()
            for part in parts:
                found.add(part)
            numbers = found.means()
            evaluations = self._evaluations(found.captions)
            when = "before training" if trainer.sanity_checking else f"epoch {task.current_epoch}"
            log.info("%s: validation loss %.3f nats a token", when, numbers["val_loss"])
            for metric in ("bleu_4", "cider_d") if evaluations else ():
                scores = {name: each.scores.corpus[metric] for name, each in evaluations.items()}
                known = {name: math.nan if score is None else score for name, score in scores.items()}
                numbers[f"val_{metric}"] = fmean(known.values())
                if len(known) > 1:
                    numbers |= {f"val_{name}_{metric}": score for name, score in known.items()}
            for name, evaluation in evaluations.items():
                log_evaluation(task, when, name, evaluation, self.config.sample_captions)
        numbers = trainer.strategy.broadcast(numbers)
        task.log_dict(numbers)
        return numbers

    def _evaluations(self, captions: Mapping[ImageId, Caption]) -> dict[str, Evaluation]:
        """The evaluation of each data set of which images were captioned."""
        found = {}
        for name, references in self.references.items():
            if ours := {image: captions[image] for image in references if image in captions}:
                found[name] = evaluate_captions(ours, references, tokenizer=self.config.metric_tokenizer)
        return found


def gather(part: Found, trainer: pl.Trainer) -> list[Found]:
    """The parts of all processes, in every process."""
    if trainer.world_size == 1:
        return [part]
    parts: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(parts, part)
    return parts


def log_evaluation(task: pl.LightningModule, when: str, dataset: str, evaluation: Evaluation, samples: int) -> None:
    """Log a data set's scores and first captions, after `when`; warn if all images get the same caption."""
    texts = [caption.text for caption in evaluation.captions.values()]
    scores, statistics = evaluation.scores.corpus, evaluation.statistics
    log.info(
        "%s: %sCIDEr-D %s, BLEU-4 %.4f by greedy search of %d images; %d %% of the captions distinct, %.1f words",
        when,
        f"{dataset}: " if dataset else "",
        "undefined" if scores["cider_d"] is None else f"{scores['cider_d']:.4f}",
        scores["bleu_4"],
        len(texts),
        round(100 * statistics.distinct_captions),
        statistics.mean_length,
    )
    for text in texts[:samples]:
        log.info("%s: %s", when, text)
    for logger in task.loggers:
        if isinstance(logger, pl.loggers.TensorBoardLogger):
            logger.experiment.add_text("captions", "\n\n".join(texts[:samples]), task.global_step)
    if len(texts) >= COLLAPSE_IMAGES and len(set(texts)) == 1 and not task.trainer.sanity_checking:
        log.warning(
            "all %d validation images get the same caption (%s). This is normal early in training; later it means that "
            "images are ignored: check for constant features, a learning rate that is too high, or captions paired "
            "with the wrong images",
            len(texts),
            texts[0],
        )
