"""Greedy search, sampling and beam search.   B images · K rows of an image · R = B·K rows · T tokens · V vocabulary

A strategy is a frozen dataclass; the state of one search is an object that `captioner.generation.search` advances.
"""

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from captioner.errors import ConfigError


class Hypothesis(NamedTuple):
    """A caption as tokens, without the start token; the end token is there unless the caption was cut off."""

    tokens: list[int]
    token_log_probs: list[float]
    """Natural logarithm of the model's probability of each token, forced ones included; no temperature, no penalty."""

    @property
    def log_prob(self) -> float:
        """The log-probability of the whole caption: the sum over its tokens."""
        return math.fsum(self.token_log_probs)


class Sequences(NamedTuple):
    """Captions as tensors: tokens (B, K, T) without the start token, padded after the end token, the log-probability of
    each (B, K, T), zero there, and how many of the K captions exist (B,)."""

    tokens: Tensor
    log_probs: Tensor
    counts: Tensor


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """Options that every search has."""

    max_length: int = 32
    """Most tokens after the start token, the end token and a forced prefix included."""
    min_length: int = 1
    """Fewest tokens before the end token, a forced prefix included."""
    no_repeat_ngram: int | None = None
    """No run of this many tokens comes twice; 0 allows all. None leaves it to the caller (`caption_memory`), or allows
    all."""

    def __post_init__(self) -> None:
        if not 0 <= self.min_length < self.max_length:
            raise ConfigError(
                f"min_length {self.min_length} and max_length {self.max_length}: a caption needs 0 <= min < max"
            )
        if self.no_repeat_ngram is not None and self.no_repeat_ngram < 0:
            raise ConfigError(f"no_repeat_ngram {self.no_repeat_ngram}: give a number of tokens, or 0 to allow all")

    @property
    def rows(self) -> int:
        """K, the rows of an image."""
        return 1


@dataclass(frozen=True, kw_only=True)
class Greedy(Strategy):
    """The most probable token at every step."""


