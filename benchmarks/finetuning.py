"""Fine-tuning an encoder on a CPU: float32, bfloat16, and depthwise filters frozen, in turns.

`python -m benchmarks.finetuning` prints images per second of a forward and backward pass, and ratios to float32.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Literal

import torch

from captioner.config import EncoderConfig
from captioner.model.encoder import VisionEncoder


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="tf_efficientnet_lite2")
    parser.add_argument("--train", type=int, default=4, help="layer groups that are trained (default: 4)")
    parser.add_argument("--images", type=int, default=24, help="images of a batch (default: 24)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    encoder = VisionEncoder(EncoderConfig(name=arguments.encoder))
    images = torch.randint(0, 256, (arguments.images, 3, *encoder.image_size), dtype=torch.uint8)

    def step(dtype: torch.dtype, depthwise: Literal["frozen", "train"]) -> Callable[[], None]:
        def run() -> None:
            encoder.freeze(arguments.train, depthwise=depthwise)
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                encoder.train()(images).float().square().mean().backward()

        return run

    ways = {
        "float32": step(torch.float32, "train"),
        "float32, depthwise frozen": step(torch.float32, "frozen"),
        "bfloat16": step(torch.bfloat16, "train"),
        "bfloat16, depthwise frozen": step(torch.bfloat16, "frozen"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(arguments.rounds + 1):
        for name, run in ways.items():
            start = time.perf_counter()
            run()
            if number:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)
    base = statistics.median(seconds["float32"])
    for name, found in seconds.items():
        median = statistics.median(found)
        print(f"{name:28} {arguments.images / median:6.1f} images/s   {base / median:5.2f} times float32")
    return 0


if __name__ == "__main__":
    sys.exit(main())
