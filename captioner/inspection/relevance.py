"""What memory positions contributed to a word, beyond the attention weights.

W words · T tokens · L layers · H heads · N memory positions · h·w patches
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from captioner.inspection.forced_pass import Span
from captioner.model.attention import CrossAttention
from captioner.model.cache import CaptionCache, LayerCache
from captioner.model.decoder import DecoderBlock, TextDecoder
from captioner.model.memory import Memory

MAX_LOG_PROB = -1e-6
"""Log-probabilities are clamped to this before they become log-odds, which have no bound."""


class _DetachedCache(LayerCache):
    """Detaches the words' keys and values: no gradient flows through self-attention to other words."""

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        return keys.detach(), values.detach()


def relevance(decoder: TextDecoder, memory: Memory, tokens: Tensor, words: Sequence[Span], patches: slice) -> Tensor:
    """What the values at each position contribute to the log-odds of each word: (W, L, H, N), in nats, signed.

    tokens (1, 1 + T) with the start token; `patches` are the positions of the image. Gradient times attention: for
    layer l, head h and position j, at the step t that predicts the word,
    α_tj (v_lhj - the mean patch's v_lh) · ∂ log(p / (1 - p)) / ∂z_lht, to first order what the log-odds would lose with
    the mean patch in place of this one. Log-odds, since log p hardly changes for words that are nearly certain. As
    ∂/∂α_tj = v_j · ∂/∂z_t, it is the gradient-weighted attention of Chefer et al. 2021 (Transformer-MM-Explainability),
    with its sign. Self-attention to earlier words, which attended to the image themselves, is held constant. A word of
    several tokens has their sum.
    """
    cache = CaptionCache(layers=len(decoder.blocks), capacity=tokens.shape[1], layer=_DetachedCache)
    crosses: list[CrossAttention] = []
    added: list[Tensor] = []  # the output of each layer's cross-attention (1, T, D)
    weights: list[Tensor] = []  # (1, H, T, N) each
    with torch.inference_mode(False), torch.enable_grad():
        # Copies: tensors made in inference mode take no gradient.
        x = decoder.embed(tokens[:, :-1].clone()).requires_grad_()
        # The lines of DecoderBlock.forward, since gradients are taken with respect to values inside it.
        for block, layer, words_before in zip(decoder.blocks, memory.layers, cache.layers, strict=True):
            assert isinstance(block, DecoderBlock)
            x = x + block.self_attention(block.self_norm(x), words_before)
            copied = layer._replace(keys=layer.keys.clone(), values=layer.values.clone())
            attended, attention = block.cross_attention(block.cross_norm(x), copied, return_weights=True)
            assert attention is not None
            x = x + attended
            x = x + block.feed_forward(block.feed_norm(x))
            crosses.append(block.cross_attention)
            added.append(attended)
            weights.append(attention)
        logits = decoder.logits(decoder.final_norm(x))[0].float()
        log_probs = logits.log_softmax(dim=-1).gather(1, tokens[0, 1:, None]).clamp(max=MAX_LOG_PROB)
        log_odds = log_probs - (-log_probs.expm1()).log()
        gradients = torch.autograd.grad(log_odds.sum(), added)
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

    tokens (1, 1 + T); `patches` are the positions of the `grid` (h, w). A patch has the mean over the squares of `size`
    x `size` that cover it. One forward pass with a row for each of h·w squares: exact, unlike `relevance`, and slow.
    """
    (high, wide), reach = grid, size // 2
    squares = torch.zeros(high, wide, high, wide, dtype=torch.bool)
    for row in range(high):
        for column in range(wide):
            squares[row, column, max(0, row - reach) : row + reach + 1, max(0, column - reach) : column + reach + 1] = (
                True
            )
    flat = squares.view(high * wide, high * wide)
    keep = torch.ones(high * wide, memory.positions, dtype=torch.bool)
    keep[:, patches] = ~flat
    # A row that hides every position would attend to nothing.
    possible = keep.any(dim=1)
    whole = _log_probs(decoder, memory, tokens)
    hidden = memory.mask(keep[possible].to(tokens.device))
    lost = torch.zeros(high * wide, tokens.shape[1] - 1, device=tokens.device)
    lost[possible.to(tokens.device)] = whole - _log_probs(decoder, hidden, tokens.expand(int(possible.sum()), -1))
    covering = flat.T.to(lost) / flat.sum(dim=0, keepdim=True).T.to(lost)  # (patches, squares)
    by_patch = covering @ lost  # (h·w, T)
    found = torch.zeros(len(words), memory.positions, device=tokens.device)
    for word, (start, stop) in enumerate(words):
        found[word, patches] = by_patch[:, start:stop].sum(dim=1)
    return found


def _log_probs(decoder: TextDecoder, memory: Memory, tokens: Tensor) -> Tensor:
    """tokens (R, 1 + T) -> the log-probability of each after the first (R, T)."""
    logits: Tensor = decoder(tokens[:, :-1], memory).logits.float()
    return logits.log_softmax(dim=-1).gather(2, tokens[:, 1:, None]).squeeze(2)
