"""What this machine can do at most, measured beside everything else: by PyTorch's product or the package's."""

import time

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
    seconds = []
    for product in (torch.nn.functional.linear, linear):
        start = time.perf_counter()
        product(x, weight)
        seconds.append(time.perf_counter() - start)
    return min(seconds)
