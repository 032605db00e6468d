"""Measures of the words of many captions.   W words of a caption · K words in all · L layers · H heads"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from captioner.inspection.forced_pass import ForcedPass
from captioner.metrics.object_words import NounList
from captioner.metrics.significance import Statistics, interval, resample

NEED_THRESHOLD = 1.0
"""A word needs the image if its visual need, in nats, is above this."""
TINY = 1e-12
"""No ratio is taken to less."""


class Estimate(NamedTuple):
    """A mean over words and its 95 % bootstrap interval over photos."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class WordTable:
    """Measures of K words, a column for each measure."""

    photos: NDArray[np.int64]
    """(K,) the number of the photo whose caption the word is from."""
    words: tuple[str, ...]
    is_object: NDArray[np.bool_]
    """(K,) whether the word names an object."""
    visual_need: NDArray[np.float32]
    """(K,) log p with the image minus log p without, in nats."""
    columns: Mapping[str, NDArray[np.float32]]
    """Measure -> (K,)"""
    heads: NDArray[np.float32] | None = None
    """(K, L, H, 2): attention on the right photo of a mosaic, and on all patches."""

    @classmethod
    def of(
        cls,
        photo: int,
        forced: ForcedPass,
        columns: Mapping[str, NDArray[np.float32]],
        *,
        words: Sequence[int] | None = None,
        heads: NDArray[np.float32] | None = None,
    ) -> Self:
        """The words of one caption, by default all of them; columns and heads have a row for each."""
        chosen = list(range(len(forced.words)) if words is None else words)
        assert forced.visual_need is not None
        return cls(
            photos=np.full(len(chosen), photo, np.int64),
            words=tuple(forced.words[word] for word in chosen),
            is_object=are_objects(forced.words)[chosen],
            visual_need=forced.visual_need[chosen],
            columns={name: np.asarray(values, np.float32) for name, values in columns.items()},
            heads=heads,
        )

    @classmethod
    def concat(cls, tables: Sequence[Self]) -> Self:
        """The words of several tables with the same columns."""
        if not tables:
            return cls(np.zeros(0, np.int64), (), np.zeros(0, bool), np.zeros(0, np.float32), {})
        heads = [each.heads for each in tables if each.heads is not None]
        return cls(
            photos=np.concatenate([each.photos for each in tables]),
            words=tuple(word for each in tables for word in each.words),
            is_object=np.concatenate([each.is_object for each in tables]),
            visual_need=np.concatenate([each.visual_need for each in tables]),
            columns={name: np.concatenate([each.columns[name] for each in tables]) for name in tables[0].columns},
            heads=np.concatenate(heads) if heads else None,
        )

    @property
    def visual_objects(self) -> NDArray[np.bool_]:
        """(K,) words that name objects and need the image."""
        return self.is_object & (self.visual_need > NEED_THRESHOLD)

    def mean(
        self, column: str, chosen: NDArray[np.bool_], minus: str | None = None, over: str | None = None
    ) -> Estimate:
        """The mean of a column over the chosen words, at least one, of its difference from another column, or of its
        ratio to the mean of another one.
        """
        values = (self.columns[column] - (0.0 if minus is None else self.columns[minus]))[chosen]
        weights = np.ones(len(values)) if over is None else self.columns[over][chosen]
        _, photo = np.unique(self.photos[chosen], return_inverse=True)
        sums = np.stack([np.bincount(photo, values), np.bincount(photo, weights)], axis=1).astype(np.float64)
        ratio = Statistics(sums, lambda totals: totals[..., :1] / np.maximum(totals[..., 1:], TINY))
        return Estimate(float(values.sum() / max(weights.sum(), TINY)), *interval(resample(ratio)[:, 0]))


def are_objects(words: Sequence[str]) -> NDArray[np.bool_]:
    """(W,) whether each word of a caption belongs to an object's name."""
    return np.array(NounList.bundled().are_objects(plain_words(words)), dtype=bool)


def plain_words(words: Sequence[str]) -> list[str]:
    """Words in lower case and without punctuation."""
    return ["".join(c for c in word.lower() if c.isalnum() or c in "'-") for word in words]
