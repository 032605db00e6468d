"""Self-critical training (Rennie et al. 2017): sampled captions are rewarded by their CIDEr-D.

The baseline of a sample is the mean reward of its image's other samples (Luo 2020, arXiv 2003.09971).
B images · S samples of each · R = B·S rows · T tokens · V vocabulary
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from captioner.config import Config
from captioner.data.annotations import CaptionedImage
from captioner.data.dataset import Batch
from captioner.generation import Sampling, Search
from captioner.metrics.ptb import TOKENIZERS
from captioner.metrics.reward import EOS, CiderReward
from captioner.model.attention import KeyValues
from captioner.model.caption_model import CaptionModel
from captioner.model.memory import Memory
from captioner.model.packed import pack
from captioner.tokenizer import Tokenizer
from captioner.training.task import SEED_STRIDE, CrossEntropyTask
from captioner.training.validation import CaptionValidation

log = logging.getLogger(__name__)


class SelfCriticalTask(CrossEntropyTask):
    """Raises the CIDEr-D of sampled captions; a share of cross-entropy keeps them close to those of people.

    `images` are the training images, whose captions are the references. Each data set has document frequencies of its
    own. Images in mosaics take part in the cross-entropy alone.
    """

    def __init__(
        self,
        model: CaptionModel,
        tokenizer: Tokenizer,
        config: Config,
        validation: CaptionValidation,
        images: Sequence[CaptionedImage],
    ) -> None:
        super().__init__(model, tokenizer, config, validation)
        self.options = config.self_critical
        self.words_of = TOKENIZERS[config.training.metric_tokenizer]
        by_dataset: dict[str, list[CaptionedImage]] = {}
        for image in images:
            by_dataset.setdefault(image.dataset, []).append(image)
        self.rewards = {
            name: CiderReward.of([image.captions for image in ours], self.words_of) for name, ours in by_dataset.items()
        }
        self.places = {
            image.image_id: (name, place) for name, ours in by_dataset.items() for place, image in enumerate(ours)
        }
        self.best, self.last = -math.inf, math.inf
        """The best and the latest validation CIDEr-D."""

    def training_step(self, batch: Batch, index: int) -> dict[str, Tensor]:
        """The loss, and what is logged of the samples."""
        memory = self.encode(batch)
        logged: dict[str, Tensor] = {}
        alone = [place for place, corner in enumerate(batch.corners.tolist()) if corner < 0]
        if alone:
            images = [batch.image_ids[place] for place in alone]
            whole = len(alone) == len(batch.image_ids)
            chosen = memory if whole else memory.select(torch.tensor(alone, device=batch.tokens.device))
            loss, tokens, logged = self.policy_loss(chosen, images)
        else:  # in mosaics: no samples, but every parameter has a gradient, for which other processes wait
            loss = torch.stack([each.sum() for each in self.model.parameters() if each.requires_grad]).sum() * 0
            tokens = 0
        loss = loss * self.token_share(tokens, batch)
        if self.options.cross_entropy:
            anchor, pointed = self.loss(batch, memory)
            loss = loss + self.options.cross_entropy * anchor * self.step_share(batch)
            logged["train_loss"] = anchor.detach()
            if pointed is not None:
                logged["train_pointing_loss"] = pointed.detach()
        for name, value in logged.items():
            self.log(name, value, prog_bar=name == "train_reward", batch_size=len(batch.image_ids))
        return logged | {"loss": loss}

    def policy_loss(self, memory: Memory, images: Sequence[int | str]) -> tuple[Tensor, int, dict[str, Tensor]]:
        """The policy gradient's loss for S samples of each image, a mean over tokens; the number of these tokens, and
        statistics of the samples."""
        tokens, lengths = self.sample(memory, images)
        read = [row[1:] for row in tokens.tolist()]
        texts = [self.tokenizer.decode(row) for row in read]
        ended = [self.tokenizer.eos in row for row in read]
        rewards = self.reward(images, texts, ended).to(tokens.device)
        samples = rewards.shape[1]
        advantages = (rewards - rewards.mean(dim=1, keepdim=True)) * (samples / (samples - 1))
        sampled = torch.arange(1, tokens.shape[1], device=tokens.device) < lengths[:, None]  # (R, T - 1)
        states, _ = self.model.decoder.states(tokens[:, :-1], memory)
        rows, places = sampled.nonzero(as_tuple=True)
        logits = self.model.decoder.logits(states[rows, places])
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        suppressed = torch.tensor(self.tokenizer.suppressed, device=tokens.device)
        log_probs = logits.index_fill(1, suppressed, -math.inf).log_softmax(dim=1)
        chosen = log_probs.gather(1, tokens[rows, places + 1][:, None])[:, 0]
        loss = -(advantages.flatten()[rows] * chosen).mean()
        return (
            loss,
            len(rows),
            {
                "train_reward": rewards.mean(),
                "train_entropy": -chosen.detach().mean(),
                "train_length": (lengths - 1).float().mean() - fmean(ended),
                "train_distinct": torch.tensor(len(set(texts)) / len(texts)),
            },
        )

    @torch.no_grad()
    def sample(self, memory: Memory, images: Sequence[int | str]) -> tuple[Tensor, Tensor]:
        """S samples of each image: tokens (R, T) with start and end token, padded, and their lengths (R,).

        They depend on the image and the step, not on the process or the rest of the batch.
        """
        strategy = Sampling(
            max_length=self.model.decoder.config.max_length - 1,
            top_p=1.0,
            samples=self.options.samples,
            seed=self.config.training.seed + SEED_STRIDE * self.trainer.fit_loop.total_batch_idx,
        )
        with torch.autocast(memory.layers[0].keys.device.type, enabled=False):
            search = Search(
                pack(self.model.decoder),
                self._detached(memory),
                strategy,
                bos=self.tokenizer.bos,
                eos=self.tokenizer.eos,
                pad=self.tokenizer.pad,
                suppressed=self.tokenizer.suppressed,
                keys=[str(image) for image in images],
            )
            while not search.done:
                search.step()
        found = search.sequences().tokens.flatten(0, 1).clone()  # made in inference mode
        ended = found == self.tokenizer.eos
        lengths = torch.where(ended.any(dim=1), ended.int().argmax(dim=1) + 1, found.shape[1])
        return torch.cat([found.new_full((len(found), 1), self.tokenizer.bos), found], dim=1), lengths + 1

    def _detached(self, memory: Memory) -> Memory:
        dtype = self.model.decoder.token_embedding.weight.dtype
        layers = (
            KeyValues(keys.detach().to(dtype), values.detach().to(dtype), keep) for keys, values, keep in memory.layers
        )
        return replace(memory, layers=tuple(layers))

    def reward(self, images: Sequence[int | str], texts: Sequence[str], ended: Sequence[bool]) -> Tensor:
        """(B, S): CIDEr-D of texts (R), scored by the references of their image; an ended caption has EOS."""
        words = [text.split() + [EOS] * end for text, end in zip(self.words_of(texts), ended, strict=True)]
        samples = len(texts) // len(images)
        rewards = torch.zeros(len(images), samples)
        for name, reward in self.rewards.items():
            ours = [row for row, image in enumerate(images) if self.places[image][0] == name]
            if not ours:
                continue
            grouped = [words[row * samples : (row + 1) * samples] for row in ours]
            places = [self.places[images[row]][1] for row in ours]
            rewards[ours] = torch.from_numpy(reward.reward(places, grouped)).to(rewards.dtype)
        return rewards

    def on_validation_epoch_end(self) -> None:
        """Stops a run whose captions get worse, as those of a policy that cheats its reward do."""
        self.last = self.validation.log_results(self)["val_cider_d"]
        self.best = max(self.best, self.last)
        self._guard()

    def on_train_start(self) -> None:
        self._guard()  # a stopped run that is resumed

    def _guard(self) -> None:
        if self.last < self.best - self.options.max_drop:
            log.warning(
                "validation CIDEr-D fell from %.4f to %.4f, by more than self_critical.max_drop %g: stopping; lower "
                "optimization.learning_rate or raise self_critical.cross_entropy",
                *(self.best, self.last, self.options.max_drop),
            )
            self.trainer.should_stop = True

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["self_critical"] = {"best": self.best, "last": self.last}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        state = checkpoint["self_critical"]
        self.best, self.last = state["best"], state["last"]
