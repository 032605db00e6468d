"""Bootstrap intervals: exact resamples, pairs, and the spread that theory tells."""

import numpy as np
import pytest

from captioner.metrics import significance
from captioner.metrics.bleu import bleu
from captioner.metrics.metric import Captions
from captioner.metrics.significance import Statistics, interval, resample
from tests.metrics.conftest import Official


def drawn(images: int, resamples: int, seed: int) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    return np.random.default_rng(seed).integers(0, images, (resamples, images))


def test_a_resample_of_bleu_is_the_bleu_of_the_captions_drawn(official: Official) -> None:
    candidates, references = official.tokenized_candidates, official.tokenized_references
    values = resample(bleu(official.captions).statistics, resamples=5, seed=3)
    for row, images in zip(values, drawn(len(candidates), 5, 3), strict=True):
        expected = bleu(
            Captions([candidates[image] for image in images], [references[image] for image in images])
        ).corpus
        np.testing.assert_allclose(row, expected, rtol=1e-12)


def test_memory_is_bounded_without_changing_the_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    statistics = Statistics.mean(np.arange(10.0))
    expected = resample(statistics, 100, seed=1)
    monkeypatch.setattr(significance, "_DRAWS", 70)
    np.testing.assert_array_equal(resample(statistics, 100, seed=1), expected)


def test_the_interval_of_a_mean_is_what_theory_tells() -> None:
    values = np.random.default_rng(5).normal(1.2, 0.67, 1000)
    low, high = interval(resample(Statistics.mean(values), 4000)[:, 0])
    error = values.std() / np.sqrt(1000)
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.1 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.1 * error)


def test_two_systems_meet_on_the_same_images() -> None:
    values = np.random.default_rng(5).normal(size=50)
    difference = resample(Statistics.mean(values + 0.25)) - resample(Statistics.mean(values))
    np.testing.assert_allclose(difference, 0.25)


def test_a_seed_decides() -> None:
    statistics = Statistics.mean(np.arange(10.0))
    np.testing.assert_array_equal(resample(statistics), resample(statistics))
    assert (resample(statistics, seed=1) != resample(statistics, seed=2)).any()


def test_undefined_resamples_are_left_out() -> None:
    assert interval(np.array([np.nan, 2.0, 2.0])) == (2.0, 2.0)
