"""Depthwise convolutions, whose gradients are slow on a CPU in 16 bits."""

from typing import TypeGuard

import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn


def is_depthwise(part: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether a module is a convolution with one filter for each channel."""
    return isinstance(part, nn.Conv2d) and 1 < part.groups == part.in_channels


class Float32Conv2d(nn.Conv2d):
    """`nn.Conv2d` that computes in float32 under a CPU's mixed precision."""

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, height, width) -> (B, O, height', width'), of x's dtype."""
        if not torch.is_autocast_enabled("cpu") or x.device.type != "cpu":
            return super().forward(x)
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.float()).to(x.dtype)


class Float32Conv2dSame(Float32Conv2d, Conv2dSame):
    """The same for TensorFlow's padding."""


def keep_strided_in_float32(backbone: nn.Module) -> None:
    """Let depthwise convolutions with a stride compute in float32 under a CPU's mixed precision.

    oneDNN has no fast gradient of theirs in bfloat16: it takes tens of times as long as in float32.
    """
    for part in backbone.modules():
        if is_depthwise(part) and max(part.stride) > 1:
            if type(part) is nn.Conv2d:
                part.__class__ = Float32Conv2d
            elif type(part) is Conv2dSame:
                part.__class__ = Float32Conv2dSame
