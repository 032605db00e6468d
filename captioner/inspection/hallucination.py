"""Objects that a caption may have invented: told by how little the photo had to do with their words.

K object words of captions · F features of each
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from captioner.inspection.faithfulness import area_under_curve, plain_words
from captioner.inspection.trace import AttentionTrace
from captioner.metrics.object_words import NOTHING, NounList
from captioner.metrics.ptb import tokenize

FEATURES = ("log_prob", "need", "relevance", "entropy", "peak", "null_mass", "place")
"""Of a word: its log-probability, what the image adds to it, the sum of its map, how the map is spread, and where in
the caption it stands, from 0 to 1."""
RIDGE = 1e-4
STEPS = 50


@dataclass(frozen=True)
class ObjectWord:
    """A word of a caption that names an object."""

    word: int
    """Its last word in the trace, where it has several."""
    concept: str
    features: tuple[float, ...]
    """(F,)"""


def object_words_of(trace: AttentionTrace) -> list[ObjectWord]:
    """The object words of a trace by relevance, with their features."""
    words = plain_words(trace.words)
    totals = [float(trace.patches(word).sum()) for word in range(len(words))]
    entropy, peak, null_mass = trace.entropy.tolist(), trace.peak.tolist(), trace.null_mass.tolist()
    found = []
    for start, stop, concept, _ in NounList.bundled().phrases(words):
        if concept is None or concept == NOTHING:
            continue
        last = stop - 1
        features = (
            sum(trace.log_probs[start:stop]),
            sum(trace.needs[start:stop]),
            totals[last],
            entropy[last],
            peak[last],
            null_mass[last],
            start / len(words),
        )
        found.append(ObjectWord(last, concept, features))
    return found


def is_invented(concept: str, references: Sequence[str]) -> bool:
    """Whether no reference names the concept, nor has a word that may mean it."""
    return concept not in NounList.bundled().objects(tokenize(list(references))).possible


def risks(trace: AttentionTrace, weights: Sequence[float]) -> dict[int, float]:
    """Word -> the probability that the object it names is not there, by the `weights` (F + 1) of `fit`."""
    return {
        each.word: float(_sigmoid(np.append(each.features, 1.0) @ np.asarray(weights)))
        for each in object_words_of(trace)
    }


def fit(features: NDArray[np.float64], invented: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Logistic regression, by Newton's method with a small ridge: features (K, F) -> weights (F + 1), the bias last."""
    mean, spread = features.mean(axis=0), np.maximum(features.std(axis=0), 1e-9)
    design = np.column_stack([(features - mean) / spread, np.ones(len(features))])
    weights = np.zeros(design.shape[1])
    penalty = RIDGE * np.append(np.ones(features.shape[1]), 0.0)
    for _ in range(STEPS):
        chance = _sigmoid(design @ weights)
        slope = design.T @ (chance - invented) / len(design) + penalty * weights
        curve = (design * (chance * (1 - chance))[:, None]).T @ design / len(design) + np.diag(penalty + 1e-9)
        step = np.linalg.solve(curve, slope)
        weights -= step
        if np.abs(step).max() < 1e-8:
            break
    plain = weights[:-1] / spread
    return np.append(plain, weights[-1] - plain @ mean)


def detection(
    features: NDArray[np.float64], invented: NDArray[np.bool_], photos: NDArray[np.int64]
) -> Mapping[str, float]:
    """Area under the curve of finding invented objects, each half of the photos judged by what the other half taught.

    `probability` is p(word) alone, `place` that and where the word stands, `trace` all features.
    """
    half = photos % 2 == 0
    columns = {"probability": [0], "probability and place": [0, len(FEATURES) - 1], "trace": list(range(len(FEATURES)))}
    found = {}
    for name, chosen in columns.items():
        scores = np.zeros(len(features))
        for part in (half, ~half):
            weights = fit(features[~part][:, chosen], invented[~part])
            scores[part] = _sigmoid(np.column_stack([features[part][:, chosen], np.ones(int(part.sum()))]) @ weights)
        found[name] = area_under_curve(scores[invented], scores[~invented])
    return found


def _sigmoid(values: NDArray[np.float64]) -> NDArray[np.float64]:
    chance: NDArray[np.float64] = 1 / (1 + np.exp(-np.clip(values, -50, 50)))
    return chance
