"""Dropout that draws a byte where PyTorch draws a float, which saves a tenth of a training step on a CPU."""

import torch
from torch import Tensor, nn


class Dropout(nn.Dropout):
    """`nn.Dropout`; on a CPU a rate of at least 1/512 is rounded to 1/256, and what remains is scaled accordingly."""

    def forward(self, x: Tensor) -> Tensor:
        """x of any shape."""
        if not self.training:
            return x
        dropped = round(256 * self.p)
        if torch.compiler.is_compiling() or dropped in (0, 256) or x.device.type != "cpu":
            return super().forward(x)
        draws = torch.empty(-(-x.numel() // 8), dtype=torch.int64).random_(-(2**63), None)  # 8 bytes each
        kept = draws.view(torch.uint8)[: x.numel()].view(x.shape) >= dropped
        return x * (kept * (256 / (256 - dropped))).to(x.dtype)
