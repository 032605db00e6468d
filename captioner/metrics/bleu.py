"""BLEU-1 to BLEU-4 as coco-caption computes them (Papineni et al. 2002, with the closest reference length).

I images · K = 10 statistics of an image
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from captioner.metrics.ngrams import MAX_ORDER, Counts, find, sums

# coco-caption adds these so that no precision is 0/0; scores show them, in the tenth digit or as 1e-4 for a 0.
_TINY, _SMALL = 1e-15, 1e-9


class Bleu(NamedTuple):
    corpus: NDArray[np.float64]
    """(4,) of summed statistics, not a mean."""
    per_image: NDArray[np.float64]
    """(I, 4)"""
    statistics: NDArray[np.float64]
    """(I, 10): matches of orders 1 to 4, n-grams of orders 1 to 4, length, closest reference length."""


def bleu(candidates: Sequence[str], references: Sequence[Sequence[str]], counts: Counts | None = None) -> Bleu:
    """BLEU of tokenized candidates (I) against the references of each; `counts` of the same, where they are there."""
    counts = counts or Counts.of(candidates, references)
    lengths = counts.candidate_lengths
    images = len(lengths)
    matches = np.stack([_matches(counts, order) for order in range(MAX_ORDER)], axis=1)
    possible = np.maximum(0, lengths[:, None] - np.arange(MAX_ORDER))
    # The closest length, of two that are as close the shorter one.
    distance = np.abs(counts.reference_lengths - lengths[counts.images])
    order = np.lexsort((counts.reference_lengths, distance, counts.images))
    closest = counts.reference_lengths[order][np.searchsorted(counts.images, np.arange(images))]
    statistics = np.column_stack([matches, possible, lengths, closest]).astype(np.float64)
    return Bleu(bleu_of(statistics.sum(axis=0)), bleu_of(statistics), statistics)


def bleu_of(statistics: NDArray[np.float64]) -> NDArray[np.float64]:
    """(..., 4): BLEU of statistics (..., 10), an image's or sums over images."""
    matches, possible = statistics[..., :MAX_ORDER], statistics[..., MAX_ORDER : 2 * MAX_ORDER]
    length, closest = statistics[..., -2, None], statistics[..., -1, None]
    precisions = np.cumprod((matches + _TINY) / (possible + _SMALL), axis=-1)
    ratio = (length + _TINY) / (closest + _SMALL)
    brevity = np.exp(np.minimum(0.0, 1 - 1 / ratio))
    means: NDArray[np.float64] = precisions ** (1 / np.arange(1, MAX_ORDER + 1)) * brevity
    return means


def _matches(counts: Counts, order: int) -> NDArray[np.float64]:
    """(I,): a candidate's n-grams that a reference has as often."""
    own, others, size = counts.candidates[order], counts.references[order], counts.sizes[order]
    keys = own.rows * size + own.grams
    places, shared = find(keys, counts.images[others.rows] * size + others.grams)
    most = np.zeros(len(keys), np.int64)
    np.maximum.at(most, places[shared], others.counts[shared])
    return sums(own.rows, np.minimum(own.counts, most), len(counts.candidate_lengths))
