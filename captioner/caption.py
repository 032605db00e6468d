"""Captions of image memory: text, words and probabilities."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import fmean
from typing import Self

import numpy as np
from numpy.typing import NDArray

from captioner.generation import Hypothesis, Strategy, generate
from captioner.inspection.hallucination import sigmoid
from captioner.inspection.word_table import are_objects
from captioner.model.decoder import TextDecoder
from captioner.model.memory import Memory
from captioner.tokenizer import Tokenizer

MIN_DOUBT = 1e-6
"""Smallest 1 - p and smallest distance, so that their logarithms are finite."""


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
    style: str | None = None
    """The style that was chosen, if any."""

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
        texts, log_probs = [word.text for word in self.words], [word.log_prob for word in self.words]
        found = word_confidences(texts, log_probs, self.unfamiliarity, weights)
        return replace(self, words=tuple(map(CaptionWord, texts, log_probs, found)))


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


def word_features(log_probs: Sequence[float], unfamiliarity: float | None) -> NDArray[np.float64]:
    """(K, 3): the inputs of the regression of confidence for the K words of a caption.

    They are the log-odds of each word, its place from 0 to 1, and the log of `unfamiliarity`.
    """
    distance = 0.0 if unfamiliarity is None else math.log(max(unfamiliarity, MIN_DOUBT))
    rows = [(log_odds(each), place / len(log_probs), distance) for place, each in enumerate(log_probs)]
    return np.array(rows, np.float64).reshape(-1, 3)


def word_confidences(
    words: Sequence[str], log_probs: Sequence[float], unfamiliarity: float | None, weights: Sequence[Sequence[float]]
) -> tuple[float, ...]:
    """The confidence of each word of a caption, by `ModelConfig.confidence`; empty without weights."""
    if not weights:
        return ()
    return tuple(confidences(word_features(log_probs, unfamiliarity), are_objects(words), weights).tolist())


def confidences(
    features: NDArray[np.float64], is_object: NDArray[np.bool_], weights: Sequence[Sequence[float]]
) -> NDArray[np.float64]:
    """Features (K, 3), and whether each word belongs to an object's name (K,) -> confidences (K,)."""
    slopes = np.array(weights)[is_object.astype(int)]  # (K, 4): the bias is last
    return sigmoid((features * slopes[:, :-1]).sum(axis=1) + slopes[:, -1])


def caption_memory(
    decoder: TextDecoder,
    tokenizer: Tokenizer,
    memory: Memory,
    search: Strategy,
    *,
    control: Sequence[int] = (),
    prefix: Sequence[int] = (),
    keys: Sequence[str] | None = None,
    stop: Callable[[], bool] | None = None,
) -> list[list[Caption]]:
    """The captions of each image of a memory, best first; the options are those of `generate`.

    Unless `search.no_repeat_ngram` is set, a model with a vocabulary of words repeats no bigram and no object's name.
    """
    once: Sequence[int] = ()
    if search.no_repeat_ngram is None and tokenizer.kind == "word":
        search, once = replace(search, no_repeat_ngram=2), object_tokens(tokenizer)
    # A model of few positions writes shorter captions than the default allows.
    most = min(search.max_length, decoder.config.max_length - 1 - len(control))
    found = generate(
        decoder,
        memory,
        replace(search, max_length=most, min_length=min(search.min_length, most - 1)),
        bos=tokenizer.bos,
        eos=tokenizer.eos,
        pad=tokenizer.pad,
        suppressed=tokenizer.suppressed,
        once=once,
        control=control,
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
