"""A decoder packed for search.   R rows · T tokens · O outputs · I inputs · D width · V vocabulary

Matrices are kept in oneDNN's own order, which makes products with few rows 1.1 to 2.2 times as fast, or rounded to 8
bits (docs/performance.md). Packed copies double the memory of the weights; 8-bit ones add a quarter.
"""

import math
import time
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captioner.model.decoder import TextDecoder
from captioner.model.linear import Linear, by_onednn, onednn_product

PACKED_FOR = 16
"""The number of rows that matrices are packed for; oneDNN's order is the same for any number above one."""
INT8_MAX, SMALLEST_SCALE = 127, 1e-30
"""Largest int8 magnitude; smallest absolute maximum, so that nothing is divided by zero."""
FEW_ROWS, SMALL_MATRIX = 8, 512 * 512
"""Up to this many rows and elements PyTorch's own product may be as fast, because oneDNN's takes longer to start."""
CLEARLY = 1.2
"""How many times as long PyTorch's own product must take for the packed one to replace it."""
TRIAL_SECONDS, TRIAL_ELEMENTS = 0.02, 2**22
"""Longest time to find out which product is faster, plus one round of trials; elements of its matrices, 16 MiB: more
than a core's own cache holds, as those of a decoder are."""


class PackedLinear(Linear):
    """A linear layer that shares its parameters, gives them no gradient, and holds the matrix in oneDNN's order too."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        outputs, inputs = weight.shape
        super().__init__(inputs, outputs, bias=False, device="meta")
        self.weight = nn.Parameter(weight.detach(), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)  # type: ignore[assignment]
        self._pack()

    def forward(self, x: Tensor) -> Tensor:
        """x (..., I) -> (..., O); where gradients or mixed precision are on, by the matrix itself."""
        plain = torch.is_grad_enabled() or torch.is_autocast_enabled("cpu")
        if plain or x.dtype != torch.float32 or x.numel() == 0:
            return super().forward(x)
        return self._product(x)

    def _pack(self) -> None:
        self._packed = torch.ops.mkldnn._reorder_linear_weight(self.weight, PACKED_FOR)

    def _product(self, x: Tensor) -> Tensor:
        rows = x.numel() // x.shape[-1]
        few = rows == 1 or (rows <= FEW_ROWS and self.weight.numel() <= SMALL_MATRIX)
        if few and plain_is_faster(single=rows == 1):
            return plain_product(x, self.weight, self.bias)
        return onednn_product(x, self._packed, self.bias)


class Int8Linear(PackedLinear):
    """A linear layer with its matrix rounded to 8 bits, a scale an output.

    Inputs are rounded likewise, with a scale a row, so that no row's result depends on the others.
    """

    def _pack(self) -> None:
        rounded, scales = _round_to_int8(self.weight)
        self._columns, self._scales = rounded.t(), scales.squeeze(-1)

    def _product(self, x: Tensor) -> Tensor:
        rounded, scales = _round_to_int8(x.flatten(0, -2))
        product: Tensor = torch._int_mm(rounded, self._columns).float().mul_(scales).mul_(self._scales)
        if self.bias is not None:
            product += self.bias
        return product.view(*x.shape[:-1], -1)


class PackedDecoder(TextDecoder):
    """What `pack` returns: a decoder in evaluation mode that shares everything with another but its packed matrices."""

    def __init__(self, decoder: TextDecoder, kind: type[PackedLinear]) -> None:
        projection = decoder.feature_projection
        encoder_width = projection.in_features if isinstance(projection, nn.Linear) else decoder.config.width
        with torch.device("meta"):
            super().__init__(decoder.config, vocabulary=decoder.vocabulary, encoder_width=encoder_width)
        self.load_state_dict(decoder.state_dict(), assign=True)
        for block in self.blocks:
            for module in block.modules():
                for name, child in module.named_children():
                    # An image's keys and values are products of many rows, once an image: nothing is gained there.
                    if isinstance(child, Linear) and name != "key_value" and by_onednn(child.weight, child.weight):
                        setattr(module, name, kind(child.weight, child.bias))
        words = self.token_embedding.weight
        self._head = kind(words, None) if by_onednn(words, words) else None
        self.requires_grad_(False).eval()

    def _initialize(self) -> None:
        """Nothing: the weights are those of the other decoder."""

    def logits(self, states: Tensor) -> Tensor:
        """states (..., D) -> scores of the next token (..., V)."""
        return super().logits(states) if self._head is None else self._head(states)


def pack(decoder: TextDecoder, *, int8: bool = False) -> TextDecoder:
    """The decoder packed for search, `int8` with matrices rounded to 8 bits; one that is packed already stays as it is.

    It does not follow later changes of the decoder's weights. On other processors than x86, and in other numbers than
    float32, the matrices stay as they are.
    """
    if isinstance(decoder, PackedDecoder):
        return decoder
    return PackedDecoder(decoder, Int8Linear if int8 else PackedLinear)


@cache
def plain_is_faster(*, single: bool) -> bool:
    """Whether oneDNN's packed product of a single row, or of a few rows and a small matrix, is not clearly faster than
    PyTorch's own on this processor.

    For a single row PyTorch's takes half the time on Intel's and twice the time or more on AMD's; for five rows and a
    small matrix it takes as long on Intel's, and 2.6 times as long on AMD's.
    """
    rows, outputs, inputs = (1, 2048, 512) if single else (5, 512, 512)
    x = torch.ones(rows, inputs)
    weights = [torch.ones(outputs, inputs) for _ in range(TRIAL_ELEMENTS // (outputs * inputs))]
    packed = [torch.ops.mkldnn._reorder_linear_weight(weight, PACKED_FOR) for weight in weights]
    least = [math.inf, math.inf]
    end = time.perf_counter() + TRIAL_SECONDS
    while time.perf_counter() < end:  # in turns, and the least of each: other programs may be running
        for place, (product, matrices) in enumerate(((plain_product, weights), (onednn_product, packed))):
            start = time.perf_counter()
            for matrix in matrices:
                product(x, matrix)
            least[place] = min(least[place], time.perf_counter() - start)
    return least[0] < CLEARLY * least[1]


def plain_product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + b by PyTorch's own product, for a single row that of a matrix and a vector."""
    if x.numel() > x.shape[-1]:
        return F.linear(x, weight, bias)
    vector = x.view(-1)
    product = weight.mv(vector) if bias is None else torch.addmv(bias, weight, vector)
    return product.view(*x.shape[:-1], -1)


def _round_to_int8(x: Tensor) -> tuple[Tensor, Tensor]:
    """x (..., I) as integers of -127 to 127, and the scale (..., 1) of each row that turns them back."""
    scales = x.abs().amax(dim=-1, keepdim=True).clamp_(min=SMALLEST_SCALE).div_(INT8_MAX)
    return (x / scales).round_().to(torch.int8), scales
