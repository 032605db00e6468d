"""Maps that were tried, by pointing: `python -m benchmarks.attention_maps --data FOLDER`.

Each is a way to say which patches a word came from; `relevance` and `refined` are those that stayed. With `--grounding`
the truth is COCO's instances instead of mosaics, for the maps that the encoder's stage has a part in. Prints Markdown.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from captioner import Captioner
from captioner.data.formats import load_captions
from captioner.inspection.forced_pass import ForcedPass
from captioner.inspection.maps import standard_maps
from captioner.inspection.pointing import instance_pointing, mosaic_pointing
from captioner.inspection.relevance import memory_gradients, refine, stage_contributions
from captioner.inspection.summary import markdown, summarize
from captioner.model.caption_model import CaptionModel
from captioner.model.memory import Memory
from captioner.model.packed import pack

STEPS = 4
"""Of integrated gradients."""


def maps(model: CaptionModel, forced: ForcedPass) -> dict[str, NDArray[np.float32]]:
    """The maps (W, h, w) of a forced caption."""
    flat = {
        "attention times norm of the projected value": value_norm(model, forced),
        "relevance, all steps": all_steps(model, forced),
        "relevance, keys and values": _positive(gradients(model, forced, keys=True)),
        "relevance, heads clipped apart": _clipped(gradients(model, forced)),
        f"integrated gradients, {STEPS} steps": _positive(
            sum((gradients(model, forced, scale=(step + 0.5) / STEPS) for step in range(STEPS)), torch.zeros(()))
        ),
    }
    grid = model.encoder.grid
    return refined(model, forced) | {name: each.reshape(len(each), *grid) for name, each in flat.items()}


def refined(model: CaptionModel, forced: ForcedPass) -> dict[str, NDArray[np.float32]]:
    """The standard maps (W, h, w), the stage alone, and other maps that it refines."""
    base = standard_maps(model, forced)
    if forced.stage is None:
        return base
    flows = memory_gradients(forced.decoder, forced.memory, forced.tokens, forced.spans)
    each, shared = (
        stage_contributions(forced, flows, passes).float().cpu().numpy() for passes in (len(forced.words), 1)
    )
    by_layer = [base[f"relevance, layer {layer}"] for layer in range(len(model.decoder.blocks))]
    layers, last = np.sum(by_layer, axis=0), by_layer[-1]
    return base | {
        "stage alone": each,
        "refined, a pass for every word": refine(base["relevance"], each),
        "refined, one pass": refine(base["relevance"], shared),
        "refined, last layer": refine(last, each),
        "refined, first power": refine(base["relevance"], np.cbrt(each)),
        "refined, second power": refine(base["relevance"], np.cbrt(each) ** 2),
        "refined, layers clipped apart": refine(layers, each),
        "refined, raw attention": refine(base["raw"], each),
    }


@torch.no_grad()
def value_norm(model: CaptionModel, forced: ForcedPass) -> NDArray[np.float32]:
    """α_ij ‖W_o v_j‖, the mean over heads (Kobayashi et al. 2020)."""
    layers = []
    for block, each in zip(model.decoder.blocks, forced.memory.layers, strict=True):
        heads, width = each.values.shape[1], each.values.shape[3]
        projection = block.cross_attention.output.weight.view(-1, heads, width)  # type: ignore[union-attr, operator]
        layers.append(torch.einsum("hnd,ohd->hno", each.values[0], projection).norm(dim=2))
    norms = torch.stack(layers)[..., model.encoder.patches].detach().cpu().numpy()  # (L, H, P)
    weighted: NDArray[np.float32] = (forced.weights[..., model.encoder.patches] * norms).mean(axis=(1, 2))
    return weighted


def gradients(model: CaptionModel, forced: ForcedPass, *, keys: bool = False, scale: float = 1.0) -> Tensor:
    """(W, L, H, P) gradient times value less the mean patch's, at values moved to `scale` of the way from that mean."""
    with torch.inference_mode(False), torch.enable_grad():
        watched, leaves, moved = _watched(model, forced, keys, scale)
        odds = _odds(model, forced, watched)
        by_word = []
        for start, stop in forced.spans:
            found = torch.autograd.grad(odds[start:stop].sum(), leaves, retain_graph=True)
            by_word.append(torch.stack([(move * part[0]).sum(2) for move, part in zip(moved, found, strict=True)]))
        each = torch.stack(by_word)  # (W, L or 2 L, H, N)
        layers = len(forced.memory.layers)
        each = each[:, :layers] + each[:, layers:] if keys else each
        return each[..., model.encoder.patches].detach()


