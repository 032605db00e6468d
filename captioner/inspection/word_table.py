"""Measures of the words of many captions.   K words · L layers · H heads"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from captioner.inspection.forced_pass import ForcedPass
from captioner.metrics.object_words import NounList
from captioner.metrics.significance import Statistics, interval, resample

NEED_THRESHOLD = 1.0
"""A word needs the image if its visual need is above this, in nats."""


class Estimate(NamedTuple):
    """A mean over words and its 95 % bootstrap interval over photos."""

    value: float
    low: float
    high: float
    words: int


@dataclass(frozen=True)
class WordTable:
    """Measures of K words, a column a measure."""

    photos: NDArray[np.int64]
    """(K,) the photo whose caption holds the word."""
    words: tuple[str, ...]
    is_object: NDArray[np.bool_]
    """(K,) whether the word names an object."""
    visual_need: NDArray[np.float32]
    """(K,) log p with the image minus without, in nats."""
    columns: Mapping[str, NDArray[np.float32]]
    """Measure -> (K,)"""
    heads: NDArray[np.float32] | None = None
    """(K, L, H, 2): attention on the right photo of a mosaic, and on all patches."""

    @property
    def visual_objects(self) -> NDArray[np.bool_]:
        """(K,) words that name objects and need the image."""
        return self.is_object & (self.visual_need > NEED_THRESHOLD)

    def mean(self, column: str, chosen: NDArray[np.bool_], minus: str | None = None) -> Estimate:
        """The mean of a column over the chosen words, or of its difference from another column."""
        values = self.columns[column] - (0.0 if minus is None else self.columns[minus])
        return _estimate(values[chosen], self.photos[chosen])


class TableBuilder:
    """Collects the words of one caption after the other."""

    def __init__(self) -> None:
        self._parts: list[tuple[int, ForcedPass, Mapping[str, NDArray[np.float32]], Sequence[int]]] = []
        self._heads: list[NDArray[np.float32]] = []

    def add(
        self,
        photo: int,
        forced: ForcedPass,
        measures: Mapping[str, NDArray[np.float32]],
        *,
        heads: NDArray[np.float32] | None = None,
        words: Sequence[int] | None = None,
    ) -> None:
        """Add words of a caption, by default all of them, with a value of each measure for each word."""
        self._parts.append((photo, forced, measures, range(len(forced.words)) if words is None else words))
        if heads is not None:
            self._heads.append(heads)

    def build(self) -> WordTable:
        """The table of all words so far."""

        def joined(values: Iterable[NDArray[np.generic]]) -> NDArray[np.float32]:
            return np.concatenate([*values, np.zeros(0)]).astype(np.float32)

        parts = self._parts
        return WordTable(
            photos=np.array([photo for photo, _, _, words in parts for _ in words], np.int64),
            words=tuple(forced.words[word] for _, forced, _, words in parts for word in words),
            is_object=joined(are_objects(forced.words)[words] for _, forced, _, words in parts).astype(bool),
            visual_need=joined(
                forced.visual_need[words] for _, forced, _, words in parts if forced.visual_need is not None
            ),
            columns={name: joined(each[name] for _, _, each, _ in parts) for name in (parts[0][2] if parts else ())},
            heads=np.concatenate(self._heads) if self._heads else None,
        )


def are_objects(words: Sequence[str]) -> NDArray[np.bool_]:
    """(W,) whether each word of a caption belongs to an object's name."""
    return np.array(NounList.bundled().are_objects(plain_words(words)), dtype=bool)


def plain_words(words: Sequence[str]) -> list[str]:
    """Words in lower case and without punctuation."""
    return ["".join(c for c in word.lower() if c.isalnum() or c in "'-") for word in words]


def _estimate(values: NDArray[np.float32], photos: NDArray[np.int64]) -> Estimate:
    if not len(values):
        return Estimate(float("nan"), float("nan"), float("nan"), 0)
    _, group = np.unique(photos, return_inverse=True)
    sums = np.stack([np.bincount(group, values), np.bincount(group)], axis=1).astype(np.float64)
    ratio = Statistics(sums, lambda totals: totals[..., :1] / np.maximum(totals[..., 1:], 1))
    low, high = interval(resample(ratio)[:, 0])
    return Estimate(float(values.mean()), low, high, len(values))
