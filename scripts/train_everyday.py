#!/usr/bin/env python3
"""Train the bundled model: fine-tune the encoder in two cycles, train the decoder on, then for CIDEr-D.

`--quick` leaves the encoder as it comes: cross-entropy, then CIDEr-D. The same command goes on where it was
interrupted. `--minutes` ends a leg in time.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

FULL = ("finetune", "finetune", "decoder", "self_critical")
QUICK = ("quick", "self_critical")
QUICK_SELF_CRITICAL = (
    "training.epochs=1",
    "training.trainer.limit_train_batches=1000",  # of 1,063
    "optimization.learning_rate=1.0e-4",
)
"""Settings of the quick recipe's self-critical stage: short, with twice the preset's learning rate."""
CONFIGS = Path(__file__).resolve().parent.parent / "captioner" / "presets"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flickr8k", default="data/flickr8k", help="its folder (default: data/flickr8k)")
    parser.add_argument("--coco", default="data/coco_subset", help="COCO's folder (default: data/coco_subset)")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/everyday"))
    parser.add_argument("--quick", action="store_true", help="a shorter recipe (under 90 minutes), for a new folder")
    parser.add_argument("--minutes", type=float, help="save and stop after this time")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="passed on to every stage")
    arguments = parser.parse_args(argv)
    end = time.monotonic() + 60 * arguments.minutes if arguments.minutes else None

    sources = f"[{{name: flickr8k, root: {arguments.flickr8k}}}, {{name: coco, root: {arguments.coco}}}]"
    init: list[str] = []
    for number, stage in enumerate(QUICK if arguments.quick else FULL, start=1):
        folder = arguments.output / f"{number}_{stage}"
        if not (folder / "model" / "config.json").is_file():
            settings = [f"data.sources={sources}"]
            if stage != "finetune":
                settings.append(f"data.features={arguments.output / 'features'}")
            if arguments.quick:
                settings.append("data.feature_views=1")
                if stage == "self_critical":
                    settings += QUICK_SELF_CRITICAL
            command = [sys.executable, "-m", "captioner", "train", "-o", str(folder), "--resume", "auto", *init]
            command += ["--config", str(CONFIGS / f"everyday_{stage}.yaml")]
            command += [word for each in (*settings, *arguments.set) for word in ("--set", each)]
            if code := run(command, end):
                return code
        init = ["--init", str(folder / "model")]
    print(folder / "model")
    return 0


def run(command: Sequence[str], end: float | None) -> int:
    """The exit code of a stage, which is asked to save and stop at `end`."""
    process = subprocess.Popen(command)
    try:
        return process.wait(None if end is None else max(0.0, end - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.terminate()
        return process.wait()
    except KeyboardInterrupt:
        return process.wait()


if __name__ == "__main__":
    sys.exit(main())
