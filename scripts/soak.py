#!/usr/bin/env python3
"""Kill training (SIGKILL) at random steps, resume it, and compare with an uninterrupted run, bit for bit: weights,
their average, the state of the optimizer, and metrics.csv.

A checkpoint is saved at every step, and a kill may hit one being written. Prints one line per variant; the exit code is
1 if one differs.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from captioner.checkpoint import load_training_file
from captioner.training.history import read_table

CONFIG = """
data: {root: %s, batch_images: 2, captions_per_image: 1, augment: true}
encoder: {name: test_convnext, image_size: [64, 64], train: all}
decoder: {width: 32, layers: 1, heads: 2, max_length: 24, dropout: 0.1}
tokenizer: {min_count: 1}
optimization: {learning_rate: 3.0e-3, warmup_steps: 2, ema_decay: 0.9}
training:
  epochs: 2
  patience: 0
  checkpoint_minutes: 0
  trainer: {enable_progress_bar: false, accelerator: cpu, log_every_n_steps: 1}
"""
STORED = ("data.augment=false", "data.feature_views=2", "encoder.train=none")
VARIANTS: dict[str, tuple[str, ...]] = {
    "photos, two batches a step": ("training.trainer.accumulate_grad_batches=2",),
    "photos, averaged weights": (),
    "photos, loader workers": ("data.workers=2",),
    "photos, no average": ("optimization.ema_decay=null",),
    "stored features": (*STORED, "data.features=STORE"),
    "stored features, loader workers": (*STORED, "data.features=STORE", "data.workers=2"),
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/shapes"), help="a small data set (draw_shapes.py)")
    parser.add_argument("--kills", type=int, default=10, help="kills per variant")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seed", type=int, default=0, help="seed that chooses the steps at which a run is killed")
    arguments = parser.parse_args(argv)
    failed = 0
    for name in arguments.variants:
        with tempfile.TemporaryDirectory() as folder:
            text, same = soak(Path(folder), arguments.data, VARIANTS[name], arguments.kills, arguments.seed)
        print(f"{name}: {text}: {'equal' if same else 'DIFFERENT'}", flush=True)
        failed += not same
    return 1 if failed else 0


def start_process(*words: str) -> subprocess.Popen[bytes]:
    """`captioner` with arguments, in a process group of its own."""
    command = [sys.executable, "-m", "captioner", *words]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def soak(
    folder: Path, data: Path, settings: Sequence[str], kills: int, seed: int, start: Callable[..., Any] = start_process
) -> tuple[str, bool]:
    """Run training twice, killing one of the runs: a summary, and whether both end the same."""
    (folder / "tiny.yaml").write_text(CONFIG % data.resolve())
    whole, cut = folder / "whole", folder / "cut"
    sets = [word for each in settings for word in ("--set", each.replace("STORE", str(folder / "store")))]
    train = ["train", "--config", str(folder / "tiny.yaml"), *sets, "-o"]
    if start(*train, str(whole)).wait() != 0:
        return "the uninterrupted run failed", False
    steps = max(read_table(whole / "metrics.csv"))
    chosen = sorted(random.Random(seed).sample(range(1, steps), min(kills, steps - 1)))
    for leg, step in enumerate(chosen, start=1):
        process = start(*train, str(cut), "--resume", "auto")
        while process.poll() is None and (_legs(cut) < leg or _steps(cut) < step):
            time.sleep(0.002)
        if process.poll() is not None:
            return f"leg {leg} ended by itself", False
        if sys.platform == "win32":
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)  # its loader workers too
        process.wait()
    same = start(*train, str(cut), "--resume", "auto").wait() == 0 and all(
        (whole / name).read_bytes() == (cut / name).read_bytes() for name in ("model/model.safetensors", "metrics.csv")
    )
    one, other = (load_training_file(run / "checkpoints" / "last.ckpt") for run in (whole, cut))
    parts = ("state_dict", "current_model_state", "averaging_state", "optimizer_states", "lr_schedulers")
    same = same and all(_equal(one.get(part), other.get(part)) for part in parts)
    return f"{steps} steps, killed at {', '.join(map(str, chosen))}", same


def _equal(one: Any, other: Any) -> bool:
    """Whether two structures of plain data and tensors are bit-identical."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(_equal(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_equal, one, other))
    return bool(one == other)


def _legs(run: Path) -> int:
    """How often the run was started or resumed."""
    lines = run / "environment.jsonl"
    return len(lines.read_text().splitlines()) if lines.exists() else 0


def _steps(run: Path) -> int:
    """The last step in the run's metrics.csv."""
    table = run / "metrics.csv"
    return max(read_table(table), default=0) if table.exists() else 0


if __name__ == "__main__":
    sys.exit(main())
