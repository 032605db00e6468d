"""Which memory positions a word came from, by more than the attention's weights.

W words · T tokens · L layers · H heads · N memory positions · h·w patches
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from captioner.inspection.reading import Span
from captioner.model.attention import KeyValues
from captioner.model.decoder import TextDecoder
from captioner.model.linear import fixed_weights
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
    keep = memory.layers[0].keep
    seen = torch.zeros(memory.positions, device=tokens.device)
    seen[patches] = 1.0
    if keep is not None:
        seen = seen * keep[0]
    share = (seen / seen.sum().clamp(min=1.0))[:, None]
    with torch.inference_mode(False), torch.enable_grad(), fixed_weights():
        # A row a word, with values of its own: one backward pass tells them apart. Copies, because what was made in
        # inference mode can have no gradient.
        own = [each.values.clone().repeat(len(words), 1, 1, 1).requires_grad_() for each in memory.layers]
        layers = tuple(
            KeyValues(
                each.keys.clone().expand_as(values), values, keep if keep is None else keep.expand(len(words), -1)
            )
            for each, values in zip(memory.layers, own, strict=True)
        )
        steps = [(row, step) for row, (start, stop) in enumerate(words) for step in range(start, stop)]
        if not steps:
            return own[0].new_zeros(len(words), len(own), *own[0].shape[1:3])
        row, step = torch.tensor(steps, device=tokens.device).unbind(dim=1)
        states, _ = decoder.states(tokens[:, :-1].clone().expand(len(words), -1), replace(memory, layers=layers))
        log_probs = decoder.logits(states[row, step]).float().log_softmax(dim=-1)
        chosen = log_probs.gather(1, tokens[0, 1 + step, None]).clamp(max=-SURE)
        log_odds = chosen - (-chosen.expm1()).log()
        gradients = torch.autograd.grad(log_odds.sum(), own)
    brought = [
        ((each.values - (each.values * share).sum(dim=2, keepdim=True)) * gradient).sum(dim=3)
        for each, gradient in zip(memory.layers, gradients, strict=True)
    ]
    return torch.stack(brought, dim=1).detach()


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
