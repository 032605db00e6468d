"""How far a photo is from the training photos.   B images · N positions · E encoder width · K directions · S photos"""

from typing import Self

import torch
from torch import Tensor, nn

DIRECTIONS = 128
"""K, the number of principal directions that are stored."""
MIN_SCALE = 1e-3
"""Smallest standard deviation of a direction, relative to the largest; features may depend on each other."""
MIN_SPREAD = 1e-6
"""Keeps a picture whose patches are all alike from dividing by zero."""


class Familiarity(nn.Module):
    """The Mahalanobis distance of a photo's summary from those of the training photos.

    Their covariance is that of probabilistic PCA (Tipping and Bishop 1999): the variances of the K largest principal
    directions, and one variance for all others.
    """

    mean: Tensor
    directions: Tensor
    scales: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        directions = min(DIRECTIONS, width - 1)
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("directions", torch.zeros(directions, width))
        self.register_buffer("scales", torch.ones(directions + 1))  # standard deviations; the last one is the others'

    @classmethod
    def fit(cls, summaries: Tensor) -> Self:
        """The distance from photos with these summaries (S, E), of which there are several times K."""
        photos, width = summaries.shape
        fitted = cls(width).to(summaries.device)
        fitted.mean = summaries.mean(dim=0)
        _, deviations, directions = torch.linalg.svd(summaries - fitted.mean, full_matrices=False)
        deviations, count = deviations / (photos - 1) ** 0.5, len(fitted.directions)
        others = deviations[count:].square().sum().div(width - count).sqrt()
        fitted.directions = directions[:count].contiguous()
        fitted.scales = torch.cat([deviations[:count], others[None]]).clamp(min=MIN_SCALE * float(deviations[0]))
        return fitted

    def forward(self, features: Tensor) -> Tensor:
        """features (B, N, E) -> the distance of each photo (B,), in standard deviations."""
        offset = summarize(features) - self.mean
        along = offset @ self.directions.T  # (B, K)
        rest = (offset - along @ self.directions).norm(dim=1, keepdim=True)
        distances: Tensor = (torch.cat([along, rest], dim=1) / self.scales).norm(dim=1)
        return distances


def summarize(features: Tensor) -> Tensor:
    """features (B, N, E) -> (B, E): the mean over positions, in units of the mean standard deviation over them.

    The unit makes the flat patches of drawings, documents and night skies stand out (docs/reliability.md).
    """
    spread = features.std(dim=1, correction=0).mean(dim=1, keepdim=True)
    return features.mean(dim=1) / spread.clamp(min=MIN_SPREAD)
