"""What memory positions contributed to a word, beyond the attention weights.

W words · T tokens · L layers · H heads · N memory positions · h·w patches
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from captioner.inspection.forced_pass import Span, token_log_probs
from captioner.model.attention import CrossAttention
from captioner.model.cache import CaptionCache, LayerCache
from captioner.model.decoder import DecoderBlock, TextDecoder
from captioner.model.memory import Memory

MAX_LOG_PROB = -1e-6
"""Log-probabilities are clamped to this before they become log-odds, which are unbounded."""


class _DetachedCache(LayerCache):
    """Detaches keys and values, so that no gradient flows through self-attention to other words."""

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        return keys.detach(), values.detach()


def relevance(decoder: TextDecoder, memory: Memory, tokens: Tensor, words: Sequence[Span], patches: slice) -> Tensor:
    """What the value at each position contributes to the log-odds of each word: (W, L, H, N), in nats, signed.

    tokens (1, 1 + T), the start token first; `patches` are the positions of the image. For layer l, head h, position j
    and the step t that predicts the word, it is α_tj (v_lhj - v̄_lh) · ∂ log(p / (1 - p)) / ∂z_lht, where v̄ is the mean
    patch's value: to first order, what the log-odds would lose with the mean patch in place of this one. Log-odds are
    used because log p hardly changes for words that are nearly certain. Since ∂/∂α_tj = v_j · ∂/∂z_t, this is the
    gradient-weighted attention of Chefer et al. 2021 with its sign. Self-attention to earlier words, which attended to
    the image themselves, is held constant. A word of several tokens has their sum.
    """
    cache = CaptionCache(layers=len(decoder.blocks), capacity=tokens.shape[1], layer=_DetachedCache)
    crosses: list[CrossAttention] = []
    outputs: list[Tensor] = []  # of each layer's cross-attention (1, T, D)
    weights: list[Tensor] = []  # of each layer (1, H, T, N)
    with torch.inference_mode(False), torch.enable_grad():
        # Tensors made in inference mode take no gradient, so they are copied.
        x = decoder.embed(tokens[:, :-1].clone()).requires_grad_()
        # DecoderBlock.forward, line by line: gradients are taken with respect to values inside it.
        for block, layer, words_before in zip(decoder.blocks, memory.layers, cache.layers, strict=True):
            assert isinstance(block, DecoderBlock)
            x = x + block.self_attention(block.self_norm(x), words_before)
            copied = layer._replace(keys=layer.keys.clone(), values=layer.values.clone())
            attended, attention = block.cross_attention(block.cross_norm(x), copied, return_weights=True)
            assert attention is not None
            x = x + attended
            x = x + block.feed_forward(block.feed_norm(x))
            crosses.append(block.cross_attention)
            outputs.append(attended)
            weights.append(attention)
        log_probs = token_log_probs(decoder.logits(decoder.final_norm(x)), tokens).clamp(max=MAX_LOG_PROB)
        log_odds = log_probs - (-log_probs.expm1()).log()
        gradients = torch.autograd.grad(log_odds.sum(), outputs)
    visible = torch.zeros(memory.positions, device=tokens.device)
    visible[patches] = 1.0
    if memory.layers[0].keep is not None:
        visible = visible * memory.layers[0].keep[0]
    share = (visible / visible.sum().clamp(min=1.0))[:, None]
    found = []
    for cross, layer, attention, gradient in zip(crosses, memory.layers, weights, gradients, strict=True):
        values = layer.values[0]  # (H, N, d)
        centered = values - (values * share).sum(dim=1, keepdim=True)
        by_head = (gradient[0] @ cross.output.weight.detach()).unflatten(1, (len(values), -1))  # (T, H, d)
        found.append(attention[0] * (by_head.transpose(0, 1) @ centered.transpose(1, 2)))
    by_step = torch.stack(found).permute(2, 0, 1, 3).detach()  # (T, L, H, N)
    return torch.stack([by_step[start:stop].sum(dim=0) for start, stop in words]) if words else by_step[:0]


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
    """What the log-probability of each word loses where squares of patches are hidden: (W, N), in nats, signed.

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
