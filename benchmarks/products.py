"""The two products of which decoding consists, and encoders, each by several ways: `python -m benchmarks.products`.

x Wᵀ + b, R rows, for weights of a decoder of width 512 that together are larger than any cache: PyTorch's own (MKL on
x86), as (W xᵀ)ᵀ, with the weights' columns adjacent, by MKL with weights packed for just so many rows, by oneDNN, by
oneDNN with copies in its own order, and by integers of 8 bits. Cross-attention of C words an image to 197 patches:
fused and as two products, with keys and values in one piece or where their projection left them. Encoders with the
colors of a pixel side by side or apart. Microseconds of one.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from captioner.config import EncoderConfig
from captioner.model.attention import attention_weights
from captioner.model.encoder import VisionEncoder
from captioner.model.linear import AVAILABLE, onednn_product
from captioner.model.packed import PACKED_FOR, Int8Linear, plain_product

SHAPES = ((1536, 512), (2048, 512), (512, 2048), (10_000, 512))
"""(outputs, inputs)"""
ENCODERS = ("tf_efficientnet_lite2", "vit_small_patch16_224")
BATCHES = (1, 4, 16)
ROWS = (1, 5, 40, 160)
IMAGES = ((1, 1), (1, 5), (8, 5), (32, 5))
"""(images, words of each)"""
BYTES = 100_000_000
PATCHES, HEADS, HEAD_WIDTH, LAYERS = 197, 8, 64, 6
Ways = dict[str, tuple[Callable[..., object], Sequence[tuple[Any, ...]]]]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", type=Path, help="write the numbers here too")
    arguments = parser.parse_args(argv)
    with torch.no_grad():
        found = {
            "linear": linear_ways(arguments.rounds),
            "attention": attention_ways(arguments.rounds),
            "encoder": encoder_ways(arguments.rounds),
        }
    print(json.dumps(found, indent=2))
    if arguments.output:
        arguments.output.write_text(json.dumps(found, indent=2) + "\n")
    return 0


def linear_ways(rounds: int) -> dict[str, dict[str, float]]:
    found = {}
    for outputs, inputs in SHAPES:
        count = max(2, BYTES // (4 * outputs * inputs))
        weights = [torch.randn(outputs, inputs) for _ in range(count)]
        columns = [weight.t().contiguous().t() for weight in weights]
        bias = torch.randn(outputs)
        ordered = [torch.ops.mkldnn._reorder_linear_weight(weight, PACKED_FOR) for weight in weights if AVAILABLE]
        rounded = [Int8Linear(weight, bias) for weight in weights if AVAILABLE]
        for rows in ROWS:
            x = torch.randn(rows, inputs)
            plain, turned_weights = ([(x, weight, bias) for weight in each] for each in (weights, columns))
            ways: Ways = {
                "PyTorch": (F.linear, plain),
                "PyTorch, (W x^T)^T": (turned, plain),
                "PyTorch, columns adjacent": (F.linear, turned_weights),
            }
            if rows == 1:
                ways["PyTorch, matrix and vector"] = (plain_product, plain)
            if torch.backends.mkl.is_available():
                packed = [torch.ops.mkl._mkl_reorder_linear_weight(weight, rows) for weight in weights]
                ways["MKL, packed for so many rows"] = (
                    packed_product,
                    [(x, pack, weight, bias) for pack, weight in zip(packed, weights, strict=True)],
                )
            if AVAILABLE:
                ways["oneDNN"] = (onednn_product, plain)
                ways["oneDNN, its own order"] = (onednn_product, [(x, weight, bias) for weight in ordered])
                ways["8 bits"] = (multiply, [(x, layer) for layer in rounded])
            found[f"{rows} rows, {inputs} to {outputs}"] = measured(ways, rounds)
    return found


def multiply(x: Tensor, layer: Int8Linear) -> object:
    return layer(x)


def packed_product(x: Tensor, pack: Tensor, weight: Tensor, bias: Tensor) -> object:
    return torch.ops.mkl._mkl_linear(x, pack, weight, bias, len(x))


def turned(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.addmm(bias[:, None], weight, x.t()).t().contiguous()


def attention_ways(rounds: int) -> dict[str, dict[str, float]]:
    found = {}
    for images, words in IMAGES:
        queries = torch.randn(images, words, HEADS, HEAD_WIDTH).transpose(1, 2)
        left = [torch.randn(images, PATCHES, 2, HEADS, HEAD_WIDTH).permute(2, 0, 3, 1, 4) for _ in range(LAYERS)]
        projected = [(queries, *each) for each in left]
        pieces = [(queries, *each.contiguous()) for each in left]
        ways: Ways = {
            f"{name}, {where}": (way, layers)
            for name, way in (("fused", F.scaled_dot_product_attention), ("two products", explicit))
            for where, layers in (("in one piece", pieces), ("as projected", projected))
        }
        found[f"{images} images, {words} words each"] = measured(ways, rounds)
    return found


def explicit(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    return attention_weights(queries, keys) @ values


def encoder_ways(rounds: int) -> dict[str, dict[str, float]]:
    found = {}
    for name in ENCODERS:
        encoder = VisionEncoder(EncoderConfig(name=name)).eval()
        for images in BATCHES:
            apart = torch.randn(images, 3, *encoder.image_size)
            adjacent = apart.contiguous(memory_format=torch.channels_last)
            found[f"{name}, {images} images"] = measured(
                {
                    "colors apart": (encoder.backbone.forward_features, [(apart,)]),
                    "colors adjacent": (encoder.backbone.forward_features, [(adjacent,)]),
                },
                rounds,
            )
    return found


def measured(ways: Ways, rounds: int) -> dict[str, float]:
    """Median microseconds of a call with each of its arguments; the ways take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, (way, calls) in ways.items():
            start = time.perf_counter()
            for each in calls:
                way(*each)
            seconds[name].append((time.perf_counter() - start) / len(calls))
    return {name: round(1e6 * statistics.median(values[1:]), 1) for name, values in seconds.items()}


if __name__ == "__main__":
    sys.exit(main())
