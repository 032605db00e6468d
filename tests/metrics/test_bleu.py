"""BLEU against the official tool's values."""

import numpy as np
import pytest

from captioner.metrics.bleu import bleu, bleu_of
from captioner.metrics.metric import Captions
from tests.metrics.conftest import Official

NAMES = ("bleu_1", "bleu_2", "bleu_3", "bleu_4")


def test_equals_the_official_tool(official: Official) -> None:
    found = bleu(official.captions)
    expected = np.stack([official.per_image[name] for name in NAMES], axis=1)
    np.testing.assert_allclose(found.corpus, [official.corpus[name] for name in NAMES], rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.per_image, expected, rtol=0, atol=1e-12)


def test_the_corpus_value_is_that_of_summed_statistics(official: Official) -> None:
    found = bleu(official.captions)
    np.testing.assert_array_equal(found.corpus, bleu_of(found.statistics.values.sum(axis=0)))
    np.testing.assert_array_equal(found.per_image, bleu_of(found.statistics.values))


def test_statistics() -> None:
    found = bleu(Captions(["a a a b"], [["a a c", "b a"]]))
    # Clipped by the reference that has most of each: a 2, b 1; "a a" 1. Lengths 3 and 2: 3 is closer to 4.
    np.testing.assert_array_equal(found.statistics.values, [[3, 1, 0, 0, 4, 3, 2, 1, 4, 3]])


@pytest.mark.parametrize("references", [["a b c d e", "a b c"], ["a b c", "a b c d e"]])
def test_of_two_lengths_as_close_the_shorter_counts(references: list[str]) -> None:
    assert bleu(Captions(["a b c d"], [references])).statistics.values[0, -1] == 3


def test_words_end_at_any_white_space() -> None:
    assert bleu(Captions(["1\u00a02 cups"], [["1 2 cups"]])).statistics.values[0, 0] == 3


@pytest.mark.parametrize("reference", ["", "a b"])
def test_an_empty_candidate_scores_next_to_nothing(reference: str) -> None:
    assert bleu(Captions([""], [[reference]])).per_image.max() < 1e-5
