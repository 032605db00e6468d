"""ROUGE-L against the official tool's values, and its subsequences against the usual table."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioner.metrics.metric import Captions
from captioner.metrics.rouge import rouge_l
from tests.metrics.conftest import Official

WORDS = st.lists(st.sampled_from("abcd"), min_size=1, max_size=80)


def common(first: list[str], second: list[str]) -> int:
    """Length of the longest common subsequence, by dynamic programming."""
    row = [0] * (len(second) + 1)
    for word in first:
        above, row = row, [0]
        for place, other in enumerate(second):
            row.append(above[place] + 1 if word == other else max(row[-1], above[place + 1]))
    return row[-1]


def test_equals_the_official_tool(official: Official) -> None:
    found = rouge_l(official.captions)
    np.testing.assert_allclose(found.corpus.item(), official.corpus["rouge_l"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.per_image[:, 0], official.per_image["rouge_l"], rtol=0, atol=1e-12)


@given(WORDS, WORDS)
def test_is_the_f_measure_of_the_longest_common_subsequence(first: list[str], second: list[str]) -> None:
    length = common(first, second)
    precision, recall = length / len(first), length / len(second)
    expected = 0.0 if length == 0 else (1 + 1.2**2) * precision * recall / (recall + 1.2**2 * precision)
    assert rouge_l(Captions([" ".join(first)], [[" ".join(second)]])).corpus == pytest.approx(expected, abs=1e-15)


def test_precision_and_recall_are_the_best_of_any_reference() -> None:
    # Precision 1 with the long one, recall 1 with the short one.
    assert rouge_l(Captions(["a b"], [["a b c d", "a"]])).corpus == pytest.approx(1.0)


def test_words_end_at_single_spaces_alone() -> None:
    assert rouge_l(Captions(["1\u00a02 cups"], [["1 2 cups"]])).corpus < 1
    assert rouge_l(Captions([""], [[""]])).corpus == 1  # as in the official tool: the empty word is a word
    assert rouge_l(Captions([""], [["a"]])).corpus == 0
