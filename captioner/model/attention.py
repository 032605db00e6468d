"""Attention: the formula, the keys and values, and the two modules that use them.

B images · C rows of an image · R = B·C rows, rows of one image adjacent · T tokens · S tokens so far
N memory positions · D width · H heads · d = D/H
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captioner.model.cache import LayerCache
from captioner.model.dropout import Dropout
from captioner.model.linear import Linear


def attention_weights(queries: Tensor, keys: Tensor, allowed: Tensor | None = None) -> Tensor:
    """softmax(Q Kᵀ / √d) over the keys (Vaswani et al. 2017, section 3.2.1).

    queries (..., T, d), keys (..., N, d), allowed (..., T, N) bool or None -> (..., T, N); each row sums to one.
    """
    scores = queries @ keys.transpose(-2, -1) / math.sqrt(queries.shape[-1])
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -math.inf)
    return scores.softmax(dim=-1)


def fused_attention(
    queries: Tensor, keys: Tensor, values: Tensor, allowed: Tensor | None = None, *, is_causal: bool = False
) -> Tensor:
    """`attention_weights(queries, keys, allowed) @ values` (..., T, d), in one kernel where that is faster."""
    if queries.requires_grad and queries.dtype in (torch.bfloat16, torch.float16) and queries.device.type == "cpu":
        # PyTorch's kernel is slow in its backward pass there (docs/performance.md).
        if is_causal:
            allowed = torch.ones(queries.shape[-2], keys.shape[-2], dtype=torch.bool).tril()
        return attention_weights(queries, keys, allowed) @ values
    if queries.device.type == "mps":  # PyTorch's kernel there has misread permuted tensors (its issue 181133)
        queries, keys, values = queries.contiguous(), keys.contiguous(), values.contiguous()
    return F.scaled_dot_product_attention(queries, keys, values, attn_mask=allowed, is_causal=is_causal)


class KeyValues(NamedTuple):
    """Keys and values (B, H, N, d) that a layer attends to; `keep` (B or R, N) bool is false where they are hidden."""

    keys: Tensor
    values: Tensor
    keep: Tensor | None = None


class SelfAttention(nn.Module):
    """Masked self-attention: a token attends to itself and to the tokens before it."""

    def __init__(self, *, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.query_key_value = Linear(width, 3 * width)
        self.output = Linear(width, width)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, cache: LayerCache | None = None) -> Tensor:
        """x (R, T, D) -> (R, T, D); with a cache, x are the tokens that follow the cached ones."""
        rows, tokens, width = x.shape
        projected = self.query_key_value(x).view(rows, tokens, 3, self.heads, width // self.heads)
        queries, keys, values = projected.permute(2, 0, 3, 1, 4)  # each (R, H, T, d)
        if cache is not None:
            keys, values = cache.append(keys, values)  # (R, H, S, d)
        total = keys.shape[2]
        mask = None if cache is None else cache.mask
        if 1 < tokens < total:  # PyTorch aligns is_causal to the upper left, which is correct only with an empty cache
            mask = torch.ones(tokens, total, dtype=torch.bool, device=x.device).tril(total - tokens)
        attended = fused_attention(queries, keys, values, mask, is_causal=1 < tokens == total)
        merged: Tensor = self.output(attended.transpose(1, 2).reshape(rows, tokens, width))
        return self.dropout(merged)  # type: ignore[no-any-return]


class CrossAttention(nn.Module):
    """Cross-attention: queries from the words, keys and values from the image."""

    def __init__(self, *, width: int, heads: int, dropout: float, null_patch: bool) -> None:
        super().__init__()
        self.heads = heads
        self.query = Linear(width, width)
        self.key_value = Linear(width, 2 * width)
        self.output = Linear(width, width)
        self.dropout = Dropout(dropout)
        # A learned position that takes the attention of words that do not need the image.
        self.null = nn.Parameter(torch.zeros(2, heads, 1, width // heads)) if null_patch else None

    def project(self, features: Tensor) -> KeyValues:
        """features (B, N, D) -> keys and values (B, H, N, d), with the null patch last if there is one."""
        images, positions, width = features.shape
        projected = self.key_value(features).view(images, positions, 2, self.heads, width // self.heads)
        projected = projected.permute(2, 0, 3, 1, 4)  # (2, B, H, N, d)
        if self.null is not None:
            null = self.null.to(projected.dtype)  # under autocast, concatenation would make all of them float32
            projected = torch.cat([projected, null[:, None].expand(-1, images, -1, -1, -1)], dim=3)
        return KeyValues(projected[0], projected[1])

    def forward(self, x: Tensor, memory: KeyValues, return_weights: bool = False) -> tuple[Tensor, Tensor | None]:
        """x (R, T, D) -> attended (R, T, D), and with `return_weights` the weights (R, H, T, N).

        Patches have no order, so the C rows of an image are C times as many queries of its one memory: (R, T) is viewed
        as (B, C·T), and the image's keys and values are not copied.
        """
        rows, tokens, width = x.shape
        images = memory.keys.shape[0]
        queries = self.query(x).view(images, -1, self.heads, width // self.heads).transpose(1, 2)  # (B, H, C·T, d)
        allowed = None
        if memory.keep is not None:
            per_row = memory.keep.view(images, -1, 1, memory.keep.shape[-1]).expand(-1, rows // images, tokens, -1)
            allowed = per_row.flatten(1, 2).unsqueeze(1)  # (B, 1, C·T, N)
        if return_weights:
            weights = attention_weights(queries, memory.keys, allowed)
            attended = weights @ memory.values
            weights = weights.unflatten(2, (-1, tokens)).transpose(1, 2).flatten(0, 1)  # (R, H, T, N)
        else:
            weights = None
            attended = fused_attention(queries, memory.keys, memory.values, allowed)
        merged = self.output(attended.transpose(1, 2).reshape(rows, tokens, width))
        return self.dropout(merged), weights