def all_steps(model: CaptionModel, forced: ForcedPass) -> NDArray[np.float32]:
    """Gradients that also flow through self-attention to earlier words and their attention to the image."""
    return _positive(gradients(model, forced))


def _watched(
    model: CaptionModel, forced: ForcedPass, keys: bool, scale: float
) -> tuple[Memory, list[Tensor], list[Tensor]]:
    """The memory moved toward its mean patch, what gradients are taken of, and how far each was from that mean."""

    def moved(part: Tensor) -> tuple[Tensor, Tensor]:
        part = part.clone()
        mean = part[:, :, model.encoder.patches].mean(dim=2, keepdim=True)
        return (mean + scale * (part - mean)).requires_grad_(), (part - mean)[0]

    values = [moved(each.values) for each in forced.memory.layers]
    of_keys = [moved(each.keys) if keys else (each.keys.clone(), each.keys[0]) for each in forced.memory.layers]
    layers = tuple(
        each._replace(keys=key, values=value)
        for each, (key, _), (value, _) in zip(forced.memory.layers, of_keys, values, strict=True)
    )
    leaves = values + of_keys if keys else values
    return replace(forced.memory, layers=layers), [leaf for leaf, _ in leaves], [move for _, move in leaves]


def _odds(model: CaptionModel, forced: ForcedPass, memory: Memory) -> Tensor:
    tokens = forced.tokens.clone()
    logits = pack(model.decoder)(tokens[:, :-1], memory).logits[0].log_softmax(-1)  # packed weights get no gradients
    log_probs = logits.gather(1, tokens[0, 1:, None])[:, 0].clamp(max=-1e-6)
    return log_probs - (-log_probs.expm1()).log()  # type: ignore[no-any-return]


def _positive(evidence: Tensor) -> NDArray[np.float32]:
    found: NDArray[np.float32] = evidence.sum(dim=(1, 2)).clamp(min=0).float().cpu().numpy()
    return found


def _clipped(evidence: Tensor) -> NDArray[np.float32]:
    found: NDArray[np.float32] = evidence.clamp(min=0).sum(dim=(1, 2)).float().cpu().numpy()
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--data", required=True, help="a data set's folder")
    parser.add_argument("--annotations", help="its annotation file, where there are several")
    parser.add_argument("--split", default="val")
    parser.add_argument("--mosaics", type=int, default=500)
    parser.add_argument("--grounding", type=Path, help="COCO instances, instead of mosaics")
    parser.add_argument("--stage", type=int, help="number of the encoder's stage that refines; default: its own choice")
    arguments = parser.parse_args(argv)
    captioner = Captioner.from_pretrained(arguments.model)
    if arguments.stage is not None:
        captioner.model.encoder.stage = arguments.stage
    images = load_captions(arguments.data, arguments.annotations).split(arguments.split).images
    if arguments.grounding is not None:
        table = instance_pointing(captioner.model, captioner.tokenizer, images, arguments.grounding, maps=refined)
        print(markdown("Pointing at annotated objects", summarize(table)))
        return 0
    table = mosaic_pointing(captioner.model, captioner.tokenizer, images, mosaics=arguments.mosaics, maps=maps)
    print(markdown(f"Pointing in {arguments.mosaics} mosaics", summarize(table)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
