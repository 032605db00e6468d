"""Captions by what they have in common, on small examples; tests/test_generation.py compares with a slow version."""

import numpy as np

from captioner.consensus import by_consensus, first_word

FIRST = 4


def order(*captions):
    """The order of captions of one image, tokens from FIRST on."""
    lengths = np.array([[-1 if caption is None else len(caption) for caption in captions]])
    size = max(1, lengths.max())
    rows = [[FIRST + token for token in caption or ()] for caption in captions]
    tokens = np.array([[row + [2] * (size - len(row)) for row in rows]])
    return by_consensus(tokens, lengths, FIRST)[0].tolist()


def test_what_most_captions_say_comes_first():
    assert order([3, 5, 6, 7], [3, 5, 6, 8], [3, 5, 6, 8, 9]) == [1, 2, 0]


def test_rare_words_count_more():
    """The last caption shares a frequent word with the first, and a rare one with the second."""
    assert order([1, 9], [80, 8], [1, 80])[:2] == [2, 1]
    assert order([80, 9], [1, 8], [1, 80])[:2] == [2, 0]


def test_the_most_frequent_word_alone_counts_nothing():
    assert order([0], [7, 8], [7, 8], [0]) == [1, 2, 0, 3]


def test_equal_captions_keep_their_order():
    assert order([5, 6], [7, 8]) == [0, 1]
    assert order([3], [3], [3]) == [0, 1, 2]
    assert order([], [], []) == [0, 1, 2]


def test_a_repeated_word_counts_as_often_as_the_other_caption_has_it():
    assert order([5, 5, 5, 5], [5, 6], [5, 6]) == [1, 2, 0]


def test_captions_that_do_not_exist_come_last_and_change_nothing():
    assert order([3, 5, 6, 7], None, [3, 5, 6, 8], [3, 5, 6, 8, 9], None) == [2, 3, 0, 1, 4]


def test_images_do_not_change_each_other():
    generator = np.random.default_rng(0)
    lengths = generator.integers(-1, 12, (20, 5))
    tokens = generator.integers(FIRST, FIRST + 6, (20, 5, 12))
    together = by_consensus(tokens, lengths, FIRST)
    for image, expected in enumerate(together):
        size = max(1, lengths[image].max())
        [found] = by_consensus(tokens[image : image + 1, :, :size], lengths[image : image + 1], FIRST)
        assert found.tolist() == expected.tolist()


def test_the_first_word_is_not_special():
    assert first_word({0, 1, 2, 3, 90}) == 4
    assert first_word({50256}) == 0
