"""Agreement of metrics with people: the coefficient, the protocol, and the figures of Flickr8k's experts."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from benchmarks.human_judgements import SOURCES, kendall, read_judgements, scores
from captioner.data.formats import read_listing

PAIRS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 3)), min_size=2, max_size=40)


@given(PAIRS)
def test_kendall_counts_pairs(pairs: list[tuple[int, int]]) -> None:
    values, grades = np.array(pairs, dtype=float).T
    assume(len(set(values)) > 1 and len(set(grades)) > 1)
    signs = np.sign(values[:, None] - values) * np.sign(grades[:, None] - grades)
    surplus, count = np.triu(signs).sum(), len(pairs)
    untied = [np.triu(each[:, None] != each).sum() for each in (values, grades)]
    classes = min(len(set(values)), len(set(grades)))
    expected = surplus / np.sqrt(untied[0] * untied[1]), surplus / (count**2 * (classes - 1) / (2 * classes))
    assert kendall(values, grades) == pytest.approx(expected)


def test_a_file_of_judgements(tmp_path: Path) -> None:
    path = tmp_path / "grades.txt"
    path.write_text("a.jpg\tb.jpg#1\t1\t2\t4\na.jpg\ta.jpg#0\t4\t4\t4\nb.jpg\ta.jpg#0\t3\t3\t1\n", encoding="utf-8")
    judged = read_judgements(path, slice(2, 5), {"a.jpg": ["A dog.", "The dog runs."], "b.jpg": ["A cat", "Cats!"]})
    assert judged.captions.candidates == ["cats", "a dog"]
    assert judged.captions.references == [["a dog", "the dog runs"], ["a cat", "cats"]]
    np.testing.assert_array_equal(judged.grades, [[1, 2, 4], [3, 3, 1]])


@pytest.mark.slow
def test_the_figures_of_the_experts(shared: Path) -> None:
    folder = shared / "data" / "flickr8k"
    captions = {image.file_name: [str(each.text) for each in image.captions] for image in read_listing(folder).images}
    name, columns = SOURCES["experts"]
    judged = read_judgements(folder / "human_judgements" / name, columns, captions)
    assert judged.grades.shape == (5664, 3)
    expected = {"CIDEr-D": 43.89, "METEOR": 41.82, "ROUGE-L": 32.31, "BLEU-4": 30.78}
    for metric, values in scores(judged.captions).items():
        if metric in expected:
            tau = 100 * kendall(np.repeat(values, 3), judged.grades.ravel())[1]
            assert tau == pytest.approx(expected[metric], abs=0.005)
