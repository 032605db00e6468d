"""Bootstrap intervals of scores over images (Efron and Tibshirani 1993, chapters 13 and 16).

I images · B resamples · K statistics of an image · M names of a metric

Every metric here is a function of sums over images, so a resample of images is a row of weights, and all resamples are
one matrix product. BLEU's resamples are exact, not means of images. CIDEr-D keeps the n-gram weights of the whole set.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000
SEED = 0
CONFIDENCE = 0.95

_DRAWS = 2**22
"""Images drawn at once, which bounds memory."""


class Statistics(NamedTuple):
    """Everything that a metric's value for any set of images depends on."""

    values: NDArray[np.float64]
    """(I, K)"""
    combine: Callable[[NDArray[np.float64]], NDArray[np.float64]]
    """An image's statistics, or sums over images, (..., K) -> scores (..., M)."""

    @classmethod
    def mean(cls, scores: NDArray[np.float64]) -> "Statistics":
        """Of a metric that is the mean of its scores (I,)."""
        return cls(np.column_stack([scores, np.ones(len(scores))]), ratios)


def ratios(statistics: NDArray[np.float64]) -> NDArray[np.float64]:
    """(..., K / 2): each even column of statistics (..., K) over the next one; NaN for 0 / 0."""
    with np.errstate(invalid="ignore"):
        quotients: NDArray[np.float64] = statistics[..., ::2] / statistics[..., 1::2]
    return quotients


def resample(statistics: Statistics, resamples: int = RESAMPLES, seed: int = SEED) -> NDArray[np.float64]:
    """(B, M): scores of images drawn with replacement.

    The draws depend on the seed and the number of images alone, so that the rows of two systems are pairs.
    """
    images = len(statistics.values)
    random = np.random.default_rng(seed)
    step = max(1, _DRAWS // images)
    totals = []
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn = random.integers(0, images, (rows, images)) + np.arange(rows)[:, None] * images
        weights = np.bincount(drawn.ravel(), minlength=rows * images).reshape(rows, images)
        totals.append(weights.astype(np.float64) @ statistics.values)
    return statistics.combine(np.concatenate(totals))


def interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """The middle 95 % of a metric's resamples (B,), without those where it is undefined."""
    tail = (1 - CONFIDENCE) / 2
    low, high = np.nanquantile(values, [tail, 1 - tail])
    return float(low), float(high)
