"""The cross-attention of one caption.   W words · T tokens · L layers · H heads · N memory positions · h·w patches"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image
from torch import Tensor

from captioner.errors import ConfigError
from captioner.geometry import Geometry
from captioner.model.decoder import TextDecoder
from captioner.model.memory import Memory
from captioner.tokenizer import Tokenizer


@dataclass(frozen=True)
class AttentionTrace:
    """Where the words of one caption looked: the weights of the step that predicts each word, and what they lie on."""

    text: str
    words: tuple[str, ...]
    log_probs: tuple[float, ...]
    """Natural logarithm of each word's probability."""
    weights: NDArray[np.float32]
    """(W, L, H, N): prefix tokens, then patches row by row, then the null patch where there is one; sums to one."""
    grid: tuple[int, int]
    prefix: int
    geometry: Geometry
    photo: Image
    """The upright photo."""

    @classmethod
    def of(
        cls,
        decoder: TextDecoder,
        memory: Memory,
        tokens: list[int],
        tokenizer: Tokenizer,
        *,
        grid: tuple[int, int],
        prefix: int,
        geometry: Geometry,
        photo: Image,
    ) -> Self:
        """Read a caption again in one forced pass over the memory (of one image) that it was made from.

        A word of several tokens has their mean weights and the sum of their log-probabilities.
        """
        device = memory.layers[0].keys.device
        forced = torch.tensor([[tokenizer.bos, *tokens]], device=device)
        with torch.inference_mode():
            logits, weights = decoder(forced[:, :-1], memory, return_weights=True)
        assert weights is not None
        log_probs = _chosen(logits[0], forced[0, 1:])
        by_token = weights[0].permute(2, 0, 1, 3).float().cpu().numpy()  # (T, L, H, N); row t predicts token t
        words = tokenizer.words(tokens)
        shape = (0, *by_token.shape[1:])
        return cls(
            text=tokenizer.decode(tokens),
            words=tuple(word.text for word in words),
            log_probs=tuple(float(log_probs[word.start : word.stop].sum()) for word in words),
            weights=np.stack([by_token[word.start : word.stop].mean(axis=0) for word in words])
            if words
            else np.zeros(shape, np.float32),
            grid=grid,
            prefix=prefix,
            geometry=geometry,
            photo=photo,
        )

    def select(self, layer: int | None = None, head: int | None = None) -> Self:
        """The trace of one layer or head alone; all where none is named. Raises ConfigError for one there isn't."""
        weights = self.weights
        for axis, (name, index) in enumerate((("layer", layer), ("head", head)), start=1):
            if index is None:
                continue
            if not 0 <= index < weights.shape[axis]:
                last = weights.shape[axis] - 1
                raise ConfigError(f"{name} {index}: this model has {name}s 0 to {last}; name one of them, or mean")
            weights = weights.take([index], axis=axis)
        return replace(self, weights=weights)

    def patches(self, word: int, layer: int | None = None, head: int | None = None) -> NDArray[np.float32]:
        """The weights (h, w) of a word on the patches; the mean over layers or heads where none is named."""
        stop = self.prefix + self.grid[0] * self.grid[1]
        chosen = self.select(layer, head).weights[word, :, :, self.prefix : stop]
        flat: NDArray[np.float32] = chosen.mean(axis=(0, 1))
        return flat.reshape(self.grid)

    @property
    def has_null_patch(self) -> bool:
        """Whether a word could look at nothing."""
        return bool(self.weights.shape[3] > self.prefix + self.grid[0] * self.grid[1])

    @property
    def null_mass(self) -> NDArray[np.float32]:
        """(W,) the share of each word's attention that went to the null patch; 0 where the model has none."""
        stop = self.prefix + self.grid[0] * self.grid[1]
        mass: NDArray[np.float32] = self.weights[:, :, :, stop:].sum(axis=3).mean(axis=(1, 2))
        return mass

    @property
    def entropy(self) -> NDArray[np.float32]:
        """(W,) bits of each word's mean map over the patches: 0 is one patch, log2(h·w) is all alike."""
        stop = self.prefix + self.grid[0] * self.grid[1]
        maps = self.weights[:, :, :, self.prefix : stop].mean(axis=(1, 2))
        shares = maps / np.maximum(maps.sum(axis=1, keepdims=True), np.finfo(np.float32).tiny)
        bits: NDArray[np.float32] = -(shares * np.log2(np.maximum(shares, np.finfo(np.float32).tiny))).sum(axis=1)
        return bits

    def save_png(self, path: str | Path) -> None:
        """A sheet with one panel a word over the upright photo."""
        from captioner.inspection.sheet import draw_sheet

        draw_sheet(self).save(path, format="PNG")

    def _repr_png_(self) -> bytes:
        """For notebooks."""
        from captioner.inspection.sheet import png_bytes

        return png_bytes(self)


def _chosen(logits: Tensor, tokens: Tensor) -> NDArray[np.float32]:
    """logits (T, V), tokens (T,) -> the log-probability of each token (T,)."""
    chosen = logits.float().log_softmax(dim=-1).gather(1, tokens[:, None]).squeeze(1)
    array: NDArray[np.float32] = chosen.cpu().numpy()
    return array
