"""What this machine can do at most, measured beside everything else: by PyTorch's product or the package's."""

import statistics
import time
from collections.abc import Callable
from functools import partial

import torch

from captioner.model.linear import linear

SIDE = 2048


def matrix_product() -> float:
    """Floating-point operations a second of a large product of float32 matrices."""
    one, other = torch.randn(SIDE, SIDE), torch.randn(SIDE, SIDE)
    return 2 * SIDE**3 / _quickest(one, other)


def matrix_vector() -> float:
    """Bytes a second that a large product of a float32 matrix and a vector reads."""
    matrix, vector = torch.randn(4 * SIDE, 2 * SIDE), torch.randn(1, 2 * SIDE)
    return matrix.numel() * 4 / _quickest(vector, matrix)


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
