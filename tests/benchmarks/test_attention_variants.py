"""Sparsemax is the nearest point of the simplex."""

import torch

from benchmarks.attention_variants import sparsemax


def test_sparsemax_is_the_nearest_point_of_the_simplex():
    """Against bisection on the threshold t of max(score - t, 0), which must sum to one."""
    scores = 3 * torch.randn(50, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    low, high = scores.min(dim=1).values - 1, scores.max(dim=1).values
    for _ in range(100):
        middle = (low + high) / 2
        over = (scores - middle[:, None]).clamp(min=0).sum(dim=1) > 1
        low, high = torch.where(over, middle, low), torch.where(over, high, middle)
    torch.testing.assert_close(sparsemax(scores), (scores - low[:, None]).clamp(min=0), atol=1e-9, rtol=0)
    assert (sparsemax(scores) == 0).float().mean() > 0.5
