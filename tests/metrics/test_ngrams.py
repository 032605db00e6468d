"""n-grams as integers against dictionaries of tuples."""

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from captioner.metrics.ngrams import Counts, Text, Vocabulary, count_grams, find

CAPTIONS = st.lists(st.lists(st.sampled_from(["a", "b", "c", "é", "10"]), max_size=8), max_size=6)


@given(CAPTIONS)
def test_equal_n_grams_have_equal_numbers(captions: list[list[str]]) -> None:
    vocabulary = Vocabulary()
    text = Text.of([" ".join(words) for words in captions], vocabulary)
    rows = np.arange(len(captions))
    shorter: dict[int, tuple[str, ...]] = {0: ()}
    for order, (table, keys) in enumerate(count_grams(text, len(vocabulary), rows, np.zeros_like(rows)), start=1):
        # A key is the number of all but the last word, and the last word.
        heads, lasts = np.divmod(keys, max(1, len(vocabulary)))
        words = list(vocabulary)
        grams = [(*shorter[head], words[last]) for head, last in zip(heads.tolist(), lasts.tolist(), strict=True)]
        assert len(set(grams)) == len(grams)
        found = {
            (row, grams[gram]): count for row, gram, count in zip(table.images, table.grams, table.counts, strict=True)
        }
        assert found == Counter(
            (row, tuple(words[start : start + order]))
            for row, words in enumerate(captions)
            for start in range(len(words) - order + 1)
        )
        shorter = dict(enumerate(grams))


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


def test_find_gives_places_and_presence() -> None:
    places, there = find(np.array([2, 5, 9]), np.array([5, 6, 9, 99, 0]))
    assert there.tolist() == [True, False, True, False, False]
    assert places[there].tolist() == [1, 2]
    assert find(np.array([], np.int64), np.array([1]))[1].tolist() == [False]
