"""What this machine can do at most, measured beside everything else: by PyTorch's product or the package's."""

import statistics
import time
from collections.abc import Callable
from functools import partial

import torch

from captioner.model.linear import linear

SIDE = 2048
BEYOND_CACHES = 2**30
"""Bytes of a matrix that no cache holds; those of a server hold all weights of a small decoder."""


def matrix_product() -> float:
    """Floating-point operations a second of a large product of float32 matrices."""
    one, other = torch.randn(SIDE, SIDE), torch.randn(SIDE, SIDE)
    return 2 * SIDE**3 / _quickest(one, other)


def matrix_vector(size: int = BEYOND_CACHES) -> float:
    """Bytes a second that the product of a float32 matrix of so many bytes and a vector reads, again and again."""
    matrix = torch.ones(size // (4 * SIDE), SIDE)
    return 4 * matrix.numel() / _quickest(torch.ones(1, SIDE), matrix)


@torch.inference_mode()
def _quickest(x: torch.Tensor, weight: torch.Tensor) -> float:
    """Seconds of x Wᵀ."""
    return min(median_seconds(partial(product, x, weight), 0.3) for product in (torch.nn.functional.linear, linear))


def median_seconds(work: Callable[[], object], at_least: float) -> float:
    """The median time of as many repetitions as take so many seconds; once unmeasured before."""
    work()
    seconds: list[float] = []
    while sum(seconds) < at_least:
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)
