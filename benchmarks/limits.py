"""Limits of this machine, measured during a benchmark with the faster of PyTorch's and the package's product."""

import statistics
import time
from collections.abc import Callable
from functools import partial

import torch

from captioner.model.linear import linear

SIDE = 2048
BEYOND_CACHES = 2**30
"""Bytes of a matrix that fits no cache; a server's cache can hold all weights of a small decoder."""


def matrix_product() -> float:
    """Floating-point operations per second in a large float32 matrix product."""
    one, other = torch.randn(SIDE, SIDE), torch.randn(SIDE, SIDE)
    return 2 * SIDE**3 / _quickest(one, other)


def matrix_vector(size: int = BEYOND_CACHES) -> float:
    """Bytes per second that repeated products of a float32 matrix of `size` bytes with a vector read."""
    matrix = torch.ones(size // (4 * SIDE), SIDE)
    return 4 * matrix.numel() / _quickest(torch.ones(1, SIDE), matrix)


@torch.inference_mode()
def _quickest(x: torch.Tensor, weight: torch.Tensor) -> float:
    """Seconds of x Wᵀ, by the fastest product."""
    return min(median_seconds(partial(product, x, weight), 0.3) for product in (torch.nn.functional.linear, linear))


def median_seconds(work: Callable[[], object], at_least: float) -> float:
    """Median seconds of repeated calls that together take `at_least` seconds, after one warm-up call."""
    work()
    seconds: list[float] = []
    while sum(seconds) < at_least:
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)
