"""Captions of image memory: text, words and probabilities."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import fmean
from typing import Self

from captioner.generation import Hypothesis, Strategy, generate
from captioner.inspection.word_table import are_objects
from captioner.model.decoder import TextDecoder
from captioner.model.memory import Memory
from captioner.tokenizer import Tokenizer

MIN_DOUBT = 1e-6
"""Smallest 1 - p and smallest distance, so that their logarithms are finite."""
MAX_SCORE = 50.0
"""Largest log-odds against a word, so that their exponential is finite."""


@dataclass(frozen=True)
class CaptionWord:
    """A word and the natural logarithm of its probability."""

    text: str
    log_prob: float
    confidence: float | None = None
    """The probability that a human caption of the photo has this word; None if the model is not calibrated."""


@dataclass(frozen=True)
class Caption:
    """A caption with its probability, and the runners-up where several captions were requested."""

    text: str
    log_prob: float
    """Sum of the natural-log probabilities of its tokens, the end token included; no length penalty."""
    words: tuple[CaptionWord, ...]
    tokens: tuple[int, ...]
    """Without the start token; the end token is there unless the caption was cut off."""
    alternatives: tuple["Caption", ...] = ()
    cut_off: bool = False
    """Whether the caption reached the maximum length before its end."""
    unfamiliarity: float | None = None
    """How unlike the training photos its photo is; above 1 it is unfamiliar. None if the model has no measure of it."""

    @property
    def confidence(self) -> float:
        """The expected share of its words that a human caption of the photo has.

        If the model is not calibrated: the geometric mean of the tokens' probabilities.
        """
        known = [word.confidence for word in self.words if word.confidence is not None]
        return fmean(known) if known else math.exp(self.log_prob / max(1, len(self.tokens)))

    @property
    def unfamiliar(self) -> bool:
        """Whether the photo is unlike those that the model was trained on, so that the caption may well be wrong."""
        return self.unfamiliarity is not None and self.unfamiliarity > 1

    def calibrated(self, weights: Sequence[Sequence[float]]) -> Self:
        """The caption with the confidence of its words, by `ModelConfig.confidence`; without weights as it is."""
        if not weights:
            return self
        words = []
        for word, is_object, features in zip(self.words, self.are_objects(), self.word_features(), strict=True):
            *slopes, bias = weights[is_object]
            score = bias + sum(slope * feature for slope, feature in zip(slopes, features, strict=True))
            words.append(replace(word, confidence=1 / (1 + math.exp(min(-score, MAX_SCORE)))))
        return replace(self, words=tuple(words))

    def are_objects(self) -> list[bool]:
        """Whether each word belongs to an object's name."""
        return are_objects([word.text for word in self.words]).tolist()  # type: ignore[no-any-return]

    def word_features(self) -> list[tuple[float, float, float]]:
        """The inputs of the regression of confidence: log-odds, place from 0 to 1, and the log of `unfamiliarity`."""
        distance = 0.0 if self.unfamiliarity is None else math.log(max(self.unfamiliarity, MIN_DOUBT))
        return [(log_odds(word.log_prob), place / len(self.words), distance) for place, word in enumerate(self.words)]


@dataclass(frozen=True)
class Captioned:
    """A captioned image; `width` and `height` are those of the upright photo."""

    caption: Caption
    width: int
    height: int
    sha256: str | None
    notes: tuple[str, ...]


def log_odds(log_prob: float) -> float:
    """log(p / (1 - p)) of a probability; one that float32 rounds to 1 counts as less."""
    log_prob = min(log_prob, -MIN_DOUBT)
    return log_prob - math.log(-math.expm1(log_prob))


def word_confidences(
    words: Sequence[str], log_probs: Sequence[float], unfamiliarity: float | None, weights: Sequence[Sequence[float]]
) -> tuple[float, ...]:
    """The confidence of each word of a caption, by `ModelConfig.confidence`; empty without weights."""
    pairs = tuple(CaptionWord(*pair) for pair in zip(words, log_probs, strict=True))
    caption = Caption("", 0.0, pairs, (), unfamiliarity=unfamiliarity).calibrated(weights)
    return tuple(word.confidence for word in caption.words if word.confidence is not None)


def caption_memory(
    decoder: TextDecoder,
    tokenizer: Tokenizer,
    memory: Memory,
    search: Strategy,
    *,
    prefix: Sequence[int] = (),
    keys: Sequence[str] | None = None,
    stop: Callable[[], bool] | None = None,
) -> list[list[Caption]]:
    """The captions of each image of a memory, best first; `prefix`, `keys` and `stop` are those of `generate`.

    Unless `search.no_repeat_ngram` is set, a model with a vocabulary of words repeats no bigram and no object's name.
    """
    once: Sequence[int] = ()
    if search.no_repeat_ngram is None and tokenizer.kind == "word":
        search, once = replace(search, no_repeat_ngram=2), object_tokens(tokenizer)
    # A model of few positions writes shorter captions than the default allows.
    most = min(search.max_length, decoder.config.max_length - 1)
    found = generate(
        decoder,
        memory,
        replace(search, max_length=most, min_length=min(search.min_length, most - 1)),
        bos=tokenizer.bos,
        eos=tokenizer.eos,
        pad=tokenizer.pad,
        suppressed=tokenizer.suppressed,
        once=once,
        prefix=prefix,
        keys=keys,
        stop=stop,
    )
    return [[_to_caption(tokenizer, hypothesis) for hypothesis in hypotheses] for hypotheses in found]


@lru_cache(maxsize=4)
def object_tokens(tokenizer: Tokenizer) -> tuple[int, ...]:
    """The ids of the words that name an object, in a vocabulary of words."""
    return tuple(token for token in range(len(tokenizer)) if are_objects([tokenizer.decode([token])]).all())


def _to_caption(tokenizer: Tokenizer, hypothesis: Hypothesis) -> Caption:
    tokens, log_probs = hypothesis
    words = tuple(
        CaptionWord(word.text, math.fsum(log_probs[word.start : word.stop])) for word in tokenizer.words(tokens)
    )
    cut_off = tokenizer.eos not in tokens
    return Caption(tokenizer.decode(tokens), hypothesis.log_prob, words, tuple(tokens), cut_off=cut_off)
