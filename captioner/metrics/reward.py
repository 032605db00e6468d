"""CIDEr-D as a reward in training: several sampled captions for each image, thousands of times.

B images · S samples of an image · G n-grams of references

Everything about the references is counted once. n-grams are numbers over words, so that any tokenizer can train with
it: the model's tokens are joined to words first.
"""

import zipfile
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from captioner.errors import AnnotationError
from captioner.metrics.cider import References, cider_scores
from captioner.metrics.ngrams import Integers, Table, Text, Vocabulary, count_grams, find, offsets, ranges
from captioner.metrics.ptb import tokenize

EOS = "<eos>"
"""The word that stands for the end of a caption."""
UNKNOWN = "<unk>"
"""A word of a sample that matches no reference, not even one that has this word."""


class CiderReward:
    """CIDEr-D of samples against the references of their image, with the document frequencies of all references.

    The end of a caption is a word, `EOS`, of every reference, and of a sample that ended: without it captions that
    break off at "a man with a" earn more (Hu et al. 2023, arXiv 2305.12254).
    """

    def __init__(self, references: References, words: list[str], keys: Integers, starts: Integers, eos: bool) -> None:
        """`keys` (G,) are the n-grams of the references as in `ngrams.Grams`, `starts` (5,) where each order begins."""
        self.references, self.words, self.keys, self.starts, self.eos = references, words, keys, starts, eos
        self._known = {word: number for number, word in enumerate(words) if word != UNKNOWN}

    @classmethod
    def of(
        cls,
        references: Sequence[Sequence[str]],
        tokenize: Callable[[Sequence[str]], Sequence[str]] = tokenize,
        *,
        eos: bool = True,
    ) -> "CiderReward":
        """Count the n-grams of the references of each image; `tokenize` separates words by spaces.

        `eos=False` leaves the end of captions out, of samples too: official CIDEr-D. Raises AnnotationError for an
        image without references, and for fewer than two images.
        """
        sizes = np.array([len(each) for each in references], np.int64)
        if not sizes.all():
            raise AnnotationError(f"image {sizes.argmin()}: no reference, so no reward; leave the image out")
        if len(sizes) < 2:
            raise AnnotationError(
                f"references of {len(sizes)} images: CIDEr weighs words by how rare they are among images; "
                "give two or more"
            )
        captions = tokenize(list(chain.from_iterable(references)))
        if eos:
            captions = [f"{caption} {EOS}" for caption in captions]
        vocabulary, keys = Vocabulary(), []
        text = Text.of(captions, vocabulary)
        slots, images = ranges(np.zeros_like(sizes), sizes)

        def tables() -> Iterator[tuple[Table, int]]:
            for table, order_keys in count_grams(text, len(vocabulary), images, slots):
                keys.append(order_keys)
                yield table, len(order_keys)

        counted = References.of(tables(), sizes, text.lengths)
        starts = offsets(np.array([len(order_keys) for order_keys in keys]))
        return cls(counted, list(vocabulary), np.concatenate(keys), starts, eos)

    def __len__(self) -> int:
        """The number of images."""
        return len(self.references.captions) - 1

    def save(self, path: str | Path) -> None:
        """Write everything to an npz file of that very name."""
        words = np.frombuffer("\n".join(self.words).encode(errors="surrogatepass"), np.uint8)
        arrays: dict[str, Any] = {"words": words, "keys": self.keys, "starts": self.starts, "eos": np.array(self.eos)}
        with Path(path).open("wb") as file:
            np.savez(file, **self.references._asdict(), **arrays)

    @classmethod
    def load(cls, path: str | Path) -> "CiderReward":
        """The inverse of `save`. Raises AnnotationError for another file."""
        try:
            with np.load(path, allow_pickle=False) as arrays:
                words = arrays["words"].tobytes().decode(errors="surrogatepass").split("\n")
                references = References(**{name: arrays[name] for name in References._fields})
                return cls(references, words, arrays["keys"], arrays["starts"], bool(arrays["eos"]))
        except (AttributeError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
            raise AnnotationError(f"{path}: not a saved reward ({error}); build it again") from error

    def reward(
        self, images: Sequence[int] | Integers, samples: Sequence[Sequence[Sequence[str]]]
    ) -> NDArray[np.float64]:
        """(B, S): CIDEr-D of S samples, as lists of words, of each image, given as its place in the references.

        An image may be there several times. A sample that ended has `EOS` as its last word.
        """
        chosen = np.asarray(images, np.int64)
        each = len(samples[0]) if len(samples) else 0
        if len(chosen) * each == 0:
            return np.zeros((len(chosen), each))
        flat = list(chain.from_iterable(samples))
        if not self.eos:
            flat = [[word for word in sample if word != EOS] for sample in flat]
        lengths = np.fromiter(map(len, flat), np.int64, len(flat))
        return cider_scores(self.references, chosen, self._count(flat, lengths), lengths).reshape(-1, each)

    def _count(self, samples: Sequence[Sequence[str]], lengths: Integers) -> list[Table]:
        """The n-grams of samples, numbered as in the references; G where no reference has it."""
        # A word that no reference has gets a number after theirs: it counts in norms, where repeats matter.
        known, first_new, new = self._known, len(self.words), Vocabulary()
        numbers = [
            first_new + new[word] if (number := known.get(word)) is None else number
            for word in chain.from_iterable(samples)
        ]
        words, rows = first_new + len(new), np.arange(len(lengths))
        text, tables = Text(np.array(numbers, np.int64), lengths), []
        numbered = np.zeros(1, np.int64)  # of each n-gram one word shorter: its number in its order, or -1
        for order, (table, found) in enumerate(count_grams(text, words, rows, np.zeros_like(rows))):
            start, stop = self.starts[order : order + 2]
            before, last = np.divmod(found, words)
            keys = np.where((numbered[before] < 0) | (last >= first_new), -1, numbered[before] * first_new + last)
            places, there = find(self.keys[start:stop], keys)
            numbered = np.where(there, places, -1)
            tables.append(table._replace(grams=np.where(there, places + start, len(self.keys))[table.grams]))
        return tables
