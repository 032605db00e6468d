"""Attention of object words in mosaics: metrics, and a loss that teaches words to attend to their own photo.

R caption rows · T tokens · K object words · L layers · H heads · N memory positions, h·w of them patches
"""

import torch
from torch import Tensor

from captioner.data.dataset import Batch
from captioner.data.mosaics import corner_shares

SMALLEST_SHARE = 1e-6
"""Lower bound of attention shares, so that logarithms and quotients are finite."""


def pointing(weights: Tensor, batch: Batch, grid: tuple[int, int], patches: slice) -> Tensor:
    """How much of their attention on patches K object words of mosaics put on their own photo: (K, L, H).

    weights (R, L, H, T - 1, N) are those of the steps that predict the tokens after the first.
    """
    rows = len(batch.tokens) // len(batch.corners)
    corners = batch.corners.repeat_interleave(rows)
    named = batch.objects[:, 1:] & (corners >= 0)[:, None]  # (R, T - 1)
    captions, steps = named.nonzero(as_tuple=True)  # each (K,)
    attended = weights[captions, :, :, steps][..., patches]  # (K, L, H, h·w)
    shares = torch.from_numpy(corner_shares(grid)).to(weights)  # (corners, h·w)
    own = shares[corners[captions]]  # (K, h·w)
    return (attended @ own[:, None, :, None]).squeeze(-1) / attended.sum(dim=-1).clamp(min=SMALLEST_SHARE)


def pointing_loss(shares: Tensor) -> Tensor:
    """The mean over words of -log of the share (K, L, H), averaged over layers and heads, as `pointing` gives it."""
    return -shares.mean(dim=(1, 2)).clamp(min=SMALLEST_SHARE).log().mean()


def attention_measures(weights: Tensor, batch: Batch, grid: tuple[int, int], patches: slice) -> dict[str, Tensor]:
    """Pointing, entropy over patches in bits, and mass on the null patch, each (K, L, H), of object words of mosaics.

    weights as `pointing` takes them.
    """
    named = weights.permute(0, 3, 1, 2, 4)[batch.objects[:, 1:]].float()  # (K, L, H, N)
    shares = named[..., patches] / named[..., patches].sum(dim=-1, keepdim=True).clamp(min=SMALLEST_SHARE)
    return {
        "pointing": pointing(weights, batch, grid, patches),
        "entropy": -(shares * shares.clamp(min=SMALLEST_SHARE).log2()).sum(dim=-1),
        "null_mass": named[..., patches.stop :].sum(dim=-1),
    }
