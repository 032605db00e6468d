"""CIDEr-D as a reward in training: for each image several sampled captions, thousands of times.

B images · S samples of an image · C references of all images
R most references of an image · E entries of the references' vectors · G n-grams

Everything about the references is counted once. n-grams are numbers of a table of this module's own, over words, so
that any tokenizer can train with it: the model's tokens are joined to words first.
"""

import zipfile
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from captioner.errors import AnnotationError
from captioner.metrics.cider import SCALE, cosine, length_penalty, norms
from captioner.metrics.ngrams import MAX_ORDER, Integers, Table, Text, Vocabulary, find, number_grams, sums

Small: TypeAlias = NDArray[np.unsignedinteger[Any]]
"""The smallest type that holds the numbers, mostly uint8."""

EOS = "<eos>"
"""The word that stands for the end of a caption."""
UNKNOWN = "<unk>"
"""A sample's word that matches nothing, whatever the references hold."""


class Vectors(NamedTuple):
    """What is known of the references before any sample; an entry is an n-gram of a reference."""

    eos: NDArray[np.bool_]
    """() whether the end of a caption is a word."""
    words: NDArray[np.uint8]
    """The vocabulary in UTF-8, a word a line: a word's number is its line."""
    keys: Integers
    """(G,) the n-grams of order 1, 2, 3, 4, sorted within each, as in `ngrams.Grams`; G numbers them all."""
    starts: Integers
    """(5,) where each order's n-grams start, and G."""
    frequencies: NDArray[np.int32]
    """(G,) how many images have a reference with the n-gram."""
    references: Integers
    """(images + 1,) where each image's references start."""
    entries: Integers
    """(images + 1,) where each image's entries start; within, they are sorted by n-gram."""
    entry_grams: NDArray[np.int32]
    """(E,)"""
    entry_slots: Small
    """(E,) which of the image's references."""
    entry_counts: Small
    """(E,) how often it has the n-gram."""
    norms: NDArray[np.float64]
    """(C, 4)"""
    lengths: Integers
    """(C,) in words."""


