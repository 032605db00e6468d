"""Maps of a forced caption.   W words · h·w patches of the encoder, or of a finer grid"""

from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from captioner.inspection.forced_pass import ForcedPass
from captioner.inspection.relevance import (
    memory_gradients,
    perturbation,
    refine,
    stage_contributions,
    weigh_values,
)
from captioner.model.caption_model import CaptionModel
from captioner.model.decoder import TextDecoder
from captioner.tokenizer import Tokenizer

Maps: TypeAlias = Mapping[str, NDArray[np.float32]]
"""Name -> (W, h, w), a nonnegative map of each word, on a grid of its own."""
MapMaker: TypeAlias = Callable[[CaptionModel, ForcedPass], Maps]


def force_caption(
    model: CaptionModel, tokenizer: Tokenizer, pixels: Tensor, caption: str, decoder: TextDecoder | None = None
) -> ForcedPass:
    """Force a caption on an image (3, height, width); `decoder` may be a packed copy of the model's, for speed."""
    _, memory, stage = model.encode_with_stage(pixels[None].to(next(model.parameters()).device))
    with torch.inference_mode():
        blind = model.blind(memory)
    ids = tokenizer.encode(caption)[: model.decoder.config.max_length - 2]  # training cuts captions there too
    return ForcedPass.of(decoder or model.decoder, tokenizer, memory, [*ids, tokenizer.eos], blind, stage)


def standard_maps(model: CaptionModel, forced: ForcedPass) -> dict[str, NDArray[np.float32]]:
    """Raw attention and relevance, overall and by layer, refined relevance if the encoder has an earlier stage, and raw
    attention of the best heads if they are known.
    """
    grid, patches = model.encoder.grid, model.encoder.patches
    raw = forced.weights[..., patches].reshape(*forced.weights.shape[:3], *grid)
    gradients = memory_gradients(forced.decoder, forced.memory, forced.tokens, forced.spans)
    found = weigh_values(forced.memory, gradients, patches)[..., patches]
    evidence = found.unflatten(-1, grid).float().cpu().numpy()  # (W, L, H, h, w)
    maps = {"raw": raw.mean(axis=(1, 2)), "relevance": np.maximum(evidence.sum(axis=(1, 2)), 0)}
    if forced.stage is not None:
        contributions = stage_contributions(forced, gradients).float().cpu().numpy()
        maps["refined"] = refine(maps["relevance"], contributions)
    if best := model.config.best_heads:
        maps["raw, best heads"] = raw[:, [layer for layer, _ in best], [head for _, head in best]].mean(axis=1)
    for layer in range(raw.shape[1]):
        maps[f"raw, layer {layer}"] = raw[:, layer].mean(axis=1)
        maps[f"relevance, layer {layer}"] = np.maximum(evidence[:, layer].sum(axis=1), 0)
    return maps


def maps_with_perturbation(model: CaptionModel, forced: ForcedPass) -> dict[str, NDArray[np.float32]]:
    """The standard maps, and perturbation as a slow reference."""
    grid, patches = model.encoder.grid, model.encoder.patches
    lost = perturbation(forced.decoder, forced.memory, forced.tokens, forced.spans, grid, patches)[:, patches]
    return standard_maps(model, forced) | {"perturbation": np.maximum(lost.unflatten(1, grid).float().cpu().numpy(), 0)}
