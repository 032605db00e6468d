"""Statistics of ranks."""

import numpy as np
from numpy.typing import NDArray


def area_under_curve(positive: NDArray[np.floating], negative: NDArray[np.floating]) -> float:
    """The probability that a positive value is above a negative one, ties counting half; NaN without pairs."""
    if not len(positive) or not len(negative):
        return float("nan")
    ordered = np.sort(negative)
    below, upto = np.searchsorted(ordered, positive, "left"), np.searchsorted(ordered, positive, "right")
    return float((below + upto).mean() / 2 / len(negative))


def rank_correlation(one: NDArray[np.floating], other: NDArray[np.floating]) -> float:
    """Spearman's rank correlation, ties having their mean rank."""

    def ranks(values: NDArray[np.floating]) -> NDArray[np.float64]:
        _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
        ends = counts.cumsum()
        ranked: NDArray[np.float64] = (ends - (counts - 1) / 2)[inverse]
        return ranked

    return float(np.corrcoef(ranks(one), ranks(other))[0, 1])
