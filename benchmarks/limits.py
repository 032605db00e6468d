"""What this machine can do at most, measured beside everything else."""

import time

import torch

SIDE = 2048


def matrix_product() -> float:
    """Floating-point operations a second of a large product of float32 matrices."""
    one, other = torch.randn(SIDE, SIDE), torch.randn(SIDE, SIDE)
    start = time.perf_counter()
    one @ other
    return 2 * SIDE**3 / (time.perf_counter() - start)


def matrix_vector() -> float:
    """Bytes a second that a large product of a float32 matrix and a vector reads."""
    matrix, vector = torch.randn(4 * SIDE, 2 * SIDE), torch.randn(2 * SIDE)
    start = time.perf_counter()
    matrix @ vector
    return matrix.numel() * 4 / (time.perf_counter() - start)
