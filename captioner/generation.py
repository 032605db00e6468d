"""Search for captions.   B images · K beams, or samples, of each · R = B·K rows · T tokens so far · V vocabulary

A strategy is a frozen dataclass; `start` gives it the state of one search. The loop is shared: one step of the decoder
over all rows, one choice over all rows, one look at whether everything is done.
"""

import copy
import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor

from captioner.errors import ConfigError
from captioner.model.decoder import TextDecoder
from captioner.model.linear import ordered_weights
from captioner.model.memory import Memory

WORTH_LEAVING_OUT = 0.25
"""Share of a batch's images that are done at which the others go on without them."""


class Hypothesis(NamedTuple):
    """A caption as tokens, without the start token; the end token is there unless the caption was cut off."""

    tokens: list[int]
    token_log_probs: list[float]
    """Natural logarithm of the model's probability of each token, forced ones included; no temperature, no penalty."""

    @property
    def log_prob(self) -> float:
        """Of the whole caption."""
        return math.fsum(self.token_log_probs)


@dataclass(frozen=True, kw_only=True)
class Strategy(ABC):
    """What every search shares."""

    max_length: int = 32
    """Most tokens after the start token, the end token and a forced prefix included."""
    min_length: int = 1
    """Fewest tokens before the end token, a forced prefix included."""
    no_repeat_ngram: int = 0
    """No run of this many tokens comes twice; 0 allows all."""

    def __post_init__(self) -> None:
        if not 0 <= self.min_length < self.max_length:
            raise ConfigError(
                f"min_length {self.min_length} and max_length {self.max_length}: a caption needs 0 <= min < max"
            )
        if self.no_repeat_ngram < 0:
            raise ConfigError(f"no_repeat_ngram {self.no_repeat_ngram}: give a number of tokens, or 0 to allow all")

    @property
    @abstractmethod
    def rows(self) -> int:
        """K, the rows an image takes."""

    @abstractmethod
    def start(self, begin: "_Begin") -> "_Search":
        """The state of one search over a batch."""


@dataclass(frozen=True, kw_only=True)
class Greedy(Strategy):
    """The most probable token at every step."""

    @property
    def rows(self) -> int:
        return 1

    def start(self, begin: "_Begin") -> "_Search":
        return _RowSearch(begin, self, None)


@dataclass(frozen=True, kw_only=True)
class Sampling(Strategy):
    """Tokens drawn from the model's distribution, sharpened and cut.

    The noise of an image depends on `seed` and on the image's key alone, not on its batch.
    """

    temperature: float = 1.0
    top_k: int = 0
    """Only the k most probable tokens; 0 keeps all."""
    top_p: float = 0.9
    """Only the most probable tokens that together reach this probability (Holtzman et al. 2020); 1 keeps all."""
    samples: int = 1
    """Captions an image."""
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

    def start(self, begin: "_Begin") -> "_Search":
        return _RowSearch(begin, self, self)


