"""CIDEr-D as coco-caption computes it (Vedantam et al. 2015, section 7).   I images · C references of all images"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from captioner.metrics.ngrams import MAX_ORDER, Counts, Table, find, sums

SIGMA = 6.0
"""Of the Gaussian that punishes another length than the reference's."""
SCALE = 10.0


class CiderD(NamedTuple):
    corpus: float
    """The mean over images; 0 of one image alone, whose n-grams are in all images and so weigh nothing."""
    per_image: NDArray[np.float64]
    """(I,)"""


def cider_d(candidates: Sequence[str], references: Sequence[Sequence[str]], counts: Counts | None = None) -> CiderD:
    """CIDEr-D of tokenized candidates (I), document frequencies being those of their references.

    `counts` of the same captions, where they are there.
    """
    counts = counts or Counts.of(candidates, references)
    images, captions = len(counts.candidate_lengths), counts.images
    scores = np.zeros(images)
    # The official tool takes the number of bigrams as the length.
    lengths = (np.maximum(each - 1, 0) for each in (counts.candidate_lengths[captions], counts.reference_lengths))
    closeness = length_penalty(*lengths)
    each = np.bincount(captions, minlength=images)
    for own, others, size in zip(counts.candidates, counts.references, counts.sizes, strict=True):
        weights = np.log(images) - np.log(np.maximum(1, _document_frequencies(captions, others, size)))
        own_values, other_values = own.counts * weights[own.grams], others.counts * weights[others.grams]
        own_norms, other_norms = norms(own.rows, own_values, images), norms(others.rows, other_values, len(captions))
        places, shared = find(own.rows * size + own.grams, captions[others.rows] * size + others.grams)
        ours, theirs = own_values[places[shared]], other_values[shared]
        products = sums(others.rows[shared], np.minimum(ours, theirs) * theirs, len(captions))
        scores += sums(captions, closeness * cosine(products, own_norms[captions], other_norms), images)
    scores *= SCALE / MAX_ORDER / each
    return CiderD(float(scores.mean()), scores)


def length_penalty(lengths: NDArray[np.int64], others: NDArray[np.int64]) -> NDArray[np.float64]:
    """What is left of a similarity of captions with so many bigrams."""
    penalty: NDArray[np.float64] = np.exp(-((lengths - others) ** 2) / (2 * SIGMA**2))
    return penalty


def norms(rows: NDArray[np.int64], values: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """(size,): the length of each row's vector."""
    lengths: NDArray[np.float64] = np.sqrt(sums(rows, values * values, size))
    return lengths


def cosine(
    products: NDArray[np.float64], norms: NDArray[np.float64], others: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The products of vectors over their norms; 0 where a vector is 0, whose products are too."""
    divisors = norms * others
    return products / np.where(divisors == 0, 1.0, divisors)


def _document_frequencies(images: NDArray[np.int64], references: Table, size: int) -> NDArray[np.int64]:
    """(size,): how many images have a reference with each n-gram."""
    pairs = np.unique(images[references.rows] * max(1, size) + references.grams)
    return np.bincount(pairs % max(1, size), minlength=size)
