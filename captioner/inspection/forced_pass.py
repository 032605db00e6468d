"""A caption forced through the decoder.   W words · T tokens · L layers · H heads · N memory positions"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from captioner.model.decoder import TextDecoder
from captioner.model.memory import Memory
from captioner.tokenizer import Tokenizer

Span = tuple[int, int]
"""The tokens of a word: first, and one past the last."""


@dataclass(frozen=True)
class ForcedPass:
    """A caption and its attention over the memory of one image; row t of the pass predicts token t."""

    memory: Memory
    tokens: Tensor
    """(1, 1 + T) with the start token."""
    words: tuple[str, ...]
    spans: tuple[Span, ...]
    log_probs: NDArray[np.float32]
    """(W,) the sum over the tokens of each word."""
    visual_need: NDArray[np.float32] | None
    """(W,) log p with the image minus without; None where there was no blind memory."""
    weights: NDArray[np.float32]
    """(W, L, H, N) the mean over the tokens of each word; sums to one."""

    @classmethod
    def of(
        cls,
        decoder: TextDecoder,
        tokenizer: Tokenizer,
        memory: Memory,
        tokens: Sequence[int],
        blind: Memory | None = None,
    ) -> "ForcedPass":
        """Force tokens (without the start token) on the memory of one image; `blind` is the memory of no image."""
        forced = torch.tensor([[tokenizer.bos, *tokens]], device=memory.layers[0].keys.device)
        words = tokenizer.words(list(tokens))
        spans = tuple((word.start, word.stop) for word in words)
        with torch.inference_mode():
            logits, weights = decoder(forced[:, :-1], memory, return_weights=True)
            log_probs = _word_log_probs(logits, forced, spans)
            visual_need = None
            if blind is not None:
                without = decoder(forced[:, :-1], blind).logits
                visual_need = log_probs - _word_log_probs(without, forced, spans)
        assert weights is not None
        by_token = weights[0].permute(2, 0, 1, 3).float().cpu().numpy()  # (T, L, H, N)
        means = np.array([by_token[start:stop].mean(axis=0) for start, stop in spans], np.float32)
        return cls(
            memory=memory,
            tokens=forced,
            words=tuple(word.text for word in words),
            spans=spans,
            log_probs=log_probs,
            visual_need=visual_need,
            weights=means.reshape(len(spans), *by_token.shape[1:]),
        )


def _word_log_probs(logits: Tensor, tokens: Tensor, spans: Sequence[Span]) -> NDArray[np.float32]:
    """logits (1, T, V), tokens (1, 1 + T) -> the log-probability of each word (W,)."""
    chosen = logits[0].float().log_softmax(dim=-1).gather(1, tokens[0, 1:, None]).squeeze(1).cpu().numpy()
    return np.array([chosen[start:stop].sum() for start, stop in spans], np.float32)
