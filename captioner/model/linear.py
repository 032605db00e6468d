"""Linear layers by oneDNN, for training and encoders.   O outputs · I inputs

PyTorch gives float32 products on a CPU to MKL, which leaves the AVX-512 of AMD's processors unused: oneDNN is 1.4 to
2.3 times as fast there, and as fast on Intel's for more than a few rows (docs/performance.md).
"""

import platform
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

AVAILABLE = torch.backends.mkldnn.is_available() and platform.machine() in ("x86_64", "AMD64")


class Linear(nn.Linear):
    """`nn.Linear` computed by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """x (..., I) -> (..., O)."""
        return linear(x, self.weight, self.bias)


def replace_linear_layers(module: nn.Module) -> None:
    """Replace each `nn.Linear` inside a module by a `Linear` with the same parameters."""
    for name, child in module.named_children():
        if type(child) is nn.Linear:
            layer = Linear(child.in_features, child.out_features, bias=child.bias is not None, device="meta")
            layer.weight, layer.bias = child.weight, child.bias
            setattr(module, name, layer.train(child.training))
        else:
            replace_linear_layers(child)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., I), weight (O, I), bias (O,) -> x Wᵀ + b (..., O), differentiable once."""
    if torch.compiler.is_compiling() or not by_onednn(x, weight):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled() and any(each is not None and each.requires_grad for each in (x, weight, bias)):
        return _Linear.apply(x, weight, bias)  # type: ignore[no-any-return]
    return onednn_product(x, weight, bias)


def by_onednn(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN computes this product: float32 on an x86 processor, not empty."""
    return (
        AVAILABLE
        and x.dtype == weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
        and x.numel() > 0
    )


def onednn_product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + b by oneDNN; the weight may be in its own order."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")  # type: ignore[no-any-return]


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        to_x, to_weight, _ = context.needs_input_grad
        context.save_for_backward(x if to_weight else None, weight if to_x else None)
        return onednn_product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = context.saved_tensors
        to_x, to_weight, to_bias = context.needs_input_grad
        rows = gradient.flatten(0, -2) if gradient.ndim > 1 else gradient[None]
        return (
            onednn_product(gradient, weight.t()) if to_x else None,
            onednn_product(rows.t(), x.reshape(-1, x.shape[-1]).t()) if to_weight else None,
            rows.sum(dim=0) if to_bias else None,
        )
