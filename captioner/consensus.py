"""The caption that has most in common with the others of a search: minimum Bayes risk decoding without torch.

B images · K captions of an image · T tokens · n-grams of 1 to 4 tokens
"""

from collections.abc import Container
from itertools import count

import numpy as np
from numpy.typing import NDArray

MAX_ORDER = 4
SIGMA = 6.0
"""Width of the Gaussian penalty on differences in length, as in CIDEr-D."""
DECIMALS = 9
"""Captions whose means agree this far are equal, so that rounding does not order them."""


def by_consensus(tokens: NDArray[np.int64], lengths: NDArray[np.int64], first: int) -> NDArray[np.int64]:
    """Rank the captions of each image by their mean similarity to all its captions; ties keep their order.

    `tokens` (B, K, T) has no start or end tokens; only the first `lengths` (B, K) of each row count. A length of -1
    marks a missing caption, which comes last. Returns the rows of each image, best first (B, K).

    The similarity is CIDEr-D (Vedantam et al. 2015), but with weights that need no data set. Vocabularies are sorted by
    frequency, and by Zipf's law a word's frequency falls as its rank grows. So a token weighs the logarithm of its
    rank, 1 + token - `first`, and an n-gram the sum over its tokens. Devlin et al. 2015 (arXiv 1505.04467) choose by
    consensus among the captions of similar photos.
    """
    images, captions, size = tokens.shape
    places = np.arange(size)
    weights = np.log1p(np.maximum(tokens - first, 0))  # (B, K, T)
    same = tokens[:, :, :, None, None] == tokens[:, None, None, :, :]  # (B, K, T, K, T)
    similarities, equal, weight = np.zeros((images, captions, captions)), same, weights
    for order in range(1, MAX_ORDER + 1):
        if order > size:
            break
        if order > 1:  # one token more
            equal = equal[:, :, :-1, :, :-1] & same[:, :, order - 1 :, :, order - 1 :]
            weight = weight[:, :, :-1] + weights[:, :, order - 1 :]
        starts = size - order + 1
        real = places[:starts] + order <= lengths[:, :, None]  # (B, K, P) the n-grams within their caption
        counts = (equal & real[:, None, None]).sum(axis=4)  # (B, K, P, K) of each n-gram in each caption
        own = np.maximum(np.einsum("bkpk->bkp", counts), 1)
        squares = weight**2 * real
        shared = np.einsum("bkp,bkpl->bkl", squares / own, np.minimum(own[..., None], counts) * counts)
        norms = np.sqrt((squares * own).sum(axis=2))  # each n-gram comes as often as it counts
        products = norms[:, :, None] * norms[:, None]
        similarities += np.divide(shared, products, out=np.zeros_like(shared), where=products > 0)
    apart = lengths[:, :, None] - lengths[:, None]
    similarities *= np.exp(-(apart**2) / (2 * SIGMA**2))
    exist = lengths >= 0
    means = (similarities * exist[:, None]).sum(axis=2) / np.maximum(exist.sum(axis=1, keepdims=True), 1)
    found: NDArray[np.int64] = np.argsort(np.where(exist, -means.round(DECIMALS), np.inf), axis=1, kind="stable")
    return found


def first_word(special: Container[int]) -> int:
    """The id of the most frequent word: the first that is not special."""
    return next(token for token in count() if token not in special)
