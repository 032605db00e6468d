"""The input and the output of every metric.   I images · M names of a metric"""

from collections.abc import Sequence
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
    """The scores of one metric, as fractions."""

    names: tuple[str, ...]
    """(M,)"""
    statistics: Statistics
    undefined: str = ""
    """Why a score is NaN."""

    @property
    def corpus(self) -> NDArray[np.float64]:
        """(M,)"""
        return self.statistics.combine(self.statistics.values.sum(axis=0))

    @property
    def per_image(self) -> NDArray[np.float64]:
        """(I, M)"""
        return self.statistics.combine(self.statistics.values)
