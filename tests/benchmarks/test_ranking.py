import numpy as np
import pytest

from benchmarks.ranking import area_under_curve, rank_correlation


def test_the_area_under_the_curve_counts_pairs():
    rng = np.random.default_rng(0)
    one, other = rng.integers(0, 6, 40), rng.integers(0, 5, 30)
    pairs = [(a > b) + (a == b) / 2 for a in one for b in other]
    assert area_under_curve(one, other) == pytest.approx(np.mean(pairs))
    assert np.isnan(area_under_curve(one, other[:0]))


def test_rank_correlation():
    assert rank_correlation(np.array([1, 2, 3, 9]), np.array([10, 20, 21, 400])) == pytest.approx(1)
    assert rank_correlation(np.array([1, 2, 3]), np.array([3, 2, 1])) == pytest.approx(-1)
    # Ties: ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4.
    assert rank_correlation(np.array([1, 2, 2, 3]), np.array([1, 2, 3, 4])) == pytest.approx(0.9486833)
