"""A caption forced through the decoder.   R rows · W words · T tokens · L layers · H heads · N memory positions"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from captioner.model.decoder import TextDecoder
from captioner.model.memory import Memory
from captioner.model.stage import Stage
from captioner.tokenizer import Tokenizer

Span = tuple[int, int]
"""The tokens of a word: the first, and one past the last."""
NextBest = tuple[tuple[tuple[str, float], ...], ...]
"""For each word, the most probable tokens other than its first, as (text, probability), best first; '' ends the
caption."""
NEXT_BEST = 5
"""Number of other tokens."""


@dataclass(frozen=True)
class ForcedPass:
    """A caption's log-probabilities and attention over the memory of one image, by one teacher-forced pass."""

    decoder: TextDecoder
    memory: Memory
    tokens: Tensor
    """(1, 1 + T), the start token first."""
    words: tuple[str, ...]
    spans: tuple[Span, ...]
    log_probs: NDArray[np.float32]
    """(W,) log p of each word: the sum over its tokens."""
    visual_need: NDArray[np.float32] | None
    """(W,) log p with the image minus log p without; None if no blind memory was given."""
    weights: NDArray[np.float32]
    """(W, L, H, N) at the steps that predict each word: the mean over its tokens; sums to one over N."""
    next_best: NextBest = ()
    stage: Stage | None = None
    """An earlier stage of the encoder, from which the memory was computed; None if it is not known."""

    @classmethod
    def of(
        cls,
        decoder: TextDecoder,
        tokenizer: Tokenizer,
        memory: Memory,
        tokens: Sequence[int],
        blind: Memory | None = None,
        stage: Stage | None = None,
    ) -> "ForcedPass":
        """Force tokens, without the start token, on the memory of one image; `blind` is the memory of no image."""
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
            decoder=decoder,
            memory=memory,
            tokens=forced,
            words=tuple(word.text for word in words),
            spans=spans,
            log_probs=log_probs,
            visual_need=visual_need,
            weights=means.reshape(len(spans), *by_token.shape[1:]),
            next_best=_next_best(logits, forced, spans, tokenizer),
            stage=stage,
        )


def token_log_probs(logits: Tensor, tokens: Tensor) -> Tensor:
    """logits (R, T, V), tokens (R, 1 + T) -> (R, T), the log-probability of each token after the first."""
    return logits.float().log_softmax(dim=-1).gather(2, tokens[:, 1:, None]).squeeze(2)


def _word_log_probs(logits: Tensor, tokens: Tensor, spans: Sequence[Span]) -> NDArray[np.float32]:
    """logits (1, T, V), tokens (1, 1 + T) -> (W,), the log-probability of each word."""
    log_probs = token_log_probs(logits, tokens)[0].cpu().numpy()
    return np.array([log_probs[start:stop].sum() for start, stop in spans], np.float32)


def _next_best(logits: Tensor, tokens: Tensor, spans: Sequence[Span], tokenizer: Tokenizer) -> NextBest:
    """logits (1, T, V), tokens (1, 1 + T) -> for each word, what its first token could have been instead."""
    found = []
    for start, _ in spans:
        shares = logits[0, start].float().softmax(dim=0)
        shares[[int(tokens[0, start + 1]), *tokenizer.suppressed]] = 0
        best = shares.topk(min(NEXT_BEST, len(shares)))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        found.append(tuple((tokenizer.decode([token]).strip(), share) for token, share in pairs if share))
    return tuple(found)
