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
        """Number the words of tokenized captions, split at white space as the official tool's BLEU and CIDEr do."""
        # Split twice: a list of all words would dominate the memory of a large training set.
        lengths = np.fromiter((len(caption.split()) for caption in captions), np.int64, len(captions))
        words = chain.from_iterable(map(str.split, captions))
        return cls(np.fromiter(map(vocabulary.__getitem__, words), np.int64, int(lengths.sum())), lengths)


class Table(NamedTuple):
    """Counts of n-grams of one order: entries sorted by image, then n-gram, then caption, each triple once."""

    images: Integers
    """(E,)"""
    grams: Integers
    """(E,) equal n-grams have equal numbers, from 0."""
    slots: Integers
    """(E,) which of the image's captions."""
    counts: Integers
    """(E,)"""


def count_grams(text: Text, words: int, images: Integers, slots: Integers) -> Iterator[tuple[Table, Integers]]:
    """The n-grams of orders 1 to 4, one order after the other, over a vocabulary of `words` words.

    `images` (C,) and `slots` (C,) say where each caption belongs. With each table come the keys of its n-grams, sorted:
    for the n-gram of each number, `number of all but its last word * words + last word`. A number stands for the pair
    of a shorter n-gram and a word, so that keys of any vocabulary fit 64 bits.
    """
    total, width = len(text.words), int(slots.max(initial=0)) + 1
    owners = np.repeat(np.arange(len(text.lengths)), text.lengths)
    rest = np.cumsum(text.lengths)[owners] - np.arange(total)  # words from each place to its caption's end
    numbers = text.words
    for order in range(1, MAX_ORDER + 1):
        starts = np.flatnonzero(rest >= order)
        found = numbers[starts] if order == 1 else numbers[starts] * words + text.words[starts + order - 1]
        keys, inverse = np.unique(found, return_inverse=True)
        numbers = np.zeros(total, np.int64)
        numbers[starts] = inverse
        captions, size = owners[starts], len(keys)
        entries, counts = np.unique((images[captions] * size + inverse) * width + slots[captions], return_counts=True)
        pairs, places = np.divmod(entries, width)
        yield Table(*np.divmod(pairs, max(1, size)), places, counts), keys


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
        for table, keys in count_grams(text, len(vocabulary), images, slots):
            is_candidate = table.slots == 0
            own.append(Table(*(column[is_candidate] for column in table)))
            theirs = Table(*(column[~is_candidate] for column in table))
            others.append(theirs._replace(slots=theirs.slots - 1))
            sizes.append(len(keys))
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