@dataclass(frozen=True, kw_only=True)
class BeamSearch(Strategy):
    """The `width` best beginnings are kept; finished captions compete by log-probability / length^length_penalty."""

    width: int = 5
    length_penalty: float = 1.0
    """0 compares sums, which favors short captions; 1 compares means; above 1 favors long ones."""
    captions: int = 1
    """Captions an image, best first; at most `width`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.captions <= self.width:
            raise ConfigError(f"captions {self.captions} of a beam of width {self.width}: ask for 1 to {self.width}")
        if not math.isfinite(self.length_penalty):
            raise ConfigError(f"length_penalty {self.length_penalty}: give a finite number")

    @property
    def rows(self) -> int:
        return self.width

    def start(self, begin: "_Begin") -> "_Search":
        return _BeamSearch(begin, self)


@dataclass(frozen=True)
class _Begin:
    """Where a search starts: the forced tokens (B, P), their log-probabilities (B, P), and what surrounds them."""

    prefix: Tensor
    prefix_log_probs: Tensor
    eos: int
    pad: int
    keys: Sequence[str]


@torch.inference_mode()
def generate(
    decoder: TextDecoder,
    memory: Memory,
    strategy: Strategy,
    *,
    bos: int,
    eos: int,
    pad: int = 0,
    suppressed: Sequence[int] = (),
    prefix: Sequence[int] = (),
    keys: Sequence[str] | None = None,
) -> list[list[Hypothesis]]:
    """B lists of captions, best first (samples: in order).

    `prefix` forces the first tokens, `suppressed` are never chosen, `keys` (B) name the images to Sampling's noise.
    Memory may hide positions by image, (B, N), not by row. Raises ConfigError where the lengths asked for do not fit
    the decoder's positions.
    """
    limit = decoder.config.max_length
    if strategy.max_length > limit - 1 or len(prefix) >= strategy.max_length:
        raise ConfigError(
            f"max_length {strategy.max_length} with a prefix of {len(prefix)} tokens: this model takes captions of at "
            f"most {limit - 1} tokens, and the prefix must be shorter than the caption"
        )
    images, device = memory.images, memory.layers[0].keys.device
    keys = keys if keys is not None else [str(number) for number in range(images)]
    forced = torch.tensor([bos, *prefix], device=device).expand(images, -1)
    was_training = decoder.training
    decoder.eval()
    try:
        with ordered_weights(decoder):
            return _search(decoder, memory, strategy, forced, keys, eos, pad, suppressed)
    finally:
        decoder.train(was_training)


def _search(
    decoder: TextDecoder,
    memory: Memory,
    strategy: Strategy,
    forced: Tensor,
    keys: Sequence[str],
    eos: int,
    pad: int,
    suppressed: Sequence[int],
) -> list[list[Hypothesis]]:
    """Captions that begin with the tokens `forced` (B, 1 + P), the start token the first of them."""
    images, device = forced.shape[0], forced.device
    length_before = forced.shape[1] - 1
    cache = decoder.new_cache(strategy.max_length)
    # The forced tokens are the same for every row of an image, so they pass once an image.
    log_probs = decoder(forced, memory, cache).logits.float().log_softmax(dim=-1)  # (B, 1 + P, V)
    prefix_log_probs = log_probs[:, :-1].gather(2, forced[:, 1:, None]).squeeze(2)
    search = strategy.start(_Begin(forced[:, 1:], prefix_log_probs, eos, pad, keys))
    blocked = torch.tensor(list(suppressed), dtype=torch.long, device=device)
    step_log_probs = log_probs[:, -1].repeat_interleave(strategy.rows, dim=0)  # (R, V)
    cache.select(torch.arange(images, device=device).repeat_interleave(strategy.rows))
    going = torch.arange(images)  # the images whose search is not over
    found: dict[int, list[Hypothesis]] = {}
    for length in range(length_before, strategy.max_length):
        step_log_probs.index_fill_(1, blocked, -math.inf)
        if 0 < strategy.no_repeat_ngram <= length:
            _forbid_repeats(step_log_probs, search.tokens, strategy.no_repeat_ngram)
        if length < strategy.min_length:
            _forbid_the_end(step_log_probs, eos)
        rows = search.step(step_log_probs)
        settled = search.settled().cpu()
        if length + 1 == strategy.max_length or bool(settled.all()):
            break
        if settled.float().mean() >= WORTH_LEAVING_OUT:
            found |= zip(going[settled].tolist(), search.take(settled.nonzero()[:, 0]).hypotheses(), strict=True)
            left = (~settled).nonzero()[:, 0]
            search, memory, going = search.take(left), memory.select(left.to(device)), going[left]
            left_rows = _rows_of(left, strategy.rows).to(device)
            rows = left_rows if rows is None else rows[left_rows]
        if rows is not None:
            cache.select(rows)
        step_log_probs = decoder(search.tokens[:, -1:], memory, cache).logits[:, -1].float().log_softmax(dim=-1)
    found |= zip(going.tolist(), search.hypotheses(), strict=True)
    return [found[image] for image in range(images)]


def _rows_of(images: Tensor, rows: int) -> Tensor:
    """The rows of images (B,) that have so many each: (B · rows,)."""
    return (images[:, None] * rows + torch.arange(rows)).flatten()


def _forbid_the_end(choices: Tensor, eos: int) -> None:
    """Set the end token to -inf in choices (R, V), but where every other is: such a row has to end nevertheless."""
    ends = choices[:, eos].clone()
    choices[:, eos] = -math.inf
    choices[:, eos] = torch.where(choices.amax(dim=1).isneginf(), ends, -math.inf)


def _forbid_repeats(choices: Tensor, tokens: Tensor, size: int) -> None:
    """Set to -inf, in choices (R, V), every token that would end an n-gram that tokens (R, T) hold already."""
    if size == 1:
        choices.scatter_(1, tokens, -math.inf)
        return
    windows = tokens.unfold(1, size, 1)  # (R, T - n + 1, n)
    seen = (windows[:, :, :-1] == tokens[:, None, 1 - size :]).all(dim=2)
    banned = torch.zeros_like(choices).scatter_add_(1, windows[:, :, -1], seen.to(choices.dtype))
    choices.masked_fill_(banned > 0, -math.inf)


class _Search(ABC):
    """The state of a search; `tokens` (R, T) are the rows' tokens after the start token."""

    tokens: Tensor

    @abstractmethod
    def step(self, log_probs: Tensor) -> Tensor | None:
        """Choose a token a row from log_probs (R, V), -inf where one is forbidden; return the rows to go on with."""

    @abstractmethod
    def settled(self) -> Tensor:
        """(B,) whether nothing can change any more for an image."""

    @abstractmethod
    def take(self, images: Tensor) -> Self:
        """The search of these of its images (B',) alone."""

    @abstractmethod
    def hypotheses(self) -> list[list[Hypothesis]]:
        """The captions found, an image a list."""