@dataclass(frozen=True, kw_only=True)
class Sampling(Strategy):
    """Tokens drawn from the model's distribution, sharpened and cut.

    The noise of an image depends on `seed` and on the image's key alone, not on its batch; training gives each of its
    steps another seed.
    """

    temperature: float = 1.0
    top_k: int = 0
    """Only the k most probable tokens; 0 keeps all."""
    top_p: float = 0.9
    """Only the most probable tokens that together reach this probability (Holtzman et al. 2020); 1 keeps all."""
    samples: int = 1
    """Captions of each image."""
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.temperature < math.inf or not 0 < self.top_p <= 1 or self.top_k < 0 or self.samples < 1:
            raise ConfigError(
                f"temperature {self.temperature}, top_p {self.top_p}, top_k {self.top_k}, samples {self.samples}: "
                "temperature must be above 0, top_p in (0, 1], top_k at least 0, samples at least 1"
            )

    @property
    def rows(self) -> int:
        return self.samples

    def noise(self, key: str) -> Tensor:
        """(samples, max_length) uniform numbers in [0, 1) for the image of this key."""
        digest = hashlib.sha256(f"{self.seed}\0{key}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        return torch.rand(self.samples, self.max_length, generator=generator)

    def draw(self, choices: Tensor, uniform: Tensor) -> Tensor:
        """choices (R, V), uniform (R,) in [0, 1) -> (R,): the token at which the cumulative probability passes u."""
        probabilities, order = (choices / self.temperature).softmax(dim=1), None
        if self.top_k or self.top_p < 1:
            probabilities, order = probabilities.sort(dim=1, descending=True)
            if self.top_k:
                probabilities[:, self.top_k :] = 0.0
            before = probabilities.cumsum(dim=1) - probabilities
            probabilities = probabilities.masked_fill(before >= self.top_p, 0.0)
        reached = probabilities.cumsum(dim=1)
        total = reached[:, -1:].contiguous()
        place = torch.searchsorted(reached, uniform[:, None] * total, right=True)
        # Rounding may leave u at the very end of the sum: take the token that completes it. An ended row may have no
        # probabilities at all.
        place = torch.minimum(place, torch.searchsorted(reached, total)).clamp(max=reached.shape[1] - 1)
        return (place if order is None else order.gather(1, place)).squeeze(1)


@dataclass(frozen=True, kw_only=True)
class BeamSearch(Strategy):
    """The `width` best beginnings are kept; finished captions compete by log-probability / length^length_penalty.

    With `consensus`, the one of the `width` best captions that has most in common with the others comes first
    (`captioner.consensus`). Without, they are sorted by that score.
    """

    width: int = 5
    length_penalty: float = 1.0
    """0 compares sums, which favors short captions; 1 compares means; above 1 favors long ones."""
    captions: int = 1
    """Captions of each image, best first; at most `width`."""
    consensus: bool = True
    """Sort them by what they have in common, not by their score."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.captions <= self.width:
            raise ConfigError(f"captions {self.captions} of a beam of width {self.width}: ask for 1 to {self.width}")
        if not math.isfinite(self.length_penalty):
            raise ConfigError(f"length_penalty {self.length_penalty}: give a finite number")

    @property
    def rows(self) -> int:
        return self.width


def with_captions(search: Strategy, captions: int) -> Strategy:
    """The search for this many captions an image. Raises ConfigError for greedy search, which finds one."""
    if isinstance(search, BeamSearch):
        return replace(search, captions=captions, width=max(search.width, captions))
    if isinstance(search, Sampling):
        return replace(search, samples=captions)
    if captions != 1:
        raise ConfigError(f"num_captions {captions}: greedy search finds one; search with BeamSearch or Sampling")
    return search


class State(ABC):
    """The state of a search: tensors with an entry an image, among them buffers (B, K, max_length) of all tokens."""

    def __init__(self, strategy: Strategy, prefix: Tensor, log_probs: Tensor, eos: int, pad: int) -> None:
        """Begin with the forced tokens (B, P) and their log-probabilities."""
        images, self.length = prefix.shape
        self.eos, self.pad = eos, pad
        shape = (images, strategy.rows, strategy.max_length)
        self._tokens = torch.full(shape, pad, device=prefix.device)
        self._log_probs = torch.zeros(shape, device=prefix.device)
        self._tokens[:, :, : self.length] = prefix[:, None]
        self._log_probs[:, :, : self.length] = log_probs[:, None]

    @property
    def tokens(self) -> Tensor:
        """(R, T) after the start token."""
        return self._tokens.flatten(0, 1)[:, : self.length]

    @abstractmethod
    def step(self, choices: Tensor) -> Tensor | None:
        """Choose a token a row from log-probabilities (R, V); return the rows to go on with, None for all in order."""

    @abstractmethod
    def settled(self) -> Tensor:
        """(B,) whether nothing can change any more for an image."""

    def keep(self, images: Tensor) -> None:
        """Continue with these images (B',) alone."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value[images])

    @abstractmethod
    def sequences(self) -> Sequences:
        """The captions as they stand, padded to max_length."""


class RowState(State):
    """Greedy search and sampling: the rows do not depend on each other."""

    def __init__(
        self, strategy: Strategy, prefix: Tensor, log_probs: Tensor, eos: int, pad: int, keys: Sequence[str]
    ) -> None:
        """`keys` (B) name the images to Sampling's noise."""
        super().__init__(strategy, prefix, log_probs, eos, pad)
        self.ended = torch.zeros(self._tokens.shape[:2], dtype=torch.bool, device=prefix.device)
        self.sampling = strategy if isinstance(strategy, Sampling) else None
        if self.sampling is not None:
            self.noise = torch.stack([self.sampling.noise(key) for key in keys]).to(prefix.device)

    def step(self, choices: Tensor) -> Tensor | None:
        if self.sampling is None:
            chosen = choices.argmax(dim=1)
        else:
            chosen = self.sampling.draw(choices, self.noise[:, :, self.length].flatten())
        chosen = chosen.view_as(self.ended).masked_fill(self.ended, self.pad)
        gained = choices.gather(1, chosen.view(-1, 1)).view_as(self.ended)
        self._tokens[:, :, self.length] = chosen
        self._log_probs[:, :, self.length] = gained.masked_fill(self.ended, 0.0)
        self.ended = self.ended | (chosen == self.eos)
        self.length += 1
        return None

    def settled(self) -> Tensor:
        return self.ended.all(dim=1)

    def sequences(self) -> Sequences:
        images, rows = self.ended.shape
        return Sequences(self._tokens, self._log_probs, torch.full((images,), rows, device=self._tokens.device))


class BeamState(State):
    """Beam search over (B, K) running captions and the K best finished ones."""

    def __init__(self, strategy: BeamSearch, prefix: Tensor, log_probs: Tensor, eos: int, pad: int) -> None:
        super().__init__(strategy, prefix, log_probs, eos, pad)
        self.strategy, self.prefix_length = strategy, self.length
        # All beams are equal at first: only one may have children.
        self.scores = torch.full(self._tokens.shape[:2], -math.inf, device=prefix.device)
        self.scores[:, 0] = 0.0
        self.finished = torch.full_like(self.scores, -math.inf)  # penalized scores, best first
        self.finished_tokens = torch.full_like(self._tokens, pad)
        self.finished_log_probs = torch.zeros_like(self._log_probs)

    def step(self, choices: Tensor) -> Tensor | None:
        images, width = self.scores.shape
        # Each of the K beams ends at most once, so the best 2K hold K that go on.
        log_probs, words = choices.topk(min(2 * width, choices.shape[1]), dim=1)  # (R, at most 2K)
        most = log_probs.shape[1]
        candidates = self.scores[:, :, None] + log_probs.view(images, width, most)
        scores, flat = candidates.flatten(1).topk(2 * width, dim=1)  # (B, 2K)
        rows = torch.arange(0, len(choices), width, device=choices.device)[:, None] + flat // most
        chosen, gained = words.view(images, -1).gather(1, flat), log_probs.view(images, -1).gather(1, flat)
        ends = chosen == self.eos
        # An ending outside the best K is no better than a beam that goes on. The host would wait for an accelerator's
        # answer, so there the branch is always taken.
        if choices.device.type != "cpu" or bool(ends[:, :width].any()):
            extended = self._extended(rows[:, :width], chosen[:, :width], gained[:, :width])
            penalized = self._penalized(scores[:, :width], self.length + 1).masked_fill(~ends[:, :width], -math.inf)
            self.finished, self.finished_tokens, self.finished_log_probs = self._best(penalized, *extended)
        self.scores, best_rows = scores.masked_fill(ends, -math.inf).topk(width, dim=1)
        kept, chosen, gained = (each.gather(1, best_rows) for each in (rows, chosen, gained))
        self._tokens, self._log_probs = self._extended(kept, chosen, gained)
        self.length += 1
        return kept.flatten()

    def settled(self) -> Tensor:
        """(B,) whether no running caption can still beat any of those to be returned for its image.

        A sum only falls, but its mean may rise with the length: the bound takes the longest caption allowed. With
        consensus, only the most probable caption must be certain, and all K must be found.
        """
        if self.strategy.width == 1:  # greedy search: its first end is its last
            return self.finished[:, 0].isfinite()
        length = self.strategy.max_length if self.strategy.length_penalty > 0 else self.length
        bound = self._penalized(self.scores.amax(dim=1), length)
        certain = 0 if self.strategy.consensus else self.strategy.captions - 1
        settled: Tensor = self.finished[:, certain] >= bound
        if self.strategy.consensus:
            settled = settled & self.finished[:, -1].isfinite()
        return settled

    def sequences(self) -> Sequences:
        """The K best of the finished captions and the running ones, which compete as they stand."""
        best = self._best(self._penalized(self.scores, self.length), self._tokens, self._log_probs)
        scores, tokens, log_probs = best
        return Sequences(tokens, log_probs, scores.isfinite().sum(dim=1))  # fewer may exist

    def _penalized(self, scores: Tensor, length: int) -> Tensor:
        """Sums of log-probabilities as captions of this length compete; a forced prefix does not count."""
        divisor: float = max(1, length - self.prefix_length) ** self.strategy.length_penalty
        return scores / divisor

    def _extended(self, rows: Tensor, chosen: Tensor, gained: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens of rows (B, X) with one more each, and their log-probabilities: (B, X, max_length)."""
        tokens, log_probs = (each.flatten(0, 1)[rows] for each in (self._tokens, self._log_probs))
        tokens[:, :, self.length], log_probs[:, :, self.length] = chosen, gained
        return tokens, log_probs

    def _best(self, scores: Tensor, tokens: Tensor, log_probs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The K best of the finished captions and of others (B, X), which do not count where the image is settled."""
        scores = scores.masked_fill(self.settled()[:, None], -math.inf)
        best_scores, best = torch.cat([self.finished, scores], dim=1).topk(self.strategy.width, dim=1)
        index = best[:, :, None].expand(-1, -1, tokens.shape[2])
        return (
            best_scores,
            torch.cat([self.finished_tokens, tokens], dim=1).gather(1, index),
            torch.cat([self.finished_log_probs, log_probs], dim=1).gather(1, index),
        )
