"""Peak memory of `captioner caption` on folders of increasing size; it should stay constant. Unix only.

python -m benchmarks.memory                                 with a tiny untrained model
python -m benchmarks.memory --model bundled --counts 50 200 800
"""

import argparse
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from captioner import Captioner
from captioner.config import DecoderConfig, EncoderConfig, ModelConfig, TokenizerConfig
from captioner.images import IMAGE_EXTENSIONS
from captioner.model.caption_model import CaptionModel
from captioner.tokenizer import Tokenizer

PHOTOS = Path(__file__).resolve().parent.parent / "docs" / "photos"
RSS_UNIT = 1 if sys.platform == "darwin" else 1024
"""Bytes per unit of `ru_maxrss`."""


def tiny_model(folder: Path) -> Path:
    """Save a tiny untrained model."""
    tokenizer = Tokenizer.train(["a dog runs on the grass", "two people near a horse"], TokenizerConfig(min_count=1))
    decoder = DecoderConfig(width=64, layers=2, heads=4, max_length=16)
    config = ModelConfig(encoder=EncoderConfig(name="test_vit"), decoder=decoder)
    Captioner(CaptionModel(config, vocabulary=len(tokenizer)), tokenizer, name="tiny").save_pretrained(folder)
    return folder


def measure(photos: list[Path], count: int, model: str) -> tuple[float, float]:
    """Peak resident memory in MiB and seconds of a process that captions `count` copies of these photos."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "photos"
        folder.mkdir()
        for number, photo in enumerate(itertools.islice(itertools.cycle(photos), count)):
            shutil.copyfile(photo, folder / f"{number:06}{photo.suffix}")
        output = Path(scratch) / "captions.jsonl"
        command = [sys.executable, "-m", "captioner", "caption", str(folder), "--model", model]
        start = time.perf_counter()
        process = subprocess.Popen([*command, "--format", "jsonl", "-o", str(output)])
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        captions = len(output.read_text(encoding="utf-8").splitlines()) if output.exists() else 0
    if process.returncode != 0 or captions != count:
        sys.exit(f"captioner caption ended with {process.returncode} after {captions} of {count} captions")
    return usage.ru_maxrss * RSS_UNIT / 2**20, seconds


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Measure peak memory while captioning folders of different sizes.")
    parser.add_argument("--counts", type=int, nargs="+", default=[50, 200, 800], metavar="N", help="photos per folder")
    parser.add_argument("--folder", type=Path, default=PHOTOS, metavar="DIR", help="folder with the photos to copy")
    parser.add_argument("--model", metavar="M", help="a model folder or bundled (a tiny untrained model)")
    arguments = parser.parse_args(argv)
    photos = sorted(path for path in arguments.folder.iterdir() if path.suffix.lower() in IMAGE_EXTENSIONS)
    if not photos:
        sys.exit(f"{arguments.folder}: no photos in this folder")
    with tempfile.TemporaryDirectory() as scratch:
        model = arguments.model or str(tiny_model(Path(scratch)))
        print(f"{'photos':>8}{'peak MiB':>10}{'seconds':>10}")
        peaks = []
        for count in arguments.counts:
            peak, seconds = measure(photos, count, model)
            peaks.append(peak)
            print(f"{count:8}{peak:10.0f}{seconds:10.1f}", flush=True)
    print(f"last / first {peaks[-1] / peaks[0]:5.2f}   goal: 1, however many photos")
    return 0


if __name__ == "__main__":
    sys.exit(main())
