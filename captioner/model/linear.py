"""x Wᵀ + b by oneDNN. PyTorch gives products of float32 on a CPU to MKL, which leaves the AVX-512 of AMD's processors
unused: there oneDNN is 1.4 to 2.3 times as fast, the more the more rows there are. On Intel's both are as fast, but for
few rows (docs/performance.md).

O outputs · I inputs
"""

import platform
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

AVAILABLE = torch.backends.mkldnn.is_available() and platform.machine() in ("x86_64", "AMD64")

_ABOUT_THE_CPU: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # not in older PyTorch
BY_MKL = 8 if "Intel" in str(_ABOUT_THE_CPU.get("cpu_name")) else 0
"""Up to so many rows MKL is the quicker, on Intel's processors: oneDNN takes longer to begin."""

ROWS = 16
"""What weights are put in order for; the order differs only from that for one row."""

LARGEST, SMALLEST = 127, 1e-30
"""Of integers of 8 bits, and of numbers that are not taken for zero."""


class _Copy(NamedTuple):
    """What is kept of a weight, and what the weight was when it was made."""

    weight: Tensor
    version: tuple[int, int]
    made: Any


_plain = ContextVar("_plain", default=False)
_fixed = ContextVar("_fixed", default=False)
_using: ContextVar["OrderedWeights | None"] = ContextVar("_using", default=None)


@contextmanager
def plain_products() -> Iterator[None]:
    """Within it, products are PyTorch's own: their gradients come for many at once."""
    token = _plain.set(True)
    try:
        yield
    finally:
        _plain.reset(token)


@contextmanager
def fixed_weights() -> Iterator[None]:
    """Within it, products give weights no gradient: PyTorch would have it computed even where nobody asks for it."""
    token = _fixed.set(True)
    try:
        yield
    finally:
        _fixed.reset(token)


class OrderedWeights:
    """Copies of a module's matrices in oneDNN's own order, by which products are 1.1 to 2.2 times as fast, most where
    rows are few. They are kept for as long as the caller keeps them, and double what the weights take.

    Weights that autograd knows to have changed are copied again. It does not know of what is written into a weight's
    `.data`, as averages of weights are: keep no copies of a module that is being trained.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._copies: dict[int, _Copy] = {}

    @contextmanager
    def used(self) -> Iterator[None]:
        """Within it, products of the module without gradients take its copies; its weights do not change meanwhile."""
        for weight in self.module.parameters():
            if weight.ndim == 2 and not weight.is_inference() and _is_ours(weight, weight):
                found, version = self._copies.get(id(weight)), (weight._version, weight.data_ptr())
                if found is None or found.weight is not weight or found.version != version:
                    self._copies[id(weight)] = _Copy(weight, version, self.made_of(weight.detach()))
        token = _using.set(self)
        try:
            yield
        finally:
            _using.reset(token)

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """x Wᵀ + b by the copy of a weight; by the weight itself where there is none."""
        copy = self._copies.get(id(weight))
        if copy is None or copy.weight is not weight:
            return _product(x, weight, bias)
        return self.by_copy(x, copy, bias)

    def made_of(self, weight: Tensor) -> Any:
        """What is kept of a weight (O, I)."""
        return torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)

    def by_copy(self, x: Tensor, copy: _Copy, bias: Tensor | None) -> Tensor:
        """The product by what was kept."""
        return _product(x, copy.weight, bias) if _are_few(x) else _onednn(x, copy.made, bias)


class Int8Weights(OrderedWeights):
    """Copies of a module's matrices as integers of 8 bits, with a scale an output; a quarter of what the weights take.

    What is multiplied is rounded to 8 bits likewise, with a scale a row, so that no row's numbers depend on the others.
    """

    def made_of(self, weight: Tensor) -> Any:
        whole, scales = _rounded(weight)
        return whole.t(), scales.squeeze(-1)

    def by_copy(self, x: Tensor, copy: _Copy, bias: Tensor | None) -> Tensor:
        columns, scales = copy.made
        whole, of_rows = _rounded(x.flatten(0, -2))
        product: Tensor = torch._int_mm(whole, columns).float().mul_(of_rows).mul_(scales)
        if bias is not None:
            product += bias
        return product.view(*x.shape[:-1], -1)


@contextmanager
def ordered_weights(module: nn.Module) -> Iterator[None]:
    """Within it, products take copies of the module's matrices: those in use, or else new ones, dropped at the end."""
    using = _using.get()
    with nullcontext() if using is not None and using.module is module else OrderedWeights(module).used():
        yield


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """input (..., I), weight (O, I), bias (O,) -> (..., O), differentiable once."""
    if torch.compiler.is_compiling() or not _is_ours(input, weight):
        return F.linear(input, weight, bias)
    if _fixed.get():
        weight, bias = weight.detach(), bias if bias is None else bias.detach()
    trained = (input, weight) if bias is None else (input, weight, bias)
    if torch.is_grad_enabled() and any(each.requires_grad for each in trained):
        result: Tensor = _Linear.apply(input, weight, bias)
        return result
    using = _using.get()
    return _product(input, weight, bias) if using is None else using.product(input, weight, bias)


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
        to_x, to_weight, _ = context.needs_input_grad
        context.save_for_backward(x if to_weight else None, weight if to_x else None)
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


def _is_ours(x: Tensor, weight: Tensor) -> bool:
    """Whether it is a product of float32 on a CPU, not empty, and nobody asked for another way."""
    return (
        AVAILABLE
        and not _plain.get()
        and x.device.type == weight.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and x.numel() > 0
    )


def _are_few(x: Tensor) -> bool:
    """Whether the rows of x are better multiplied by MKL."""
    return x.numel() <= BY_MKL * x.shape[-1]


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.linear(x, weight, bias) if _are_few(x) else _onednn(x, weight, bias)


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product


def _rounded(x: Tensor) -> tuple[Tensor, Tensor]:
    """x (..., I) as integers of -127 to 127, and the scale (..., 1) of each row, by which they are to be multiplied."""
    scales = x.abs().amax(dim=-1, keepdim=True).clamp_(min=SMALLEST).div_(LARGEST)
    return (x / scales).round_().to(torch.int8), scales
