"""How time and memory grow with the patches m and the words n: `python -m benchmarks.scaling`.

For a 6-layer decoder of width 512, measures against m: keys and values (once per image), one step of beam search (8
images, beam 5, after ten words), and a training step (8 images, 5 captions of 12 words); with and without reducers.
Measures training against n. Growth is the slope of log time over log size, for all sizes and for the last three.

B images · m patches · n words · E encoder width
"""

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.reducers import LearnedQueries, Pooled
from captioner.config import DecoderConfig
from captioner.model.decoder import TextDecoder
from captioner.model.memory import Memory

SIDES = (7, 9, 14, 24, 32, 48)
"""Sides of square grids: m = 49, 81, 196, 576, 1024, 2304."""
WORDS = (4, 8, 16, 32, 63)
IMAGES, BEAMS, CAPTIONS, BEFORE, LENGTH = 8, 5, 5, 10, 12
ENCODER_WIDTH, VOCABULARY, QUERIES, POOL = 384, 10_000, 64, 2
CONFIG = DecoderConfig(width=512, layers=6, heads=8, null_patch=False)
FLOAT = 4
"""Bytes of a float32 number."""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sides", type=int, nargs="+", default=SIDES)
    parser.add_argument("--words", type=int, nargs="+", default=WORDS)
    parser.add_argument("--output", type=Path, help="also write the numbers to this file")
    arguments = parser.parse_args(argv)
    torch.manual_seed(0)
    found = {
        "patches": against_patches(arguments.sides, arguments.rounds),
        "words": against_words(arguments.words, arguments.rounds),
    }
    print(json.dumps(found, indent=2))
    if arguments.output:
        arguments.output.write_text(json.dumps(found, indent=2) + "\n")
    return 0


def against_patches(sides: Sequence[int], rounds: int) -> dict[str, dict[str, object]]:
    decoder = TextDecoder(CONFIG, vocabulary=VOCABULARY, encoder_width=ENCODER_WIDTH)
    queries = LearnedQueries(ENCODER_WIDTH, QUERIES)
    found: dict[str, dict[str, object]] = {}
    for name in ("none", f"pool {POOL}", f"{QUERIES} learned queries"):
        rows: list[dict[str, float]] = []
        fitting = [side for side in sides if not (name.startswith("pool") and side % POOL)]
        for side in fitting:
            reducer = {"n": nn.Identity(), "p": Pooled((side, side), POOL)}.get(name[0], queries)
            features = torch.randn(IMAGES, side * side, ENCODER_WIDTH)
            with torch.inference_mode():
                memory = decoder.project(reducer(features))
            tokens = torch.randint(0, VOCABULARY, (IMAGES * CAPTIONS, LENGTH))
            rows.append(
                {
                    "patches": side * side,
                    "memory_mib_an_image": 2 * CONFIG.layers * CONFIG.width * memory.positions * FLOAT / 2**20,
                    "project_seconds": seconds(project(decoder, reducer, features), rounds),
                    "step_seconds": seconds(step(decoder, memory), rounds),
                    "train_seconds": seconds(train(decoder, reducer, features, tokens), rounds),
                }
            )
            print(name, json.dumps(rows[-1]), file=sys.stderr, flush=True)
        found[name] = {"sizes": rows, "growth": growth(rows, "patches")}
    return found


def against_words(words: Sequence[int], rounds: int) -> dict[str, object]:
    decoder = TextDecoder(CONFIG, vocabulary=VOCABULARY, encoder_width=ENCODER_WIDTH)
    features = torch.randn(IMAGES, 196, ENCODER_WIDTH)
    rows = []
    for count in words:
        tokens = torch.randint(0, VOCABULARY, (IMAGES * CAPTIONS, count))
        found = seconds(train(decoder, nn.Identity(), features, tokens), rounds)
        rows.append({"words": float(count), "train_seconds": found})
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return {"sizes": rows, "growth": growth(rows, "words")}


def project(decoder: TextDecoder, reducer: nn.Module, features: Tensor) -> Callable[[], object]:
    return torch.inference_mode()(lambda: decoder.project(reducer(features)))


def step(decoder: TextDecoder, memory: Memory) -> Callable[[], object]:
    """Decode one more token for every beam."""

    @torch.inference_mode()
    def take() -> None:
        cache = decoder.new_cache()
        rows = IMAGES * BEAMS
        decoder(torch.zeros(rows, BEFORE, dtype=torch.long), memory, cache)
        start = time.perf_counter()
        decoder(torch.zeros(rows, 1, dtype=torch.long), memory, cache)
        take.seconds = time.perf_counter() - start  # type: ignore[attr-defined]

    return take


def train(decoder: TextDecoder, reducer: nn.Module, features: Tensor, tokens: Tensor) -> Callable[[], object]:
    def take() -> None:
        decoder(tokens, decoder.project(reducer(features))).logits.logsumexp(dim=-1).mean().backward()
        decoder.zero_grad()

    return take


def seconds(work: Callable[[], object], rounds: int) -> float:
    """Median seconds of `work`, or of the part that it timed itself."""
    found = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        work()
        found.append(getattr(work, "seconds", time.perf_counter() - start))
    return round(statistics.median(found[1:]), 5)


def growth(rows: Sequence[dict[str, float]], size: str) -> dict[str, list[float]]:
    """The growth exponent of each time, over all sizes and over the last three."""
    names = [name for name in rows[0] if name.endswith("seconds")] if rows else []
    return {name: [slope(part, size, name) for part in (rows, rows[-3:])] for name in names if len(rows) > 1}


def slope(rows: Sequence[dict[str, float]], size: str, name: str) -> float:
    x, y = ([math.log(row[key]) for row in rows] for key in (size, name))
    return round(statistics.linear_regression(x, y).slope, 2)


if __name__ == "__main__":
    sys.exit(main())
