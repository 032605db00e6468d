"""Captioning against peers and the machine's limits: `python -m benchmarks.generation` (extra `benchmark`).

transformers' `generate` with the same weights (converted), CTranslate2 with a decoder of the same sizes and random
weights, in float32 and int8. All take turns in one process, whole batches, 20 tokens, no early end; medians. In its
turn each runs once unmeasured, since the threads of the one before may still be waiting in a loop. Decoding begins at
encoder features: ours projects keys and values in that time, and so do the peers.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.limits import matrix_product, matrix_vector
from benchmarks.peers import LAYERS, VOCABULARY, WIDTH, ctranslate2_translator, transformers_captioner
from captioner.convert import from_transformers
from captioner.generation import BeamSearch, Greedy, Strategy, generate
from captioner.model.caption_model import CaptionModel
from captioner.tokenizer import Tokenizer

TOKENS, PATCHES = 20, 197
CASES = ((1, 1), (1, 5), (8, 5), (32, 1), (32, 5))
"""(images, beams)"""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cases", nargs="+", default=[f"{images}x{beams}" for images, beams in CASES])
    parser.add_argument("--output", type=Path, help="write the numbers here too")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        theirs = transformers_captioner(Path(folder) / "transformers")
        ours, tokenizer = from_transformers(Path(folder) / "transformers")
        engines = {
            kind: ctranslate2_translator(Path(folder) / f"ctranslate2 {kind}", kind, arguments.threads)
            for kind in ("float32", "int8")
        }
        found = {}
        for case in arguments.cases:
            images, beams = map(int, case.split("x"))
            found[case] = measure(ours, tokenizer, theirs, engines, images, beams, arguments.rounds)
            print(f"{images} images, beam {beams}: {json.dumps(found[case])}", file=sys.stderr, flush=True)
    print(json.dumps(found, indent=2))
    if arguments.output:
        arguments.output.write_text(json.dumps(found, indent=2) + "\n")
    return 0


def measure(
    ours: CaptionModel,
    tokenizer: Tokenizer,
    theirs: Any,
    engines: dict[str, Any],
    images: int,
    beams: int,
    rounds: int,
) -> dict[str, float]:
    """Seconds of each, what they are of transformers', and of the machine's limits."""
    pixels = torch.randint(0, 256, (images, 3, 224, 224), dtype=torch.uint8)
    normalized = (pixels / 255 - 0.5) / 0.5
    lengths: dict[str, int] = {"max_length": TOKENS, "min_length": TOKENS - 1}
    strategy: Strategy = Greedy(**lengths) if beams == 1 else BeamSearch(width=beams, **lengths)
    source = [[f"s{place % 7}" for place in range(PATCHES)]] * images
    with torch.inference_mode():
        features = ours.encoder(pixels)
        encoded = theirs.encoder(normalized)

    def whole() -> None:
        generate(ours.decoder, ours.encode(pixels), strategy, bos=tokenizer.bos, eos=tokenizer.eos)

    def decode() -> None:
        generate(ours.decoder, ours.decoder.project(features), strategy, bos=tokenizer.bos, eos=tokenizer.eos)

    def theirs_whole(**given: Any) -> None:
        theirs.generate(
            **given, num_beams=beams, do_sample=False, max_new_tokens=TOKENS, min_new_tokens=TOKENS, use_cache=True
        )

    def translate(kind: str) -> None:
        engines[kind].translate_batch(
            source, beam_size=beams, max_decoding_length=TOKENS, min_decoding_length=TOKENS, max_batch_size=images
        )

    work: dict[str, Callable[[], object]] = {
        "whole": whole,
        "decode": decode,
        "transformers_whole": lambda: theirs_whole(pixel_values=normalized),
        # A new object each time: `generate` repeats what is in it for the beams.
        "transformers_decode": lambda: theirs_whole(encoder_outputs=type(encoded)(encoded.last_hidden_state)),
        "ctranslate2_decode": lambda: translate("float32"),
        "ctranslate2_int8_decode": lambda: translate("int8"),
    }
    limits = {"product": matrix_product, "vector": matrix_vector}
    seconds: dict[str, list[float]] = {name: [] for name in work}
    most: dict[str, list[float]] = {name: [] for name in limits}
    with torch.inference_mode():
        for _ in range(rounds):
            for name, limit in limits.items():
                limit()
                most[name].append(limit())
            for name, call in work.items():
                call()
                start = time.perf_counter()
                call()
                seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    floor = max(
        operations(images, beams) / statistics.median(most["product"]),
        TOKENS * weight_bytes(ours) / statistics.median(most["vector"]),
    )
    return {name: round(value, 4) for name, value in medians.items()} | {
        "times_transformers": round(medians["transformers_decode"] / medians["decode"], 2),
        "times_transformers_whole": round(medians["transformers_whole"] / medians["whole"], 2),
        "times_ctranslate2": round(medians["ctranslate2_decode"] / medians["decode"], 2),
        "times_ctranslate2_int8": round(medians["ctranslate2_int8_decode"] / medians["decode"], 2),
        "share_of_the_floor": round(floor / medians["decode"], 2),
        "product_gflops": round(statistics.median(most["product"]) / 1e9, 1),
        "vector_gbytes": round(statistics.median(most["vector"]) / 1e9, 1),
    }


def operations(images: int, beams: int) -> float:
    """Useful floating-point operations of decoding: projection once an image, the first step once an image."""
    project = 2 * images * PATCHES * WIDTH * (384 + LAYERS * 2 * WIDTH)
    a_token = 2 * (LAYERS * 14 * WIDTH**2 + VOCABULARY * WIDTH)  # 4 + 2 + 8 D² of each layer, and the words
    read = 4 * LAYERS * WIDTH * (PATCHES + TOKENS / 2)
    return project + images * (1 + beams * (TOKENS - 1)) * (a_token + read)


def weight_bytes(model: CaptionModel) -> int:
    """Bytes of the weights that every step reads."""
    skipped = ("feature_", "position_embedding", "cross_attention.key_value")
    return sum(
        4 * each.numel() for name, each in model.decoder.named_parameters() if not any(part in name for part in skipped)
    )


if __name__ == "__main__":
    sys.exit(main())
