"""CIDEr-D as coco-caption computes it (Vedantam et al. 2015, section 7), for scores and for rewards.

I images · C references of all images · G n-grams of references · E entries, the n-grams of each reference
B images of a batch · R candidates of a batch, those of one image adjacent · P pairs of a candidate and a reference
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from captioner.metrics.metric import Captions, Result
from captioner.metrics.ngrams import MAX_ORDER, Integers, Table, offsets, ranges, sums
from captioner.metrics.significance import Statistics

Small: TypeAlias = NDArray[np.unsignedinteger[Any]]
"""The smallest type that holds the numbers, mostly uint8."""

SIGMA = 6.0
"""Width of the Gaussian penalty on differences in length."""
SCALE = 10.0


class References(NamedTuple):
    """Everything about the references that does not depend on candidates."""

    captions: Integers
    """(I + 1,) where each image's references start."""
    lengths: Integers
    """(C,) in words."""
    norms: NDArray[np.float64]
    """(C, 4) of their tf-idf vectors."""
    weights: NDArray[np.float64]
    """(I + 1,) document frequency -> inverse document frequency."""
    frequencies: NDArray[np.int32]
    """(G + 1,) how many images have a reference with the n-gram; the last stands for all unknown n-grams: 0."""
    entries: Integers
    """(4 I + 1,) where the entries of each image start, order after order; within, they are sorted by n-gram."""
    grams: NDArray[np.int32]
    """(E,) numbered through all orders."""
    slots: Small
    """(E,) which of the image's references."""
    counts: Small
    """(E,) how often it has the n-gram."""

    @classmethod
    def of(cls, tables: Iterable[tuple[Table, int]], references_of: Integers, lengths: Integers) -> "References":
        """Count references: a table of n-grams per order with the number of distinct ones; the number of references of
        each image; the length of each reference in words."""
        images, captions = len(references_of), offsets(references_of)
        weights: NDArray[np.float64] = np.log(images) - np.log(np.maximum(1, np.arange(images + 1)))
        start, parts = 0, []
        for table, size in tables:
            new = np.diff(table.images * size + table.grams, prepend=-1) != 0  # an image counts once
            frequencies = np.bincount(table.grams[new], minlength=size).astype(np.int32)
            values = table.counts * weights[frequencies[table.grams]]
            parts.append(
                (
                    np.sqrt(sums(captions[table.images] + table.slots, values * values, len(lengths))),
                    frequencies,
                    np.bincount(table.images, minlength=images),
                    (table.grams + start).astype(np.int32),
                    _smallest(table.slots),
                    _smallest(table.counts),
                )
            )
            start += size
        norms, all_frequencies, sizes, grams, slots, counts = zip(*parts, strict=True)
        return cls(
            captions=captions,
            lengths=lengths,
            norms=np.stack(norms, axis=1),
            weights=weights,
            frequencies=np.concatenate([*all_frequencies, np.zeros(1, np.int32)]),
            entries=offsets(np.concatenate(sizes)),
            grams=np.concatenate(grams),
            slots=np.concatenate(slots),
            counts=np.concatenate(counts),
        )


def cider_d(captions: Captions) -> Result:
    """CIDEr-D with the document frequencies of these references; undefined for one image."""
    counts = captions.counts
    images = len(counts.references_of)
    if images == 1:
        reason = "one image alone: every n-gram of its references is in all images, so CIDEr gives it no weight"
        return Result(("cider_d",), Statistics.mean(np.full(1, np.nan)), reason)
    tables = zip(counts.references, counts.sizes, strict=True)
    references = References.of(tables, counts.references_of, counts.reference_lengths)
    starts = offsets(np.array(counts.sizes))[:-1]
    candidates = [
        table._replace(grams=table.grams + start) for table, start in zip(counts.candidates, starts, strict=True)
    ]
    scores = cider_scores(references, np.arange(images), candidates, counts.candidate_lengths)
    return Result(("cider_d",), Statistics.mean(scores))


def cider_scores(
    references: References, images: Integers, candidates: Sequence[Table], lengths: Integers
) -> NDArray[np.float64]:
    """(R,): CIDEr-D of candidates against the references of images (B,); each image has as many candidates.

    `candidates` has a table an order, whose `images` are rows of candidates and whose n-grams are numbered as in
    `references`, G where no reference has it; `lengths` (R,) are in words.
    """
    each, size = len(lengths) // len(images), len(references.frequencies)
    rows, grams, _, counts = map(np.concatenate, zip(*candidates, strict=True))
    orders = np.repeat(np.arange(MAX_ORDER), [len(table.grams) for table in candidates])
    frequencies = references.frequencies[grams]
    values = counts * references.weights[frequencies]
    norms = np.sqrt(sums(rows * MAX_ORDER + orders, values * values, len(lengths) * MAX_ORDER)).reshape(-1, MAX_ORDER)
    known = frequencies > 0
    rows, grams, orders, values = rows[known], grams[known], orders[known], values[known]

    # Every n-gram of a candidate meets the entries of its image's references with the same n-gram.
    total = len(references.captions) - 1
    blocks = (np.arange(MAX_ORDER)[:, None] * total + images).ravel()
    entries, owners = ranges(references.entries[blocks], references.entries[blocks + 1])
    present = owners * size + references.grams[entries]
    wanted = (orders * len(images) + rows // each) * size + grams
    places, meeting = ranges(np.searchsorted(present, wanted), np.searchsorted(present, wanted, side="right"))
    entries = entries[places]
    theirs = references.counts[entries] * references.weights[frequencies[known][meeting]]
    products = np.minimum(values[meeting], theirs) * theirs

    first, last = (np.repeat(references.captions[images + end], each) for end in (0, 1))
    others, own = ranges(first, last)  # (P,) the reference and the candidate of each pair
    pairs = offsets(last - first)[rows[meeting]] + references.slots[entries]
    products = sums(pairs * MAX_ORDER + orders[meeting], products, len(own) * MAX_ORDER).reshape(-1, MAX_ORDER)
    divisors = norms[own] * references.norms[others]
    similarities = (products / np.where(divisors == 0, 1.0, divisors)).sum(axis=1)
    # The official tool takes the number of bigrams as the length.
    apart = np.maximum(lengths[own] - 1, 0) - np.maximum(references.lengths[others] - 1, 0)
    similarities *= np.exp(-(apart**2) / (2 * SIGMA**2))
    scores: NDArray[np.float64] = sums(own, similarities, len(lengths)) * (SCALE / MAX_ORDER) / (last - first)
    return scores


def _smallest(numbers: Integers) -> Small:
    return numbers.astype(np.min_scalar_type(numbers.max(initial=0)))
