"""One forced pass over a caption.   W words · T tokens · L layers · H heads · N memory positions"""

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
class Reading:
    """A caption read over the memory of one image; row t of the pass predicts token t."""

    memory: Memory
    tokens: Tensor
    """(1, 1 + T) with the start token."""
    words: tuple[str, ...]
    spans: tuple[Span, ...]
    log_probs: NDArray[np.float32]
    """(W,) of each word the sum over its tokens."""
    needs: NDArray[np.float32] | None
    """(W,) log p with the image minus without, its visual need; None where there was no blind memory."""
    shares: NDArray[np.float32] | None
    """(W,) the share of the next token's distribution that is there without the image, Σ min(p, q); its mean."""
    weights: NDArray[np.float32]
    """(W, L, H, N) of each word the mean over its tokens; sums to one."""

    @classmethod
    def of(
        cls,
        decoder: TextDecoder,
        tokenizer: Tokenizer,
        memory: Memory,
        tokens: Sequence[int],
        blind: Memory | None = None,
    ) -> "Reading":
        """Read tokens (without the start token) over the memory of one image; `blind` is that of no image."""
        forced = torch.tensor([[tokenizer.bos, *tokens]], device=memory.layers[0].keys.device)
        words = tokenizer.words(list(tokens))
        spans = tuple((word.start, word.stop) for word in words)

        def by_word(log_probs: NDArray[np.float32]) -> NDArray[np.float32]:
            return np.array([log_probs[start:stop].sum() for start, stop in spans], np.float32)

        with torch.inference_mode():
            logits, weights = decoder(forced[:, :-1], memory, return_weights=True)
            log_probs = by_word(_chosen(logits, forced))
            needs = shares = None
            if blind is not None:
                without = decoder(forced[:, :-1], blind).logits
                needs = log_probs - by_word(_chosen(without, forced))
                common = torch.minimum(logits[0].softmax(dim=-1), without[0].softmax(dim=-1)).sum(dim=-1).float().cpu()
                shares = np.array([float(common[start:stop].mean()) for start, stop in spans], np.float32)
        assert weights is not None
        by_token = weights[0].permute(2, 0, 1, 3).float().cpu().numpy()  # (T, L, H, N)
        means = np.array([by_token[start:stop].mean(axis=0) for start, stop in spans], np.float32)
        return cls(
            memory=memory,
            tokens=forced,
            words=tuple(word.text for word in words),
            spans=spans,
            log_probs=log_probs,
            needs=needs,
            shares=shares,
            weights=means.reshape(len(spans), *by_token.shape[1:]),
        )

    @property
    def null_mass(self) -> NDArray[np.float32]:
        """(W,) the share of each word's attention on null patches, the mean over layers and heads."""
        null = [source.name == "null" for source in self.memory.sources for _ in range(source.length)]
        mass: NDArray[np.float32] = self.weights[..., null].sum(axis=-1).mean(axis=(1, 2))
        return mass


def _chosen(logits: Tensor, tokens: Tensor) -> NDArray[np.float32]:
    """logits (1, T, V), tokens (1, 1 + T) -> the log-probability of each token after the first (T,)."""
    chosen = logits[0].float().log_softmax(dim=-1).gather(1, tokens[0, 1:, None]).squeeze(1)
    array: NDArray[np.float32] = chosen.cpu().numpy()
    return array
