"""Which memory positions a word came from, by more than the attention's weights.

W words · T tokens · L layers · H heads · N memory positions · h·w patches
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from captioner.inspection.reading import Span
from captioner.model.decoder import TextDecoder
from captioner.model.linear import plain_products
from captioner.model.memory import Memory

SURE = 1e-6
"""Least distance of a log-probability from 0, where odds have no bound."""


def relevance(decoder: TextDecoder, memory: Memory, tokens: Tensor, words: Sequence[Span], patches: slice) -> Tensor:
    """How much each position's values brought to each word's log-odds: (W, L, H, N), in nats, signed.

    tokens (1, 1 + T) with the start token; `patches` are the positions of the image. Gradient times value: for layer l,
    head h and position j it is (v_lhj - the mean patch's v_lh) · ∂ log(p / (1 - p)) / ∂v_lhj, to first order what the
    log-odds would lose if the patch offered no more than the mean patch; log p itself hardly moves for words that are
    nearly certain. As ∂/∂v_j = Σ_t α_tj ∂/∂z_t, it is the gradient-weighted attention of Chefer et al. 2021
    (Transformer-MM-Explainability), summed with its sign over all steps up to the word: their gradients hold the way
    through self-attention, which needs no rollout.
    """
    with torch.inference_mode(False), torch.enable_grad():
        # Copies: what was made in inference mode can have no gradient.
        layers = tuple(
            each._replace(keys=each.keys.clone(), values=each.values.clone().requires_grad_()) for each in memory.layers
        )
        with plain_products():
            log_probs = _log_probs(decoder, replace(memory, layers=layers), tokens.clone())[0].clamp(max=-SURE)
        log_odds = log_probs - (-log_probs.expm1()).log()
        values = [each.values for each in layers]
        seen = torch.zeros(memory.positions, device=tokens.device)
        seen[patches] = 1.0
        if memory.layers[0].keep is not None:
            seen = seen * memory.layers[0].keep[0]
        share = (seen / seen.sum().clamp(min=1.0))[:, None]
        if not words:
            return values[0].new_zeros(0, len(values), *values[0].shape[1:3])
        chosen = torch.zeros(len(words), len(log_odds)).to(log_odds)
        for word, (start, stop) in enumerate(words):
            chosen[word, start:stop] = 1.0
        # One backward pass for all words: (W, 1, H, N, d) a layer.
        gradients = torch.autograd.grad(log_odds, values, chosen, is_grads_batched=True)
        return torch.stack(
            [
                ((value - (value * share).sum(dim=2, keepdim=True)) * gradient).sum(dim=4)[:, 0]
                for value, gradient in zip(values, gradients, strict=True)
            ],
            dim=1,
        ).detach()


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
    """What each word's log-probability loses where a square of patches is hidden: (W, N), in nats, signed.

    tokens (1, 1 + T); `grid` (h, w) of the positions `patches`. A patch has the mean of the squares of `size` x `size`
    that cover it. One forward pass with h·w rows, a row a square; exact, where `relevance` is to first order, and slow.
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
    # A row that hides all there is would attend to nothing.
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
