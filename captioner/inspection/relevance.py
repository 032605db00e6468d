"""Relevance: the contributions of memory positions to the log-odds of words.

W words · T tokens · L layers · H heads · N memory positions · d head width · h·w patches, or cells of a stage
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from captioner.inspection.forced_pass import ForcedPass, Span, token_log_probs
from captioner.model.attention import CrossAttention
from captioner.model.cache import CaptionCache, LayerCache
from captioner.model.decoder import DecoderBlock, TextDecoder
from captioner.model.memory import Memory

MAX_LOG_PROB = -1e-6
"""Log-probabilities are clamped to this before they become log-odds, which are unbounded."""
OWN_PASSES = 4
"""Words of a caption with a backward pass through the encoder of their own, each as costly as a quarter of encoding."""
TINY = 1e-12
"""Maps with a smaller sum count as empty."""


class MemoryGradients(NamedTuple):
    """The derivative of each word's log-odds, at the step that predicts it, by the keys and values of a layer."""

    keys: Tensor
    """(W, H, N, d)"""
    values: Tensor
    """(W, H, N, d)"""


class _DetachedCache(LayerCache):
    """Detaches keys and values, so that no gradient flows through self-attention to other words."""

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        return keys.detach(), values.detach()


def relevance(decoder: TextDecoder, memory: Memory, tokens: Tensor, words: Sequence[Span], patches: slice) -> Tensor:
    """Contribution of the value at each position to the log-odds of each word: (W, L, H, N), in nats, signed.

    tokens (1, 1 + T), the start token first; `patches` are the positions of the image. For layer l, head h, position j
    and the step t that predicts the word, it is α_tj (v_lhj - v̄_lh) · ∂ log(p / (1 - p)) / ∂z_lht, where v̄ is the mean
    patch's value: to first order, what the log-odds would lose with the mean patch in place of this one. Log-odds are
    used because log p hardly changes for words that are nearly certain. Since ∂/∂α_tj = v_j · ∂/∂z_t, this is the
    gradient-weighted attention of Chefer et al. 2021 with its sign. Self-attention to earlier words, which attended to
    the image themselves, is held constant. A word of several tokens has their sum.
    """
    return weigh_values(memory, memory_gradients(decoder, memory, tokens, words), patches)


def weigh_values(memory: Memory, gradients: Sequence[MemoryGradients], patches: slice) -> Tensor:
    """The `relevance` (W, L, H, N) for the `memory_gradients` of each layer."""
    visible = torch.zeros(memory.positions, device=gradients[0].values.device)
    visible[patches] = 1.0
    if memory.layers[0].keep is not None:
        visible = visible * memory.layers[0].keep[0]
    share = (visible / visible.sum().clamp(min=1.0))[:, None]
    found = []
    for layer, gradient in zip(memory.layers, gradients, strict=True):
        values = layer.values[0].detach()  # (H, N, d)
        found.append((gradient.values * (values - (values * share).sum(dim=1, keepdim=True))).sum(dim=-1))
    return torch.stack(found, dim=1)


def memory_gradients(
    decoder: TextDecoder, memory: Memory, tokens: Tensor, words: Sequence[Span]
) -> list[MemoryGradients]:
    """The derivative of each word's log-odds with respect to the keys and values of each layer.

    Arguments as for `relevance`. With ∂ = ∂ log(p / (1 - p)) / ∂z_lht and z = Σ α v, the derivative is α_tj ∂ for a
    value and α_tj (v_j - z)·∂ q_t / √d for a key.
    """
    cache = CaptionCache(layers=len(decoder.blocks), capacity=tokens.shape[1], layer=_DetachedCache)
    crosses: list[CrossAttention] = []
    outputs: list[Tensor] = []  # of each layer's cross-attention (1, T, D)
    weights: list[Tensor] = []  # of each layer (1, H, T, N)
    queries: list[Tensor] = []  # of each layer (T, H, d)
    with torch.inference_mode(False), torch.enable_grad():
        # Tensors made in inference mode take no gradient, so they are copied.
        x = decoder.embed(tokens[:, :-1].clone()).requires_grad_()
        # DecoderBlock.forward, line by line: gradients are taken with respect to values inside it.
        for block, layer, words_before in zip(decoder.blocks, memory.layers, cache.layers, strict=True):
            assert isinstance(block, DecoderBlock)
            x = x + block.self_attention(block.self_norm(x), words_before)
            copied = layer._replace(keys=layer.keys.detach().clone(), values=layer.values.detach().clone())
            normed = block.cross_norm(x)
            attended, attention = block.cross_attention(normed, copied, return_weights=True)
            assert attention is not None
            x = x + attended
            x = x + block.feed_forward(block.feed_norm(x))
            crosses.append(block.cross_attention)
            outputs.append(attended)
            weights.append(attention.detach())
            queries.append(
                block.cross_attention.query(normed.detach()).detach()[0].unflatten(1, (attention.shape[1], -1))
            )
        log_probs = token_log_probs(decoder.logits(decoder.final_norm(x)), tokens).clamp(max=MAX_LOG_PROB)
        log_odds = log_probs - (-log_probs.expm1()).log()
        gradients = torch.autograd.grad(log_odds.sum(), outputs)
    steps = torch.zeros(len(words), tokens.shape[1] - 1, dtype=outputs[0].dtype, device=tokens.device)
    for word, (start, stop) in enumerate(words):
        steps[word, start:stop] = 1.0
    found = []
    for cross, layer, attention, query, gradient in zip(
        crosses, memory.layers, weights, queries, gradients, strict=True
    ):
        by_head = (gradient[0] @ cross.output.weight.detach()).unflatten(1, query.shape[1:])  # (T, H, d)
        by_value = attention[0] * torch.einsum("thd,hnd->htn", by_head, layer.values[0].detach())
        by_score = by_value - attention[0] * by_value.sum(dim=-1, keepdim=True)  # through the softmax (H, T, N)
        keys = torch.einsum("wt,htn,thd->whnd", steps, by_score, query) / math.sqrt(query.shape[-1])
        found.append(MemoryGradients(keys, torch.einsum("wt,htn,thd->whnd", steps, attention[0], by_head)))
    return found


