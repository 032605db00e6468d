"""The accelerator against its own limits: `python -m benchmarks.gpu`.

Captions of a device and of the CPU are compared, then encoding, searching, captioning and training are timed, those of
large matrices with the share of the speed of a large matrix product (operations counted by PyTorch). Searches run with
batches that shrink as images finish, and with static steps, which are CUDA graphs on a GPU. On a machine without a GPU
the same runs on the CPU, in small. The exit code is 1 if captions differ.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from captioner import BeamSearch, Captioner, Greedy
from captioner.any_image import AnyImage
from captioner.caption import caption_memory
from captioner.model.packed import pack
from captioner.model.static import StaticDecoder

PHOTOS = Path(__file__).resolve().parent.parent / "docs" / "photos"
TOLERANCE = 1e-3
"""Largest difference of two log-probabilities that count as equal."""
WORDS = 16
"""Tokens of a training caption."""
TRIALS = {"cpu": 2, "cuda": 5}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, help="images in a batch; default: 128, and 8 without a GPU")
    arguments = parser.parse_args(argv)
    small = not torch.cuda.is_available()
    device = torch.device("cpu" if small else "cuda")
    images = arguments.images or (8 if small else 128)
    name = "the CPU, in small: there is no GPU" if small else torch.cuda.get_device_name(device)
    print(f"Device: {name}; torch {torch.__version__}; {images} images in a batch\n")
    peaks = {dtype: peak(device, dtype, 512 if small else 8192) for dtype in (torch.float32, torch.bfloat16)}
    print("| limit | |\n|---|---|")
    for dtype, speed in peaks.items():
        print(f"| matrix product, {dtype} | {speed / 1e12:.3g} TFLOP/s |")
    print(f"| copy in memory | {copy_speed(device, 2**24 if small else 2**30) / 1e9:.3g} GB/s |\n")

    captioner = Captioner.from_pretrained(device=str(device))
    differing = compare(captioner, reference := Captioner.from_pretrained(device="cpu"))
    if not small:
        differing += compare(Captioner.from_pretrained(device=str(device), cuda_graphs=True), reference)
    print("| work | images/s | share of the matrix product |\n|---|---|---|")
    model, paths = captioner.model, sorted(PHOTOS.glob("*.jpg"))
    height, width = model.encoder.config.image_size or (224, 224)
    pixels = torch.randint(0, 256, (images, 3, height, width), dtype=torch.uint8, device=device)
    with torch.inference_mode():
        row("encode, float32", images, device, peaks[torch.float32], lambda: model.encode(pixels))
        memory = model.encode(pixels)
    decoders = {"shrinking batches": pack(model.decoder), "static steps": StaticDecoder(model.decoder)}
    for search in (Greedy(), BeamSearch(width=5)):
        for kind, decoder in decoders.items():
            work = partial(caption_memory, decoder, captioner.tokenizer, memory, search)
            row(f"search, {type(search).__name__}, {kind}", images, device, None, work)
    repeated: list[AnyImage] = [paths[place % len(paths)] for place in range(images)]
    for search in (Greedy(), BeamSearch(width=5)):
        label = f"caption files, {type(search).__name__}"
        row(label, images, device, None, partial(captioner, repeated, search=search))
    tokens = torch.randint(4, 1000, (images, WORDS), device=device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            logits: Tensor = model(pixels, tokens[:, :-1])
        F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()

    model.requires_grad_(True)
    model.train()
    row("train all layers, bfloat16", images, device, peaks[torch.bfloat16], step)
    if not small:
        print(f"\nMemory at most: {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")
    return 1 if differing else 0


def compare(captioner: Captioner, reference: Captioner) -> int:
    """How many photos get another caption or log-probability than from the reference."""
    differing = 0
    for photo in sorted(PHOTOS.glob("*.jpg")):
        one, other = (each(photo, search=BeamSearch(width=5)) for each in (captioner, reference))
        if one.text != other.text or abs(one.log_prob - other.log_prob) > TOLERANCE:
            print(
                f"{photo.name} differs: {one.text} ({one.log_prob:.4f}), on the CPU {other.text} ({other.log_prob:.4f})"
            )
            differing += 1
    print(f"Photos with captions that differ from the CPU's: {differing}\n")
    return differing


def row(label: str, images: int, device: torch.device, limit: float | None, work: Callable[[], object]) -> None:
    """Print a line of the table of work."""
    with FlopCounterMode(display=False) as counter:
        work()
    seconds = median_seconds(work, device)
    share = "" if limit is None else f"{counter.get_total_flops() / seconds / limit:.2f}"
    print(f"| {label} | {images / seconds:.4g} | {share} |", flush=True)


def peak(device: torch.device, dtype: torch.dtype, side: int) -> float:
    """Operations per second of a large matrix product."""
    one, other = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / median_seconds(lambda: one @ other, device)


def copy_speed(device: torch.device, size: int) -> float:
    """Bytes per second, read and written."""
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / median_seconds(lambda: target.copy_(source), device)


def median_seconds(work: Callable[[], object], device: torch.device) -> float:
    """Median of a few calls, after one that is not measured."""
    seconds = []
    for _ in range(TRIALS[device.type] + 1):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


if __name__ == "__main__":
    sys.exit(main())
