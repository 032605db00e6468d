"""The cross-attention of one caption.   W words · T tokens · L layers · H heads · N memory positions · h·w patches"""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import BinaryIO, Literal, Self, TypeAlias, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image

from captioner.errors import ConfigError
from captioner.geometry import Geometry
from captioner.inspection.forced_pass import ForcedPass, NextBest
from captioner.inspection.relevance import (
    memory_gradients,
    perturbation,
    refine,
    stage_contributions,
    weigh_values,
)
from captioner.inspection.word_table import NEED_THRESHOLD
from captioner.model.decoder import TextDecoder
from captioner.model.memory import Memory
from captioner.model.stage import Stage
from captioner.tokenizer import Tokenizer

Method: TypeAlias = Literal["raw", "relevance", "perturbation", "refined"]
METHODS: tuple[Method, ...] = get_args(Method)
"""raw: attention weights; relevance: gradient times attention; perturbation: what hiding patches costs (slow);
refined: relevance on the finer grid of an earlier encoder stage, where that stage contributed too."""
BY_GRADIENTS: tuple[Method, ...] = ("relevance", "refined")
"""Methods whose evidence is relevance."""

TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class View:
    """The layout of a memory: `prefix` tokens, the patches of `grid` (h, w) row by row, null patches.

    `geometry` places the patches on the photo.
    """

    grid: tuple[int, int]
    prefix: int
    geometry: Geometry
    order: tuple[int, ...] | None = None
    """The permutation that puts the positions of tiles in this order; None if they are in order already."""

    @property
    def patches(self) -> slice:
        """The positions of the patches, in order."""
        return slice(self.prefix, self.prefix + self.grid[0] * self.grid[1])