def stage_contributions(
    forced: ForcedPass, gradients: Sequence[MemoryGradients], own_passes: int = OWN_PASSES
) -> Tensor:
    """Gradient times activation of the encoder's earlier stage, the sum of its positive channels: (W, h, w), in nats.

    The gradient is that of each word's log-odds: the `memory_gradients` of each layer are backpropagated through the
    encoder (Selvaraju et al. 2017; cell by cell, as in Jiang et al. 2021). Only the `own_passes` words that need the
    image most (the least probable, if need was not measured) have a backward pass of their own; the others have the
    sum of these.
    """
    assert forced.stage is not None
    outputs = [part for layer in forced.memory.layers for part in (layer.keys, layer.values)]
    need = -forced.log_probs if forced.visual_need is None else forced.visual_need
    shape = len(forced.words), *forced.stage.values.shape[2:]
    own = np.argsort(-need, kind="stable")[:own_passes].tolist()
    by_word = {
        word: forced.stage.contributions(outputs, [part[word, None] for each in gradients for part in each])[0]
        for word in own
    }
    shared = sum(by_word.values(), start=torch.zeros(shape[1:], device=outputs[0].device))
    return torch.stack([by_word.get(word, shared) for word in range(shape[0])]) if own else shared.expand(shape)


def refine(maps: NDArray[np.float32], contributions: NDArray[np.float32]) -> NDArray[np.float32]:
    """Maps (W, h, w), spread over the cells (W, h', w') of a finer grid by the third power of their contributions >= 0.

    Each map is resized bilinearly, multiplied cell by cell, and scaled to its former sum. A map that lies where nothing
    contributes is only resized.
    """
    resized = resize(maps, contributions.shape[1:])
    strongest = contributions.max(axis=(1, 2), keepdims=True, initial=TINY)
    products = resized * (contributions / strongest) ** 3
    products = np.where(_sums(products) > TINY, products, resized)
    return np.asarray(products * (_sums(maps) / np.maximum(_sums(products), TINY)), np.float32)


def resize(maps: NDArray[np.float32], grid: tuple[int, ...]) -> NDArray[np.float32]:
    """Maps (W, h, w) on another grid, bilinearly."""
    resized = F.interpolate(torch.from_numpy(maps)[:, None], size=grid, mode="bilinear", align_corners=False)
    return np.asarray(resized[:, 0].numpy(), np.float32)


def _sums(maps: NDArray[np.float32]) -> NDArray[np.float32]:
    """(W, 1, 1)"""
    return np.asarray(maps.sum(axis=(1, 2), keepdims=True), np.float32)


@torch.inference_mode()
def perturbation(
    decoder: TextDecoder,
    memory: Memory,
    tokens: Tensor,
    words: Sequence[Span],
    grid: tuple[int, int],
    patches: slice,
    size: int = 3,
) -> Tensor:
    """Drop in the log-probability of each word when squares of patches are hidden: (W, N), in nats, signed.

    tokens (1, 1 + T), the start token first; `patches` are the positions of the `grid` (h, w). A patch has the mean
    over the squares of `size` x `size` that cover it. One forward pass with a row for each of the h·w squares: exact,
    unlike `relevance`, but slow.
    """
    count = grid[0] * grid[1]
    near_rows, near_columns = ((torch.arange(n)[:, None] - torch.arange(n)).abs() <= size // 2 for n in grid)
    # (h·w, h·w): whether the square around a patch covers another one, which is symmetric.
    squares = (near_rows[:, None, :, None] & near_columns[None, :, None, :]).reshape(count, count)
    keep = torch.ones(count, memory.positions, dtype=torch.bool)
    keep[:, patches] = ~squares
    possible = keep.any(dim=1)  # a row that hides every position would attend to nothing
    keep, possible, squares = (each.to(tokens.device) for each in (keep, possible, squares))
    rows = tokens.expand(int(possible.sum()), -1)
    whole = token_log_probs(decoder(tokens[:, :-1], memory).logits, tokens)
    hidden = token_log_probs(decoder(rows[:, :-1], memory.mask(keep[possible])).logits, rows)
    lost = torch.zeros(count, tokens.shape[1] - 1, device=tokens.device)
    lost[possible] = whole - hidden
    by_patch = squares.to(lost) @ lost / squares.sum(dim=1, keepdim=True)  # (h·w, T)
    found = torch.zeros(len(words), memory.positions, device=tokens.device)
    for word, (start, stop) in enumerate(words):
        found[word, patches] = by_patch[:, start:stop].sum(dim=1)
    return found
