"""Ways to reduce the number of patches: k x k averages (`encoder.pool`), and learned queries (an experiment).

B images · N patches · M queries · E encoder width
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captioner.model.attention import CrossAttention


class Pooled(nn.Module):
    """What `encoder.pool` does, for features that are already computed."""

    def __init__(self, grid: tuple[int, int], pool: int) -> None:
        super().__init__()
        self.grid, self.pool = grid, pool

    def forward(self, features: Tensor) -> Tensor:
        """features (B, N, E) -> (B, N / k², E)."""
        pooled: Tensor = F.avg_pool2d(features.transpose(1, 2).unflatten(2, self.grid), self.pool)
        return pooled.flatten(2).transpose(1, 2)


class LearnedQueries(nn.Module):
    """M learned queries that read each image by cross-attention, in one layer (Perceiver, Jaegle et al. 2021)."""

    def __init__(self, width: int, queries: int, heads: int = 8) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(queries, width) * 0.02)
        self.norm = nn.LayerNorm(width)
        self.attention = CrossAttention(width=width, heads=heads, dropout=0.0, null_patch=False)

    def forward(self, features: Tensor) -> Tensor:
        """features (B, N, E) -> (B, M, E)."""
        asked = self.queries.expand(len(features), -1, -1)
        answers, _ = self.attention(asked, self.attention.project(self.norm(features)))
        return asked + answers  # type: ignore[no-any-return]
