"""n-grams of captions as integers.   I images · C captions · T words of all captions · E entries of a table"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Integers: TypeAlias = NDArray[np.int64]

MAX_ORDER = 4


class Vocabulary(defaultdict[str, int]):
    """Word -> its number, from 0; a new word gets the next one."""

    def __init__(self) -> None:
        super().__init__(self.__len__)


class Text(NamedTuple):
    """Captions as numbers of words, one caption after the other."""

    words: Integers
    """(T,)"""
    lengths: Integers
    """(C,) words of each caption."""

    @classmethod
    def of(cls, captions: Sequence[str], vocabulary: Vocabulary) -> "Text":
        """Of tokenized captions, split at white space as the official tool's BLEU and CIDEr do."""
        # Split twice: a list of all words would dominate the memory of a large training set.
        lengths = np.fromiter((len(caption.split()) for caption in captions), np.int64, len(captions))
        words = chain.from_iterable(map(str.split, captions))
        return cls(np.fromiter(map(vocabulary.__getitem__, words), np.int64, int(lengths.sum())), lengths)


class Table(NamedTuple):
    """Counts of n-grams of one order: entries sorted by image, then n-gram, then caption, each triple once."""

    images: Integers
    """(E,)"""
    grams: Integers
    """(E,)"""
    slots: Integers
    """(E,) which of the image's captions."""
    counts: Integers
    """(E,)"""

    @classmethod
    def of(cls, images: Integers, grams: Integers, slots: Integers | int, size: int, width: int = 1) -> "Table":
        """Count n-grams (T,), numbered below `size`, in images (T,) of at most `width` captions."""
        keys, counts = np.unique((images * size + grams) * width + slots, return_counts=True)
        pairs, places = np.divmod(keys, width)
        return cls(*np.divmod(pairs, max(1, size)), places, counts)


class Grams(NamedTuple):
    """The n-grams of one order in a text."""

    captions: Integers
    """(T',) the caption that each n-gram is in."""
    numbers: Integers
    """(T',) the n-gram: equal n-grams have equal numbers, from 0."""
    keys: Integers
    """(size,) sorted: the n-gram of each number as `number of all but its last word * words + last word`."""


def number_grams(text: Text, words: int) -> Iterator[Grams]:
    """The n-grams of orders 1 to 4, one order after the other, over a vocabulary of `words` words.

    A number stands for the pair of a shorter n-gram and a word, so that keys of any vocabulary fit 64 bits.
    """
    total = len(text.words)
    captions = np.repeat(np.arange(len(text.lengths)), text.lengths)
    rest = np.cumsum(text.lengths)[captions] - np.arange(total)  # words from each place to its caption's end
    numbers = text.words
    for order in range(1, MAX_ORDER + 1):
        starts = np.flatnonzero(rest >= order)
        keys = numbers[starts] if order == 1 else numbers[starts] * words + text.words[starts + order - 1]
        distinct, inverse = np.unique(keys, return_inverse=True)
        numbers = np.zeros(total, np.int64)
        numbers[starts] = inverse
        yield Grams(captions[starts], inverse, distinct)


@dataclass(frozen=True)
class Counts:
    """The n-grams of candidates and references under common numbers, counted once for all metrics."""

    candidate_lengths: Integers
    """(I,) in words."""
    reference_lengths: Integers
    """(C,) in words, image after image."""
    references_of: Integers
    """(I,) how many references each image has."""
    candidates: tuple[Table, ...]
    """A table an order."""
    references: tuple[Table, ...]
    """A table an order."""
    sizes: tuple[int, ...]
    """The number of distinct n-grams of each order."""

    @classmethod
    def of(cls, candidates: Sequence[str], references: Sequence[Sequence[str]]) -> "Counts":
        """Count tokenized candidates and the references of each."""
        vocabulary = Vocabulary()
        text = Text.of([*candidates, *chain.from_iterable(references)], vocabulary)
        count = len(candidates)
        each = np.fromiter(map(len, references), np.int64, count)
        places, owners = ranges(np.zeros_like(each), each)
        images, slots = np.concatenate([np.arange(count), owners]), np.concatenate([np.zeros_like(each), 1 + places])
        own, others, sizes = [], [], []
        for found in number_grams(text, len(vocabulary)):
            size = len(found.keys)
            captions = images[found.captions], found.numbers, slots[found.captions]
            table = Table.of(*captions, size, 1 + int(each.max(initial=0)))
            is_candidate = table.slots == 0
            own.append(Table(*(column[is_candidate] for column in table)))
            first, grams, slot, counts = (column[~is_candidate] for column in table)
            others.append(Table(first, grams, slot - 1, counts))
            sizes.append(size)
        return cls(text.lengths[:count], text.lengths[count:], each, tuple(own), tuple(others), tuple(sizes))


def find(keys: Integers, wanted: Integers) -> tuple[Integers, NDArray[np.bool_]]:
    """The place of each wanted key in sorted `keys`, arbitrary where it is missing, and whether it is there."""
    places = np.searchsorted(keys, wanted)
    np.minimum(places, len(keys) - 1, out=places)
    return places, keys[places] == wanted if len(keys) else np.zeros(len(wanted), np.bool_)


def sums(rows: Integers, values: NDArray[np.float64] | Integers, size: int) -> NDArray[np.float64]:
    """(size,): the sum of each row's values."""
    return np.bincount(rows, values, size).astype(np.float64, copy=False)


def offsets(sizes: Integers) -> Integers:
    """(n + 1,): where each of n adjacent groups of these sizes starts, and where the last one ends."""
    return np.concatenate([[0], np.cumsum(sizes)])


def ranges(first: Integers, last: Integers) -> tuple[Integers, Integers]:
    """The numbers from each first to before its last, concatenated, and the range that each belongs to."""
    sizes = last - first
    owners = np.repeat(np.arange(len(sizes)), sizes)
    members = np.arange(len(owners)) + np.repeat(first - offsets(sizes)[:-1], sizes)
    return members, owners
