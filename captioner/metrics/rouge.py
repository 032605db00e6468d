"""ROUGE-L as coco-caption computes it (Lin 2004, sentence level; best precision and best recall of any reference)."""

from collections.abc import Sequence

import numpy as np

from captioner.metrics.metric import Captions, Result
from captioner.metrics.significance import Statistics

_BETA = 1.2


def rouge_l(captions: Captions) -> Result:
    """ROUGE-L; words end at single spaces alone."""
    scores = map(_score, captions.candidates, captions.references)
    return Result(("rouge_l",), Statistics.mean(np.fromiter(scores, np.float64)))


def _score(candidate: str, references: Sequence[str]) -> float:
    words = candidate.split(" ")  # an empty caption has one word, the empty one
    places: dict[str, int] = {}
    for place, word in enumerate(words):
        places[word] = places.get(word, 0) | 1 << place
    full = (1 << len(words)) - 1
    precision = recall = 0.0
    for reference in references:
        others = reference.split(" ")
        common = _common(places, full, others)
        precision = max(precision, common / len(words))
        recall = max(recall, common / len(others))
    if precision == 0 or recall == 0:
        return 0.0
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)


def _common(places: dict[str, int], full: int, others: list[str]) -> int:
    """Length of the longest common subsequence, a row of the usual table held in the bits of one integer.

    Hyyrö (2004), Bit-parallel LCS-length computation revisited: a 0 bit is where the row's length rises.
    """
    row = full
    for word in others:
        if matches := row & places.get(word, 0):
            row = (row + matches | row - matches) & full
    return (full ^ row).bit_count()
