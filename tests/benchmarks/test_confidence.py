import numpy as np
import pytest

from benchmarks.confidence import calibration_error, cross_validated, row, temperature
from captioner.calibration import WordOutcomes
from captioner.inspection.hallucination import sigmoid


def words(seed, bias):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(4000, 3))
    right = rng.random(4000) < sigmoid(2 * features[:, 0] + bias)
    return WordOutcomes(features, right, rng.random(4000) < 0.5, np.arange(4000) // 4)


def test_confidence_is_fitted_on_the_other_half_of_all_photos():
    tables = [words(0, -1.0), words(1, -1.0)]
    for table, confidence in zip(tables, cross_validated(tables), strict=True):
        count, right, before, after, *_, area = row(table, confidence)
        assert (count, right) == (4000, table.right.mean())
        assert after < 0.04 < before
        assert area > 0.8
    [cooled] = cross_validated(tables[:1], temperature)
    assert cooled == pytest.approx(sigmoid(2 * tables[0].features[:, 0]), abs=0.1)
    noise = tables[0]._replace(right=np.random.default_rng(2).random(4000) < 0.5)
    assert abs(row(noise, cross_validated([noise])[0])[-1] - 0.5) < 0.05


def test_the_calibration_error_is_the_mean_gap_of_bins_of_equal_count():
    confidence = np.repeat(np.arange(10) / 10, 3)
    right = np.tile([1, 0, 0], 10)
    order = np.random.default_rng(0).permutation(30)
    gaps = np.abs(np.arange(10) / 10 - 1 / 3)
    assert calibration_error(confidence[order], right[order]) == pytest.approx(gaps.mean())
    assert calibration_error(np.array([0.25]), np.array([True])) == 0.75
    assert calibration_error(np.full(40, 0.25), np.arange(40) % 4 == 0) < 0.1
