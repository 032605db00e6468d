"""x Wᵀ + b by oneDNN. PyTorch gives products of float32 on a CPU to MKL, which leaves the AVX-512 of AMD's processors
unused: there oneDNN is more than twice as fast, whatever the number of rows (docs/performance.md).

O outputs · I inputs
"""

import platform
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

AVAILABLE = torch.backends.mkldnn.is_available() and platform.machine() in ("x86_64", "AMD64")


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., I), weight (O, I), bias (O,) -> (..., O), differentiable once."""
    plain = (
        not AVAILABLE
        or x.numel() == 0
        or not (x.device.type == weight.device.type == "cpu")
        or not (x.dtype == weight.dtype == torch.float32)
        or torch.is_autocast_enabled("cpu")
        or torch.compiler.is_compiling()  # exported graphs keep to standard operators
    )
    if plain:
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        result: Tensor = _Linear.apply(x, weight, bias)
        return result
    return _product(x, weight, bias)


class Linear(nn.Linear):
    """`nn.Linear` by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """x (..., I) -> (..., O)."""
        return linear(x, self.weight, self.bias)


class LinearMode(TorchFunctionMode):
    """Within it, other modules' linear layers take this way too."""

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        return (linear if function is F.linear else function)(*arguments, **(named or {}))


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        context.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = context.saved_tensors
        to_x, to_weight, to_bias = context.needs_input_grad
        rows = gradient.flatten(0, -2) if gradient.ndim > 1 else gradient[None]
        return (
            _product(gradient, weight.t()) if to_x else None,
            _product(rows.t(), x.reshape(-1, x.shape[-1]).t()) if to_weight else None,
            rows.sum(dim=0) if to_bias else None,
        )


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product
