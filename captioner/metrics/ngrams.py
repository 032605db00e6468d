"""n-grams of captions as integers.   I images · C captions · T words of all captions · E entries of a table"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Integers: TypeAlias = NDArray[np.int64]

MAX_ORDER = 4


class Vocabulary(defaultdict[str, int]):
    """Word -> its number, from 0; a word that is new gets the next one."""

    def __init__(self, words: Iterable[str] = ()) -> None:
        super().__init__(None, {word: number for number, word in enumerate(words)})
        self.default_factory = self.__len__


class Text(NamedTuple):
    """Captions as numbers of words, one caption after the other."""

    words: Integers
    """(T,)"""
    lengths: Integers
    """(C,) words of each caption."""

    @classmethod
    def of(cls, captions: Sequence[str], vocabulary: Vocabulary) -> "Text":
        """Of tokenized captions, split at white space as the official tool's BLEU and CIDEr do."""
        # Split twice: the words of a training set at once would be the most memory of all.
        lengths = np.fromiter((len(caption.split()) for caption in captions), np.int64, len(captions))
        words = chain.from_iterable(map(str.split, captions))
        return cls(np.fromiter(map(vocabulary.__getitem__, words), np.int64, int(lengths.sum())), lengths)


class Table(NamedTuple):
    """How often each row holds each n-gram: entries sorted by row, then n-gram, no two for the same pair."""

    rows: Integers
    """(E,)"""
    grams: Integers
    """(E,)"""
    counts: Integers
    """(E,)"""

    @classmethod
    def of(cls, rows: Integers, grams: Integers, size: int) -> "Table":
        """Of n-grams (T,), each in its row (T,), which are numbered below `size`."""
        keys, counts = np.unique(rows * size + grams, return_counts=True)
        return cls(*np.divmod(keys, size), counts)


class Grams(NamedTuple):
    """The n-grams of one order in a text."""

    captions: Integers
    """(T',) the caption that each n-gram is in."""
    numbers: Integers
    """(T',) the n-gram: equal n-grams have equal numbers, from 0."""
    keys: Integers
    """(size,) sorted: the n-gram of each number as `number of all but its last word * words + last word`."""


def number_grams(text: Text, words: int) -> Iterator[Grams]:
    """The n-grams of orders 1 to 4, one order after the other, in a vocabulary of so many words.

    A number stands for the pair of a shorter n-gram and a word, so no vocabulary is too large for 64 bits.
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
    """The n-grams of candidates and references, counted once for all metrics that need them."""

    images: Integers
    """(C,) the image of each reference."""
    candidate_lengths: Integers
    """(I,) in words."""
    reference_lengths: Integers
    """(C,) in words."""
    candidates: tuple[Table, ...]
    """A table an order, a row an image."""
    references: tuple[Table, ...]
    """A table an order, a row a reference."""
    sizes: tuple[int, ...]
    """How many n-grams of each order there are: their numbers are below."""

    @classmethod
    def of(cls, candidates: Sequence[str], references: Sequence[Sequence[str]]) -> "Counts":
        """Of tokenized captions."""
        vocabulary = Vocabulary()
        text = Text.of([*candidates, *chain.from_iterable(references)], vocabulary)
        first, tables, sizes = len(candidates), [], []
        for found in number_grams(text, len(vocabulary)):
            table, size = Table.of(found.captions, found.numbers, max(1, len(found.keys))), len(found.keys)
            middle = np.searchsorted(table.rows, first)
            tables.append(
                (
                    Table(*(column[:middle] for column in table)),
                    Table(table.rows[middle:] - first, table.grams[middle:], table.counts[middle:]),
                )
            )
            sizes.append(size)
        images = np.repeat(np.arange(first), [len(each) for each in references])
        own, others = zip(*tables, strict=True)
        return cls(images, text.lengths[:first], text.lengths[first:], own, others, tuple(sizes))


def find(keys: Integers, wanted: Integers) -> tuple[Integers, NDArray[np.bool_]]:
    """Where each wanted key is in sorted `keys`, and whether it is there; a place of its own where it is not."""
    places = np.searchsorted(keys, wanted)
    np.minimum(places, len(keys) - 1, out=places)
    return places, keys[places] == wanted if len(keys) else np.zeros(len(wanted), np.bool_)


def sums(rows: Integers, values: NDArray[np.float64] | Integers, size: int) -> NDArray[np.float64]:
    """(size,): the sum of each row's values."""
    return np.bincount(rows, values, size).astype(np.float64, copy=False)