class _RowSearch(_Search):
    """Greedy search and sampling: every row goes its own way."""

    def __init__(self, begin: _Begin, strategy: Strategy, sampling: Sampling | None) -> None:
        self.rows = strategy.rows
        self.begin = begin
        self.tokens = begin.prefix.repeat_interleave(self.rows, dim=0)
        self.token_log_probs = begin.prefix_log_probs.repeat_interleave(self.rows, dim=0)
        self.ended = torch.zeros(len(self.tokens), dtype=torch.bool, device=self.tokens.device)
        self.sampling = sampling
        self.noise = _noise(begin.keys, sampling, strategy.max_length) if sampling else None  # (R, max_length)

    def step(self, log_probs: Tensor) -> Tensor | None:
        chosen = self._choose(log_probs).masked_fill(self.ended, self.begin.pad)
        gained = log_probs.gather(1, chosen[:, None]).masked_fill(self.ended[:, None], 0.0)
        self.tokens = torch.cat([self.tokens, chosen[:, None]], dim=1)
        self.token_log_probs = torch.cat([self.token_log_probs, gained], dim=1)
        self.ended = self.ended | (chosen == self.begin.eos)
        return None

    def settled(self) -> Tensor:
        return self.ended.view(-1, self.rows).all(dim=1)

    def take(self, images: Tensor) -> Self:
        rows = _rows_of(images, self.rows).to(self.tokens.device)
        part = copy.copy(self)
        part.tokens, part.token_log_probs, part.ended = self.tokens[rows], self.token_log_probs[rows], self.ended[rows]
        part.noise = None if self.noise is None else self.noise[rows.cpu()]
        return part

    def hypotheses(self) -> list[list[Hypothesis]]:
        found = _cut(self.tokens, self.token_log_probs, self.begin.eos)
        return [found[start : start + self.rows] for start in range(0, len(found), self.rows)]

    def _choose(self, choices: Tensor) -> Tensor:
        """choices (R, V) -> (R,): the most probable token, or the one at which the cumulative probability passes u."""
        if self.sampling is None or self.noise is None:
            return choices.argmax(dim=1)
        probabilities, order = (choices / self.sampling.temperature).softmax(dim=1).sort(dim=1, descending=True)
        if self.sampling.top_k:
            probabilities[:, self.sampling.top_k :] = 0.0
        before = probabilities.cumsum(dim=1) - probabilities
        probabilities = probabilities.masked_fill(before >= self.sampling.top_p, 0.0)
        reached = probabilities.cumsum(dim=1)
        uniform = self.noise[:, self.tokens.shape[1]].to(reached.device) * reached[:, -1]
        place = torch.searchsorted(reached, uniform[:, None], right=True)
        # Rounding may leave u at the very end of the sum: take the last token that has any probability. An ended row
        # may have none at all.
        last = ((probabilities > 0).sum(dim=1, keepdim=True) - 1).clamp(min=0)
        return order.gather(1, torch.minimum(place, last)).squeeze(1)


