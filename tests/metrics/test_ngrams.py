"""n-grams as integers against dictionaries of tuples."""

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from captioner.metrics.ngrams import Counts, Text, Vocabulary, find, number_grams

CAPTIONS = st.lists(st.lists(st.sampled_from(["a", "b", "c", "é", "10"]), max_size=8), max_size=6)


@given(CAPTIONS)
def test_equal_n_grams_have_equal_numbers(captions: list[list[str]]) -> None:
    vocabulary = Vocabulary()
    text = Text.of([" ".join(words) for words in captions], vocabulary)
    for order, found in enumerate(number_grams(text, len(vocabulary)), start=1):
        expected = [
            (row, tuple(words[start : start + order]))
            for row, words in enumerate(captions)
            for start in range(len(words) - order + 1)
        ]
        np.testing.assert_array_equal(found.captions, [row for row, _ in expected])
        pairs = {(gram, number) for (_, gram), number in zip(expected, found.numbers.tolist(), strict=True)}
        assert len(pairs) == len({gram for gram, _ in pairs}) == len({number for _, number in pairs})
        assert {number for _, number in pairs} == set(range(len(found.keys)))


@given(CAPTIONS, st.lists(st.integers(1, 3), min_size=6, max_size=6))
def test_counts(captions: list[list[str]], sizes: list[int]) -> None:
    texts = [" ".join(words) for words in captions]
    references = [[text] * size for text, size in zip(reversed(texts), sizes, strict=False)]
    if not captions:
        return
    counts = Counts.of(texts, references)
    flat = [text for several in references for text in several]
    np.testing.assert_array_equal(counts.candidate_lengths, [len(text.split()) for text in texts])
    np.testing.assert_array_equal(counts.reference_lengths, [len(text.split()) for text in flat])
    assert counts.references_of.tolist() == [len(each) for each in references]
    first = np.cumsum([0, *counts.references_of])
    for tables, rows, starts in ((counts.candidates, texts, np.arange(len(texts))), (counts.references, flat, first)):
        for order, table in enumerate(tables, start=1):
            found = starts[table.images] + table.slots
            assert [*zip(table.images, table.grams, table.slots, strict=True)] == sorted(
                zip(table.images, table.grams, table.slots, strict=True)
            )
            for row, text in enumerate(rows):
                words = text.split()
                expected = Counter(tuple(words[at : at + order]) for at in range(len(words) - order + 1))
                assert sorted(table.counts[found == row].tolist()) == sorted(expected.values())


def test_find_tells_places_and_presence() -> None:
    places, there = find(np.array([2, 5, 9]), np.array([5, 6, 9, 99, 0]))
    assert there.tolist() == [True, False, True, False, False]
    assert places[there].tolist() == [1, 2]
    assert find(np.array([], np.int64), np.array([1]))[1].tolist() == [False]
