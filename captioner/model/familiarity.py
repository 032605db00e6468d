"""How far a photo is from the training photos.   B images · N positions · E encoder width · K directions · S photos"""

from typing import Self

import torch
from torch import Tensor, nn

DIRECTIONS = 128
"""K, the number of principal directions that are stored."""


class Familiarity(nn.Module):
    """The Mahalanobis distance of a photo's mean feature from those of the training photos.

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
    def fit(cls, means: Tensor) -> Self:
        """The distance from photos with these mean features (S, E), of which there are several times K."""
        photos, width = means.shape
        fitted = cls(width).to(means.device)
        fitted.mean = means.mean(dim=0)
        _, deviations, directions = torch.linalg.svd(means.double() - fitted.mean, full_matrices=False)
        deviations, count = deviations / (photos - 1) ** 0.5, len(fitted.directions)
        others = deviations[count:].square().sum().div(width - count).sqrt()
        fitted.directions = directions[:count].to(means)
        fitted.scales = torch.cat([deviations[:count], others[None]]).to(means)
        return fitted

    def forward(self, features: Tensor) -> Tensor:
        """features (B, N, E) -> the distance of each photo (B,), in standard deviations."""
        offset = features.mean(dim=1) - self.mean
        along = offset @ self.directions.T  # (B, K)
        rest = (offset - along @ self.directions).norm(dim=1, keepdim=True)
        distances: Tensor = (torch.cat([along, rest], dim=1) / self.scales).norm(dim=1)
        return distances