class _BeamSearch(_Search):
    """Beam search over (B, K) running captions and the K best finished ones."""

    def __init__(self, begin: _Begin, strategy: BeamSearch) -> None:
        self.begin, self.strategy = begin, strategy
        images, width = len(begin.prefix), strategy.width
        device = begin.prefix.device
        self.tokens = begin.prefix.repeat_interleave(width, dim=0)
        self.token_log_probs = begin.prefix_log_probs.repeat_interleave(width, dim=0)
        # All beams are equal at first: only one may have children.
        self.scores = torch.full((images, width), -math.inf, device=device)
        self.scores[:, 0] = 0.0
        self.finished_scores = torch.full((images, width), -math.inf, device=device)
        shape = (images, width, strategy.max_length)
        self.finished_tokens = torch.full(shape, begin.pad, device=device)
        self.finished_log_probs = torch.zeros(shape, device=device)
        self.first_row = torch.arange(images, device=device)[:, None] * width

    def step(self, log_probs: Tensor) -> Tensor | None:
        images, width = self.scores.shape
        # Each of the K beams ends at most once, so the best 2K hold K that go on.
        log_probs, words = log_probs.topk(min(2 * width, log_probs.shape[1]), dim=1)  # (R, at most 2K)
        most = log_probs.shape[1]
        candidates = self.scores[:, :, None] + log_probs.view(images, width, most)
        scores, flat = candidates.flatten(1).topk(2 * width, dim=1)  # (B, 2K)
        rows = self.first_row + flat // most
        chosen, gained = (each[rows, flat % most] for each in (words, log_probs))
        tokens = torch.cat([self.tokens[rows], chosen[:, :, None]], dim=2)  # (B, 2K, T)
        token_log_probs = torch.cat([self.token_log_probs[rows], gained[:, :, None]], dim=2)
        ends = chosen == self.begin.eos
        generated = tokens.shape[2] - self.begin.prefix.shape[1]
        self._finish(ends, scores, tokens, token_log_probs, generated)
        self.scores, best = scores.masked_fill(ends, -math.inf).topk(width, dim=1)
        kept = rows.gather(1, best).flatten()
        self.tokens = _rows(tokens, best).flatten(0, 1)
        self.token_log_probs = _rows(token_log_probs, best).flatten(0, 1)
        if tokens.shape[2] == self.strategy.max_length:
            # What is still running is cut off and competes as it stands.
            everything = torch.ones_like(self.scores, dtype=torch.bool)
            length = self.strategy.max_length
            running = self.tokens.view(images, width, length), self.token_log_probs.view(images, width, length)
            self._finish(everything, self.scores, *running, generated)
        return kept

    def take(self, images: Tensor) -> Self:
        images = images.to(self.tokens.device)
        rows = (self.first_row[images] + torch.arange(self.strategy.width, device=images.device)).flatten()
        part = copy.copy(self)
        part.tokens, part.token_log_probs = self.tokens[rows], self.token_log_probs[rows]
        part.first_row = self.first_row[: len(images)]
        for name in ("scores", "finished_scores", "finished_tokens", "finished_log_probs"):
            setattr(part, name, getattr(self, name)[images])
        return part

    def hypotheses(self) -> list[list[Hypothesis]]:
        # Where fewer captions exist than were asked for, there are fewer.
        real = self.finished_scores[:, : self.strategy.captions].isfinite().sum(dim=1).tolist()
        return [
            _cut(tokens[:count], log_probs[:count], self.begin.eos)
            for tokens, log_probs, count in zip(self.finished_tokens, self.finished_log_probs, real, strict=True)
        ]

    def settled(self) -> Tensor:
        """(B,) whether no running caption can still beat any of those to be returned for its image.

        A sum only falls, but its mean may rise with the length: the bound takes the longest caption allowed.
        """
        if self.strategy.width == 1:  # greedy search: its first end is its last
            return self.finished_scores[:, 0].isfinite()
        most = self.strategy.max_length - self.begin.prefix.shape[1]
        now = max(1, self.tokens.shape[1] - self.begin.prefix.shape[1])
        length = most if self.strategy.length_penalty > 0 else now
        bound = self.scores.max(dim=1).values / length**self.strategy.length_penalty
        settled: Tensor = self.finished_scores[:, self.strategy.captions - 1] >= bound
        return settled

    def _finish(self, ends: Tensor, scores: Tensor, tokens: Tensor, token_log_probs: Tensor, generated: int) -> None:
        """Merge candidates (B, any) that end into the K best finished captions, unless the image is settled."""
        width, length = self.strategy.width, tokens.shape[2]
        # An ending outside the best K is no better than a beam that goes on.
        ends = ends & (torch.arange(ends.shape[1], device=ends.device) < width)
        penalized = (scores / generated**self.strategy.length_penalty).masked_fill(~ends, -math.inf)
        penalized = penalized.masked_fill(self.settled()[:, None], -math.inf)
        room = self.strategy.max_length - length
        tokens = torch.nn.functional.pad(tokens, (0, room), value=self.begin.pad)
        token_log_probs = torch.nn.functional.pad(token_log_probs, (0, room))
        merged = torch.cat([self.finished_scores, penalized], dim=1)
        self.finished_scores, best = merged.topk(width, dim=1)
        self.finished_tokens = _rows(torch.cat([self.finished_tokens, tokens], dim=1), best)
        self.finished_log_probs = _rows(torch.cat([self.finished_log_probs, token_log_probs], dim=1), best)


def _rows(values: Tensor, index: Tensor) -> Tensor:
    """values (B, X, T), index (B, Y) -> (B, Y, T)."""
    return values.gather(1, index[:, :, None].expand(-1, -1, values.shape[2]))


def _cut(tokens: Tensor, token_log_probs: Tensor, eos: int) -> list[Hypothesis]:
    """tokens and log-probabilities (R, T) -> R hypotheses, each up to its end token."""
    found = []
    for row, log_probs in zip(tokens.tolist(), token_log_probs.tolist(), strict=True):
        length = row.index(eos) + 1 if eos in row else len(row)
        found.append(Hypothesis(row[:length], log_probs[:length]))
    return found


def _noise(keys: Sequence[str], sampling: Sampling, length: int) -> Tensor:
    """(R, length) uniform numbers in [0, 1), each image's from its own generator."""
    generators = _generators(keys, sampling.seed)
    return torch.cat([torch.rand(sampling.samples, length, generator=generator) for generator in generators])


def _generators(keys: Sequence[str], seed: int) -> Iterator[torch.Generator]:
    for key in keys:
        digest = hashlib.sha256(f"{seed}\0{key}".encode()).digest()
        yield torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