@dataclass(frozen=True, repr=False, eq=False)
class AttentionTrace:
    """Cross-attention weights, probabilities and attribution maps of each word of a caption."""

    text: str
    words: tuple[str, ...]
    log_probs: tuple[float, ...]
    """Natural logarithm of each word's probability."""
    weights: NDArray[np.float32]
    """(W, L, H, N): prefix tokens, then patches row by row, then null patches; sums to one over N."""
    grid: tuple[int, int]
    prefix: int
    geometry: Geometry
    photo: Image.Image
    """The upright photo."""
    method: Method = "raw"
    needs: tuple[float, ...] = ()
    """Visual need: log p of each word with the image minus log p without; empty if not measured."""
    evidence: NDArray[np.float32] | None = None
    """Attribution to each memory position, in nats, signed. For `relevance` and `refined` to the log-odds of a word
    (W, L, H, N), for `perturbation` to its log-probability (W, 1, 1, N); None for `raw`."""
    contributions: NDArray[np.float32] | None = None
    """(W, h', w') gradient times activation of an earlier encoder stage, the sum of its positive channels, in nats.
    None unless the method is `refined`."""
    visible: NDArray[np.bool_] | None = None
    """(h, w) whether the model saw each patch; None if none was hidden."""
    hallucination: Mapping[int, float] = field(default_factory=dict)
    """Index of a word -> the probability that the object it names is not in the photo; empty if the model has no
    hallucination weights."""
    confidences: tuple[float, ...] = ()
    """The probability that a human caption has each word; empty if the model is not calibrated."""
    next_best: NextBest = ()
    """The most probable other tokens at the step of each word."""
    best_heads: tuple[tuple[int, int], ...] = ()
    """The (layer, head) pairs that point best together; empty if they were not measured."""
    unfamiliarity: float | None = None
    """As that of `Caption`."""
    alternatives: tuple["AttentionTrace", ...] = ()
    """Traces of the runners-up where several captions were requested; `save` leaves them out."""

    @classmethod
    def of(
        cls,
        decoder: TextDecoder,
        memory: Memory,
        tokens: list[int],
        tokenizer: Tokenizer,
        *,
        view: View,
        photo: Image.Image,
        method: Method = "raw",
        blind: Memory | None = None,
        stage: Stage | None = None,
    ) -> Self:
        """Trace a caption over the memory of one image.

        A word of several tokens has their mean weights and the sum of their log-probabilities. Visual need is measured
        against `blind`, the memory of no image. The method `refined` needs the `stage` that the memory was computed
        from, with its positions in order; without one, the trace is by `relevance`.
        """
        forced = ForcedPass.of(decoder, tokenizer, memory, tokens, blind, stage)
        order = list(view.order) if view.order is not None else list(range(memory.positions))
        keep = memory.layers[0].keep
        visible = None if keep is None else keep[0, order[view.patches]].view(view.grid)
        method = "relevance" if method == "refined" and stage is None else method
        evidence = contributions = None
        ordered = memory if view.order is None else memory.take(torch.tensor(order, device=forced.tokens.device))
        caption = decoder, ordered, forced.tokens, forced.spans
        if method in BY_GRADIENTS:
            gradients = memory_gradients(*caption)
            evidence = weigh_values(ordered, gradients, view.patches).float().cpu().numpy()
            if method == "refined":
                cells = stage_contributions(forced, gradients)
                if visible is not None:
                    cells = cells * F.interpolate(visible[None, None].to(cells), size=cells.shape[1:])[0]
                contributions = cells.float().cpu().numpy()
        elif method == "perturbation":
            evidence = perturbation(*caption, view.grid, view.patches)[:, None, None].float().cpu().numpy()
        return cls(
            text=tokenizer.decode(tokens),
            words=forced.words,
            log_probs=tuple(forced.log_probs.tolist()),
            # Contiguous, so that sums are the same to the bit after saving and loading.
            weights=np.ascontiguousarray(forced.weights[..., order]),
            grid=view.grid,
            prefix=view.prefix,
            geometry=view.geometry,
            photo=photo,
            method=method,
            needs=() if forced.visual_need is None else tuple(forced.visual_need.tolist()),
            next_best=forced.next_best,
            evidence=evidence,
            contributions=contributions,
            visible=None if visible is None else visible.cpu().numpy(),
        )

    def __repr__(self) -> str:
        return f"AttentionTrace({self.text!r}, {self.method}, {self.grid[0]}x{self.grid[1]} patches)"

    def select(
        self, layer: int | None = None, head: int | None = None, heads: Sequence[tuple[int, int]] | None = None
    ) -> Self:
        """The trace of one layer, of one head, or of the (layer, head) pairs `heads`; by default the whole trace.

        Raises ConfigError for a layer or head that the model lacks, and for perturbation, which has none.
        """
        if layer is None and head is None and heads is None:
            return self
        if heads is not None and not len(heads):
            raise ConfigError("heads: none given; name at least one (layer, head)")
        if self.method == "perturbation":
            raise ConfigError("method perturbation: hides patches from all layers and heads; leave layer and head out")
        for name, count, numbers in (
            ("layer", self.weights.shape[1], [layer, *(each for each, _ in heads or ())]),
            ("head", self.weights.shape[2], [head, *(each for _, each in heads or ())]),
        ):
            for number in numbers:
                if number is not None and not 0 <= number < count:
                    raise ConfigError(f"{name} {number}: this model has {name}s 0 to {count - 1}; choose one of them")

        def chosen(values: NDArray[np.float32]) -> NDArray[np.float32]:
            if heads is not None:
                return values[:, [each for each, _ in heads], [each for _, each in heads]][:, None]
            values = values if layer is None else values[:, layer : layer + 1]
            return values if head is None else values[:, :, head : head + 1]

        evidence = None if self.evidence is None else chosen(self.evidence)
        return replace(self, weights=chosen(self.weights), evidence=evidence, best_heads=())

    def patches(self, word: int) -> NDArray[np.float32]:
        """The map (h, w) of a word: mean weights for `raw`, else the evidence in nats, clipped at 0.

        For `refined` it lies on the finer `map_grid`, with the same sum.
        """
        if self.evidence is None:
            flat = self.weights[word, :, :, self._span].mean(axis=(0, 1))
        else:
            flat = np.maximum(self.evidence[word, :, :, self._span].sum(axis=(0, 1)), 0)
        found = np.asarray(flat, np.float32).reshape(self.grid)
        return found if self.contributions is None else refine(found[None], self.contributions[word : word + 1])[0]

    @property
    def map_grid(self) -> tuple[int, int]:
        """(h, w) of the maps."""
        return self.grid if self.contributions is None else (self.contributions.shape[1], self.contributions.shape[2])

    @property
    def confidence(self) -> float:
        """The mean confidence of the words; without calibration, the geometric mean of their probabilities."""
        if self.confidences:
            return fmean(self.confidences)
        return math.exp(fmean(self.log_probs)) if self.words else 1.0

    @property
    def unfamiliar(self) -> bool:
        """As that of `Caption`."""
        return self.unfamiliarity is not None and self.unfamiliarity > 1

    @property
    def needs_photo(self) -> tuple[bool, ...]:
        """Whether the photo made each word clearly more probable; True where visual need was not measured."""
        return tuple(need > NEED_THRESHOLD for need in self.needs) or (True,) * len(self.words)

    @property
    def has_null_patch(self) -> bool:
        """Whether words could attend to a null patch."""
        return bool(self.weights.shape[3] > self._span.stop)

    @property
    def null_mass(self) -> NDArray[np.float32]:
        """(W,) the share of each word's attention on the null patch; 0 if the model has none."""
        return self._mass(slice(self._span.stop, None))

    @property
    def prefix_mass(self) -> NDArray[np.float32]:
        """(W,) the share of each word's attention on class and register tokens, which have no place in the photo."""
        return self._mass(slice(self.prefix))

    @property
    def padding_mass(self) -> NDArray[np.float32]:
        """(W,) the share of each word's attention on the bars of a letterboxed photo."""
        bars = 1 - self.geometry.visible_share(self.grid).ravel()
        return np.asarray((self.weights[..., self._span] @ bars).mean(axis=(1, 2)), np.float32)

    @property
    def entropy(self) -> NDArray[np.float32]:
        """(W,) bits of each word's map: 0 for a single patch, log2(h·w) for an even map on `map_grid`."""
        shares = self._shares()
        return np.asarray(-(shares * np.log2(np.maximum(shares, TINY))).sum(axis=1), np.float32)

    @property
    def peak(self) -> NDArray[np.float32]:
        """(W,) the share of each word's map on its strongest patch."""
        return np.asarray(self._shares().max(axis=1, initial=0), np.float32)

    def save(self, path: str | Path) -> None:
        """Write one .npz file without pickles: arrays, the photo as PNG, and the rest as JSON."""
        from captioner.inspection.trace_file import save_trace

        save_trace(self, path)

    @classmethod
    def load(cls, path: str | Path) -> "AttentionTrace":
        """The inverse of `save`. Raises InputError for a file that is not a trace."""
        from captioner.inspection.trace_file import load_trace

        return load_trace(path)

    def save_png(self, path: str | Path | BinaryIO) -> None:
        """Save a sheet: the photo, and a panel with its map for each word."""
        from captioner.inspection.sheet import draw_sheet

        draw_sheet(self).save(path, format="PNG")

    def _repr_png_(self) -> bytes:
        """The sheet as PNG, for notebooks; the same trace gives the same bytes."""
        stream = io.BytesIO()
        self.save_png(stream)
        return stream.getvalue()

    def save_html(self, path: str | Path) -> None:
        """Save an interactive report: one HTML file that works offline."""
        from captioner.inspection.report import render_report

        Path(path).write_bytes(render_report(self, name=Path(path).stem).encode())

    def _repr_html_(self) -> str:
        """The interactive report in a frame, for notebooks."""
        from captioner.inspection.report import render_frame

        return render_frame(self)

    @property
    def _span(self) -> slice:
        """The positions of the patches."""
        return slice(self.prefix, self.prefix + self.grid[0] * self.grid[1])

    def _mass(self, positions: slice) -> NDArray[np.float32]:
        """(W,) the share of each word's attention on some positions."""
        return np.asarray(self.weights[..., positions].sum(axis=3).mean(axis=(1, 2)), np.float32)

    def _shares(self) -> NDArray[np.float32]:
        """(W, h·w) each word's map, normalized to a sum of one."""
        maps = np.array([self.patches(word) for word in range(len(self.words))], np.float32)
        maps = maps.reshape(len(self.words), self.map_grid[0] * self.map_grid[1])
        return np.asarray(maps / np.maximum(maps.sum(axis=1, keepdims=True), TINY), np.float32)
