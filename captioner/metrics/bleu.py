"""BLEU-1 to BLEU-4 as coco-caption computes them (Papineni et al. 2002, with the closest reference length).

I images
"""

import numpy as np
from numpy.typing import NDArray

from captioner.metrics.metric import Captions, Result
from captioner.metrics.ngrams import MAX_ORDER, Counts, find, sums
from captioner.metrics.significance import Statistics

NAMES = tuple(f"bleu_{order}" for order in range(1, MAX_ORDER + 1))

# coco-caption adds these so that no precision is 0/0; scores show them, in the tenth digit or as 1e-4 for a 0.
_TINY, _SMALL = 1e-15, 1e-9


def bleu(captions: Captions) -> Result:
    """BLEU; its statistics (I, 10) are matches of orders 1 to 4, n-grams of orders 1 to 4, length, closest length."""
    counts = captions.counts
    lengths, others = counts.candidate_lengths, counts.reference_lengths
    matches = np.stack([_matches(counts, order) for order in range(MAX_ORDER)], axis=1)
    possible = np.maximum(0, lengths[:, None] - np.arange(MAX_ORDER))
    # The closest reference length; of two equally close ones the shorter.
    images = np.repeat(np.arange(len(lengths)), counts.references_of)
    order = np.lexsort((others, np.abs(others - lengths[images]), images))
    closest = others[order][np.searchsorted(images, np.arange(len(lengths)))]
    statistics = np.column_stack([matches, possible, lengths, closest]).astype(np.float64)
    return Result(NAMES, Statistics(statistics, bleu_of))


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
    """(I,): the n-grams of each candidate, each counted at most as often as in the reference that has it most often."""
    own, others, size = counts.candidates[order], counts.references[order], counts.sizes[order]
    places, shared = find(own.images * size + own.grams, others.images * size + others.grams)
    most = np.zeros(len(own.grams), np.int64)
    np.maximum.at(most, places[shared], others.counts[shared])
    return sums(own.images, np.minimum(own.counts, most), len(counts.candidate_lengths))