class CiderReward:
    """CIDEr-D of samples against the references of their image, with the document frequencies of all references.

    The end of a caption is a word, `EOS`, of every reference, and of a sample that ended: without it captions that
    break off at "a man with a" earn more (Hu et al. 2023, arXiv 2305.12254).
    """

    def __init__(self, vectors: Vectors) -> None:
        self.vectors = vectors
        words = vectors.words.tobytes().decode(errors="surrogatepass").split("\n")
        self._words = len(words)
        self._known = {word: number for number, word in enumerate(words) if word != UNKNOWN}
        self._weights = _weights(len(self), vectors.frequencies)

    @classmethod
    def of(
        cls,
        references: Sequence[Sequence[str]],
        tokenize: Callable[[Sequence[str]], Sequence[str]] | None = None,
        *,
        eos: bool = True,
    ) -> "CiderReward":
        """Of the references of each image; `tokenize` puts spaces between words, by default the PTB tokenizer does.

        `eos=False` leaves the end of captions out, of samples too: official CIDEr-D. Raises AnnotationError for an
        image without references, and for fewer than two images.
        """
        if tokenize is None:
            from captioner.metrics import ptb

            tokenize = ptb.tokenize
        sizes = [len(each) for each in references]
        if 0 in sizes:
            raise AnnotationError(f"image {sizes.index(0)}: no reference, so no reward; leave the image out")
        if len(sizes) < 2:
            raise AnnotationError(
                f"references of {len(sizes)} images: CIDEr weighs words by how rare they are among images; "
                "give two or more"
            )
        captions = tokenize(list(chain.from_iterable(references)))
        if eos:
            captions = [f"{caption} {EOS}" for caption in captions]
        return cls(_vectors(captions, np.array(sizes, np.int64), eos))

    def __len__(self) -> int:
        """How many images there are."""
        return len(self.vectors.entries) - 1

    @property
    def nbytes(self) -> int:
        """Memory of the vectors; the vocabulary's dictionary comes on top."""
        return sum(array.nbytes for array in self.vectors)

    def save(self, path: str | Path) -> None:
        """Write all of it, as an npz file of that very name."""
        with Path(path).open("wb") as file:
            np.savez(file, **self.vectors._asdict())

    @classmethod
    def load(cls, path: str | Path) -> "CiderReward":
        """The inverse of `save`. Raises AnnotationError for another file."""
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return cls(Vectors(**{name: arrays[name] for name in Vectors._fields}))
        except (AttributeError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
            raise AnnotationError(f"{path}: not a saved reward ({error}); build it again") from error

    def reward(
        self, images: Sequence[int] | Integers, samples: Sequence[Sequence[Sequence[str]]]
    ) -> NDArray[np.float64]:
        """(B, S): CIDEr-D of S samples, as lists of words, of each image, which is its place in the references.

        An image may be there several times. A sample that ended has `EOS` as its last word.
        """
        chosen = np.asarray(images, np.int64)
        batch, each = len(chosen), len(samples[0]) if len(samples) else 0
        if batch * each == 0:
            return np.zeros((batch, each))
        vectors = self.vectors
        own = self._sampled(list(chain.from_iterable(samples)))

        # Every n-gram of a sample meets the entries of its image's references with the same n-gram.
        entries, owners = _ranges(vectors.entries[chosen], vectors.entries[chosen + 1])
        present = owners * len(vectors.keys) + vectors.entry_grams[entries]
        wanted = own.rows // each * len(vectors.keys) + own.grams
        places, meeting = _ranges(np.searchsorted(present, wanted), np.searchsorted(present, wanted, side="right"))
        entries, grams = entries[places], own.grams[meeting]
        theirs = vectors.entry_counts[entries] * self._weights[vectors.frequencies[grams]]
        products = np.minimum(own.values[meeting], theirs) * theirs

        # (B, R): the references of each image, the last one again where an image has fewer; nothing meets it there.
        counts = vectors.references[chosen + 1] - vectors.references[chosen]
        width = int(counts.max())
        references = vectors.references[chosen, None] + np.minimum(np.arange(width), counts[:, None] - 1)
        orders = np.searchsorted(vectors.starts, grams, side="right") - 1
        cells = (own.rows[meeting] * width + vectors.entry_slots[entries]) * MAX_ORDER + orders
        similarities = cosine(
            sums(cells, products, batch * each * width * MAX_ORDER).reshape(batch, each, width, MAX_ORDER),
            own.norms.reshape(batch, each, 1, MAX_ORDER),
            vectors.norms[references][:, None],
        ).sum(axis=-1)
        similarities *= length_penalty(
            np.maximum(own.lengths - 1, 0).reshape(batch, each, 1),
            np.maximum(vectors.lengths[references] - 1, 0)[:, None],
        )
        rewards: NDArray[np.float64] = similarities.sum(axis=-1) * (SCALE / MAX_ORDER / counts[:, None])
        return rewards

    def _sampled(self, samples: Sequence[Sequence[str]]) -> "_Samples":
        vectors = self.vectors
        if not vectors.eos:
            samples = [[word for word in sample if word != EOS] for sample in samples]
        # A word that no reference has gets a number behind theirs: it counts in norms, where repeats matter.
        new = Vocabulary()
        numbers = [
            self._words + new[word] if (number := self._known.get(word)) is None else number
            for word in chain.from_iterable(samples)
        ]
        lengths = np.fromiter(map(len, samples), np.int64, len(samples))
        words = self._words + len(new)
        parts = []
        numbered = np.zeros(1, np.int64)  # of each n-gram one word shorter: its number among the references', or -1
        for order, found in enumerate(number_grams(Text(np.array(numbers, np.int64), lengths), words)):
            start, stop = vectors.starts[order : order + 2]
            before, last = np.divmod(found.keys, words)
            keys = np.where((numbered[before] < 0) | (last >= self._words), -1, numbered[before] * self._words + last)
            places, there = find(vectors.keys[start:stop], keys)
            numbered = np.where(there, places, -1)
            table = Table.of(found.captions, found.numbers, max(1, len(found.keys)))
            known = numbered[table.grams] >= 0
            grams = start + numbered[table.grams]
            frequencies = np.zeros(len(grams), np.int64)
            frequencies[known] = vectors.frequencies[grams[known]]
            values = table.counts * self._weights[frequencies]
            parts.append((table.rows[known], grams[known], values[known], norms(table.rows, values, len(samples))))
        rows, all_grams, all_values, all_norms = zip(*parts, strict=True)
        return _Samples(
            np.concatenate(rows),
            np.concatenate(all_grams),
            np.concatenate(all_values),
            np.stack(all_norms, axis=1),
            lengths,
        )


class _Samples(NamedTuple):
    """Samples (N) as vectors, of n-grams (E') that references have."""

    rows: Integers
    """(E',) the sample"""
    grams: Integers
    """(E',)"""
    values: NDArray[np.float64]
    """(E',)"""
    norms: NDArray[np.float64]
    """(N, 4) of all n-grams, those that no reference has too."""
    lengths: Integers
    """(N,) in words"""


def _vectors(captions: Sequence[str], sizes: Integers, eos: bool) -> Vectors:
    """Of tokenized references (C), so many of each image."""
    vocabulary = Vocabulary()
    text = Text.of(captions, vocabulary)
    images, owners = len(sizes), np.repeat(np.arange(len(sizes)), sizes)
    references = _starts(sizes)
    parts = []
    for found in number_grams(text, len(vocabulary)):
        size = max(1, len(found.keys))
        table = Table.of(found.captions, found.numbers, size)
        # By image, then n-gram; stable, so that references stay in order.
        pairs = owners[table.rows] * size + table.grams
        order = np.argsort(pairs, kind="stable")
        rows, numbers, counts = (column[order] for column in table)
        first = np.diff(pairs[order], prepend=-1) != 0  # of an image's entries of one n-gram
        frequencies = np.bincount(numbers[first], minlength=len(found.keys)).astype(np.int32)
        values = counts * _weights(images, frequencies)[frequencies[numbers]]
        parts.append(
            (
                found.keys,
                frequencies,
                norms(rows, values, len(captions)),
                numbers.astype(np.int32),
                _small(rows - references[owners[rows]]),
                _small(counts),
                np.bincount(owners[rows], minlength=images),
            )
        )
    keys, all_frequencies, all_norms, all_numbers, slots, all_counts, each = zip(*parts, strict=True)
    starts = _starts(np.array([len(order_keys) for order_keys in keys]))
    # The entries go from order by order to image by image, in an image order by order.
    entries = _starts(np.sum(each, axis=0))
    behind = entries[:-1] + np.cumsum([np.zeros(images, np.int64), *each[:-1]], axis=0)
    targets = [_ranges(begin, begin + many)[0] for begin, many in zip(behind, each, strict=True)]
    place = np.empty(entries[-1], np.int64)
    place[np.concatenate(targets)] = np.arange(len(place))
    shifted = [numbers + np.int32(start) for numbers, start in zip(all_numbers, starts[:-1], strict=True)]
    return Vectors(
        eos=np.array(eos),
        words=np.frombuffer("\n".join(vocabulary).encode(errors="surrogatepass"), np.uint8),
        keys=np.concatenate(keys),
        starts=starts,
        frequencies=np.concatenate(all_frequencies),
        references=references,
        entries=entries,
        entry_grams=np.concatenate(shifted)[place],
        entry_slots=np.concatenate(slots)[place],
        entry_counts=np.concatenate(all_counts)[place],
        norms=np.stack(all_norms, axis=1),
        lengths=text.lengths,
    )


def _weights(images: int, frequencies: NDArray[np.int32]) -> NDArray[np.float64]:
    """Document frequency -> inverse document frequency, for all frequencies that there are."""
    weights: NDArray[np.float64] = np.log(images) - np.log(np.maximum(1, np.arange(frequencies.max(initial=0) + 1)))
    return weights


def _starts(sizes: Integers) -> Integers:
    """Where each of so many things starts, and where the last one ends."""
    return np.concatenate([[0], np.cumsum(sizes)])


def _ranges(first: Integers, last: Integers) -> tuple[Integers, Integers]:
    """All numbers from each first to before its last, and which range each belongs to."""
    sizes = last - first
    owners = np.repeat(np.arange(len(sizes)), sizes)
    members = np.arange(len(owners)) + np.repeat(first - _starts(sizes)[:-1], sizes)
    return members, owners


def _small(numbers: Integers) -> Small:
    return numbers.astype(np.min_scalar_type(numbers.max(initial=0)))
