"""The input and the output of every metric.   I images · M names of a metric"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from captioner.metrics.ngrams import Counts
from captioner.metrics.significance import Statistics


@dataclass(frozen=True)
class Captions:
    """Tokenized candidates (I) and the references of each."""

    candidates: Sequence[str]
    references: Sequence[Sequence[str]]

    @cached_property
    def counts(self) -> Counts:
        """Their n-grams, counted once for all metrics."""
        return Counts.of(self.candidates, self.references)


class Result(NamedTuple):
    """The scores of one metric as fractions; NaN where it is undefined, with the reason."""

    names: tuple[str, ...]
    corpus: NDArray[np.float64]
    """(M,)"""
    per_image: NDArray[np.float64]
    """(I, M)"""
    statistics: Statistics
    """What resamples of the images are scored from."""
    reason: str = ""

    @classmethod
    def from_statistics(
        cls,
        names: tuple[str, ...],
        statistics: NDArray[np.float64],
        combine: Callable[[NDArray[np.float64]], NDArray[np.float64]],
        reason: str = "",
    ) -> "Result":
        """For a metric whose corpus value combines the statistics (I, K) summed over images."""
        corpus, per_image = combine(statistics.sum(axis=0)), combine(statistics)
        return cls(names, corpus, per_image, Statistics(statistics, combine), reason)

    @classmethod
    def from_mean(cls, name: str, per_image: NDArray[np.float64], reason: str = "") -> "Result":
        """For a metric whose corpus value is the mean of its values (I,); NaN of no images."""
        column = per_image[:, None]
        corpus = column.mean(axis=0) if len(column) else np.full(1, np.nan)
        return cls((name,), corpus, column, Statistics.mean(column), reason)
