"""Captioning against peers and the machine's limits: `python -m benchmarks.generation` (extra `benchmark`).

transformers' `generate` and our export to ONNX Runtime with the same weights, CTranslate2 with a decoder of the same
sizes and random weights, in float32 and int8. Each is a process of its own, as it is used, and they take turns: whole
batches, 20 tokens, no early end. In its turn each runs once unmeasured and then for a second or once; medians of turns'
medians.
Decoding begins at encoder features: ours projects keys and values in that time, and so do the peers.
"""

import argparse
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache, partial
from multiprocessing.connection import Connection
from pathlib import Path

import onnxruntime
import torch

from benchmarks.limits import matrix_product, matrix_vector, median_seconds
from benchmarks.peers import LAYERS, VOCABULARY, WIDTH, ctranslate2_translator, save_transformers, transformers
from captioner.convert import from_transformers
from captioner.export import runner
from captioner.export.folder import export_onnx
from captioner.generation import BeamSearch, Greedy, Strategy, generate
from captioner.model.caption_model import CaptionModel
from captioner.model.packed import pack

TOKENS, PATCHES = 20, 197
CASES = ((1, 1), (1, 5), (8, 5), (32, 1), (32, 5))
"""(images, beams)"""
WORK = {
    "ours": ("whole", "decode", "int8_decode"),
    "transformers": ("transformers_whole", "transformers_decode"),
    "onnx": ("onnx_decode",),
    "ctranslate2 float32": ("ctranslate2_decode",),
    "ctranslate2 int8": ("ctranslate2_int8_decode",),
}
"""Process -> what is measured in it."""
PAUSE = 0.3
"""Seconds between turns: threads of the one before wait in a loop for a while."""
TURN = 1.0
"""Seconds of a turn that are measured, and a whole batch at least."""

Work = Callable[[], object]
Prepare = Callable[[int, int], dict[str, Work]]
"""(images, beams) -> what can be measured."""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cases", nargs="+", default=[f"{images}x{beams}" for images, beams in CASES])
    parser.add_argument("--output", type=Path, help="write the numbers here too")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "transformers"
        save_transformers(model)
        weights = weight_bytes(from_transformers(model)[0])
        context = multiprocessing.get_context("spawn")
        turns: dict[str, Connection] = {}
        for name in WORK:
            turns[name], theirs = context.Pipe()
            given = (theirs, name, model, arguments.threads)
            context.Process(target=serve, args=given, daemon=True).start()
        for each in turns.values():
            each.recv()  # once it is ready: nothing is measured while others begin
        found = {}
        for case in arguments.cases:
            images, beams = map(int, case.split("x"))
            found[case] = measure(turns, weights, images, beams, arguments.rounds)
            print(f"{images} images, beam {beams}: {json.dumps(found[case])}", file=sys.stderr, flush=True)
    print(json.dumps(found, indent=2))
    if arguments.output:
        arguments.output.write_text(json.dumps(found, indent=2) + "\n")
    return 0


def measure(turns: dict[str, Connection], weights: int, images: int, beams: int, rounds: int) -> dict[str, float]:
    """Seconds of each, what they are of the peers', and shares of the machine's limits: of computing, or of reading the
    weights at every step, from memory or from a cache that holds them."""
    limits: dict[str, Callable[[], float]] = {
        "product": matrix_product,
        "memory": matrix_vector,
        "cache": partial(matrix_vector, weights),
    }
    seconds: dict[str, list[float]] = {each: [] for works in WORK.values() for each in works}
    most: dict[str, list[float]] = {name: [] for name in limits}
    for _ in range(rounds):
        for name, limit in limits.items():
            most[name].append(limit())
        for name, works in WORK.items():
            for each in works:
                time.sleep(PAUSE)
                turns[name].send((each, images, beams))
                seconds[each].append(turns[name].recv())
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    of_limits = {name: statistics.median(values) for name, values in most.items()}
    computing = operations(images, beams) / of_limits["product"]
    reading = {name: TOKENS * weights / of_limits[name] for name in ("memory", "cache")}
    return {name: round(value, 4) for name, value in medians.items()} | {
        "times_transformers": round(medians["transformers_decode"] / medians["decode"], 2),
        "times_transformers_whole": round(medians["transformers_whole"] / medians["whole"], 2),
        "onnx_over_ours": round(medians["decode"] / medians["onnx_decode"], 2),
        "times_ctranslate2": round(medians["ctranslate2_decode"] / medians["decode"], 2),
        "times_ctranslate2_int8": round(medians["ctranslate2_int8_decode"] / medians["decode"], 2),
        "int8_times_transformers": round(medians["transformers_decode"] / medians["int8_decode"], 2),
        "int8_times_ctranslate2_int8": round(medians["ctranslate2_int8_decode"] / medians["int8_decode"], 2),
        "share_of_the_floor": round(max(computing, reading["memory"]) / medians["decode"], 2),
        "share_of_the_floor_if_cached": round(max(computing, reading["cache"]) / medians["decode"], 2),
        "ctranslate2_share_of_the_floor": round(max(computing, reading["memory"]) / medians["ctranslate2_decode"], 2),
        "product_gflops": round(of_limits["product"] / 1e9, 1),
        "memory_gbytes": round(of_limits["memory"] / 1e9, 1),
        "cache_gbytes": round(of_limits["cache"] / 1e9, 1),
    }


