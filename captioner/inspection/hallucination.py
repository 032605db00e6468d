"""Hallucination: the probability that an object named in a caption is not in the photo.

It is estimated by logistic regression on features of the word's trace: hallucinated objects depend less on the photo.

K object words · F features of each
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from captioner.inspection.trace import AttentionTrace
from captioner.inspection.word_table import plain_words
from captioner.metrics.object_words import NOTHING, NounList
from captioner.metrics.ptb import tokenize

FEATURES = ("log_prob", "need", "relevance", "entropy", "peak", "null_mass", "place")
"""Log-probability; visual need; sum, entropy and peak of the map by relevance; null mass; position from 0 to 1."""
RIDGE = 1e-4
MAX_STEPS = 50
"""Newton's method converges in about ten."""


@dataclass(frozen=True)
class ObjectWord:
    """A word of a caption that names an object."""

    word: int
    """Its index in the trace; for a name of several words, the last one's."""
    concept: str
    features: tuple[float, ...]
    """(F,)"""


def object_words_of(trace: AttentionTrace) -> list[ObjectWord]:
    """The object words of a trace by relevance, refined or not, with their features."""
    trace = replace(trace, contributions=None)  # the features are those of relevance itself
    words = plain_words(trace.words)
    entropy, peak, null_mass = trace.entropy.tolist(), trace.peak.tolist(), trace.null_mass.tolist()
    found = []
    for start, stop, concept, _ in NounList.bundled().phrases(words):
        if concept is None or concept == NOTHING:
            continue
        last = stop - 1
        features = (
            sum(trace.log_probs[start:stop]),
            sum(trace.needs[start:stop]),
            float(trace.patches(last).sum()),
            entropy[last],
            peak[last],
            null_mass[last],
            start / len(words),
        )
        found.append(ObjectWord(last, concept, features))
    return found


def is_hallucinated(concept: str, references: Sequence[str]) -> bool:
    """Whether no reference has a word that means, or may mean, the concept."""
    return concept not in NounList.bundled().objects(tokenize(list(references))).possible


def hallucination_probabilities(trace: AttentionTrace, weights: Sequence[float]) -> dict[int, float]:
    """Index of an object word -> the probability that the object is not in the photo, by `fit_weights`' weights."""
    return {
        each.word: float(sigmoid(np.append(each.features, 1.0) @ np.asarray(weights)))
        for each in object_words_of(trace)
    }


def fit_weights(features: NDArray[np.float64], hallucinated: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Logistic regression by Newton's method with a small ridge: features (K, F) -> weights (F + 1,), the bias last."""
    mean, std = features.mean(axis=0), np.maximum(features.std(axis=0), 1e-9)
    design = np.column_stack([(features - mean) / std, np.ones(len(features))])
    weights = np.zeros(design.shape[1])
    penalty = RIDGE * np.append(np.ones(features.shape[1]), 0.0)
    for _ in range(MAX_STEPS):
        chance = sigmoid(design @ weights)
        gradient = design.T @ (chance - hallucinated) / len(design) + penalty * weights
        hessian = (design * (chance * (1 - chance))[:, None]).T @ design / len(design) + np.diag(penalty + 1e-9)
        step = np.linalg.solve(hessian, gradient)
        weights -= step
        if np.abs(step).max() < 1e-8:
            break
    unscaled = weights[:-1] / std
    return np.append(unscaled, weights[-1] - unscaled @ mean)


def sigmoid(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Log-odds -> probabilities."""
    return np.asarray(1 / (1 + np.exp(-np.clip(values, -50, 50))), np.float64)