def serve(turns: Connection, name: str, model: Path, threads: int) -> None:
    """A process: does (work, images, beams) when asked, and sends the median seconds of its turn."""
    torch.set_num_threads(threads)
    if name == "ours":
        prepare = ours(model)
    elif name == "transformers":
        prepare = theirs(model)
    elif name == "onnx":
        prepare = exported(model, threads)
    else:
        prepare = translated(name, model.parent, threads)
    turns.send("ready")
    with torch.inference_mode():
        while True:
            try:
                work, images, beams = turns.recv()
            except EOFError:
                return
            call = prepare(images, beams)[work]
            turns.send(median_seconds(call, TURN))


@cache
def pictures(images: int) -> torch.Tensor:
    """(images, 3, 224, 224) uint8, the same in each process."""
    return torch.randint(0, 256, (images, 3, 224, 224), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def ours(folder: Path) -> Prepare:
    model, tokenizer = from_transformers(folder)
    encode = cache(lambda images: model.encoder(pictures(images)))
    packed = {"float32": pack(model.decoder), "int8": pack(model.decoder, int8=True)}  # as a Captioner keeps one

    def prepare(images: int, beams: int) -> dict[str, Work]:
        lengths: dict[str, int] = {"max_length": TOKENS, "min_length": TOKENS - 1}
        strategy: Strategy = Greedy(**lengths) if beams == 1 else BeamSearch(width=beams, **lengths, consensus=False)
        features = encode(images)

        def decode(features: torch.Tensor, numbers: str = "float32") -> None:
            memory = model.decoder.project(features)
            generate(packed[numbers], memory, strategy, bos=tokenizer.bos, eos=tokenizer.eos)

        return {
            "whole": lambda: decode(model.encoder(pictures(images))),
            "decode": lambda: decode(features),
            "int8_decode": lambda: decode(features, "int8"),
        }

    return prepare


def exported(folder: Path, threads: int) -> Prepare:
    model, tokenizer = from_transformers(folder)
    export_onnx(model, tokenizer, folder.parent / "onnx", card="")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    captioner = runner.OnnxCaptioner(folder.parent / "onnx", options)
    encode = cache(lambda images: model.encoder(pictures(images)).numpy())

    def prepare(images: int, beams: int) -> dict[str, Work]:
        search = runner.BeamSearch(width=beams, max_length=TOKENS, min_length=TOKENS - 1, consensus=False)
        features = encode(images)
        return {"onnx_decode": lambda: captioner.search(captioner.project(features), search)}

    return prepare


def theirs(folder: Path) -> Prepare:
    model = transformers.VisionEncoderDecoderModel.from_pretrained(folder).eval()
    normalize = cache(lambda images: (pictures(images) / 255 - 0.5) / 0.5)
    encode = cache(lambda images: model.encoder(normalize(images)))

    def prepare(images: int, beams: int) -> dict[str, Work]:
        lengths = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS}
        given = {"num_beams": beams, "do_sample": False, "use_cache": True} | lengths
        encoded = encode(images)
        return {
            "transformers_whole": lambda: model.generate(pixel_values=normalize(images), **given),
            # A new object each time: `generate` repeats what is in it for the beams.
            "transformers_decode": lambda: model.generate(
                encoder_outputs=type(encoded)(encoded.last_hidden_state), **given
            ),
        }

    return prepare


def translated(name: str, folder: Path, threads: int) -> Prepare:
    kind = name.split()[1]
    engine = ctranslate2_translator(folder / name, kind, threads)
    works = WORK[name]

    def prepare(images: int, beams: int) -> dict[str, Work]:
        source = [[f"s{place % 7}" for place in range(PATCHES)]] * images
        lengths = {"max_decoding_length": TOKENS, "min_decoding_length": TOKENS}
        return {works[0]: lambda: engine.translate_batch(source, beam_size=beams, max_batch_size=images, **lengths)}

    return prepare


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
