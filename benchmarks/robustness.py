"""Long runs and hostile files: the numbers of docs/reliability.md and SECURITY.md. Linux only.

python -m benchmarks.robustness memory      20,000 perturbed photos in one run: does memory stay flat?
python -m benchmarks.robustness kills       3,000 photos, killed 20 times and resumed: is every format whole?
python -m benchmarks.robustness disk DIR    a disk that fills up: DIR is on a small file system, a tmpfs of 2 MB
python -m benchmarks.robustness isolation   photos per second with --isolate over those without
python -m benchmarks.robustness files DIR   seconds and memory that each file of a folder takes

Each prints one JSON object; the exit code is 1 if a goal is missed.
"""

import argparse
import json
import multiprocessing
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.memory import PHOTOS, tiny_model

FORMATS = ("text", "jsonl", "csv", "coco", "parquet", "sidecar")
SIDE = 160
"""Longest side of a perturbed photo."""
MAX_GROWTH = 1.05
"""Largest memory in the last quarter of a run, over that in the first."""
MIN_RATIO = 0.9
"""Smallest speed with isolation, over that without."""
MAX_MIB, MAX_SECONDS = 300, 3.0
"""Most memory above the program's, and most time, that a file may take."""


def perturbed_photos(folder: Path, count: int) -> None:
    """Write copies of the repository's photos, each with other noise and brightness."""
    folder.mkdir()
    pictures = []
    for path in sorted(PHOTOS.glob("*.jpg")):
        picture = Image.open(path).convert("RGB")
        picture.thumbnail((SIDE, SIDE))
        pictures.append(np.asarray(picture, np.int16))
    generator = np.random.default_rng(0)
    for number in range(count):
        pixels = pictures[number % len(pictures)]
        noise = generator.integers(-40, 41, pixels.shape, np.int16) + generator.integers(-30, 31)
        Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8)).save(folder / f"{number:06}.jpg", quality=80)


def command(folder: Path, model: str, output: Path, *words: str) -> list[str]:
    start = [sys.executable, "-m", "captioner", "caption", str(folder), "--model", model, "--greedy"]
    return [*start, "-o", str(output), *words]


def memory(arguments: argparse.Namespace, scratch: Path) -> tuple[dict[str, Any], bool]:
    """Resident memory over a long run, from when the first photos are done."""
    perturbed_photos(scratch / "photos", arguments.photos)
    output = scratch / "out.jsonl"
    words = ["--format", "jsonl", *(["--isolate"] if arguments.isolate else [])]
    process = subprocess.Popen(command(scratch / "photos", arguments.model, output, *words), stderr=subprocess.DEVNULL)
    readings: list[tuple[int, float]] = []
    start = time.perf_counter()
    while process.poll() is None:
        time.sleep(0.5)
        status = Path(f"/proc/{process.pid}/status").read_text() if process.poll() is None else ""
        if (found := re.search(r"VmRSS:\s+(\d+)", status)) and output.exists():
            readings.append((output.read_bytes().count(b"\n"), int(found[1]) / 1024))
    seconds = time.perf_counter() - start
    quarter = arguments.photos / 4
    first = [size for done, size in readings if 0 < done <= quarter]
    last = [size for done, size in readings if done > 3 * quarter]
    growth = statistics.median(last) / statistics.median(first)
    lines = output.read_bytes().count(b"\n")
    found_all = process.returncode == 0 and lines == arguments.photos
    report = {"photos": lines, "first_mib": statistics.median(first), "last_mib": statistics.median(last)}
    return report | {"growth": growth, "seconds": seconds}, found_all and growth <= MAX_GROWTH


def kills(arguments: argparse.Namespace, scratch: Path) -> tuple[dict[str, Any], bool]:
    """Whether a run that is killed at random moments ends as one that is not."""
    perturbed_photos(scratch / "photos", arguments.photos)
    equal = {}
    for format in arguments.formats:
        whole, cut = scratch / f"whole-{format}", scratch / f"cut-{format}"
        words = ("--format", format)
        start = time.perf_counter()
        subprocess.run(
            command(scratch / "photos", arguments.model, whole, *words), check=True, stderr=subprocess.DEVNULL
        )
        seconds = time.perf_counter() - start
        source = random.Random(format)
        journal = cut.with_name(f".{cut.name}.journal.jsonl")
        for leg in range(arguments.kills):
            # A kill comes once the run has got on by its share, and a random moment later.
            goal = arguments.photos * (leg + source.random()) / (arguments.kills + 1)
            resumed = command(scratch / "photos", arguments.model, cut, *words, "--resume")
            process = subprocess.Popen(resumed, stderr=subprocess.DEVNULL)
            while process.poll() is None and (not journal.exists() or journal.read_bytes().count(b"\n") <= goal):
                time.sleep(0.01)
            time.sleep(source.random() * 2 * seconds / arguments.photos)
            process.send_signal(signal.SIGKILL)
            process.wait()
        subprocess.run(
            command(scratch / "photos", arguments.model, cut, *words, "--resume"), check=True, stderr=subprocess.DEVNULL
        )
        equal[format] = _content(whole) == _content(cut) and not journal.exists()
    return {"photos": arguments.photos, "kills": arguments.kills, "equal": equal}, all(equal.values())


def _content(path: Path) -> dict[str, bytes]:
    """The files at a path, by their place below it."""
    return {str(each.relative_to(path)): each.read_bytes() for each in (path, *path.rglob("*")) if each.is_file()}


def disk(arguments: argparse.Namespace, scratch: Path) -> tuple[dict[str, Any], bool]:
    """Whether captions and reports that fill a disk end with exit code 5, and leave old files as they were."""
    perturbed_photos(scratch / "photos", arguments.photos)
    good, report = True, {}
    for format in (*arguments.formats, "report"):
        folder = arguments.folder / "captions"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        old = folder / "old.txt"
        old.write_bytes(b"old" * 1000)
        filler = folder / "filler"
        with suppress(OSError), filler.open("wb") as file:
            free = shutil.disk_usage(folder).free
            file.write(bytes(max(0, free - 16384)))  # the run gets the rest
        words = command(scratch / "photos", arguments.model, folder / "out", "--format", format)
        if format == "report":
            photos = [str(each) for each in sorted((scratch / "photos").iterdir())[:20]]
            words = [sys.executable, "-m", "captioner", "inspect", *photos, "--model", arguments.model]
            words += ["-o", str(folder / "out"), "--html"]
        done = subprocess.run(words, capture_output=True, check=False)
        intact = old.read_bytes() == b"old" * 1000
        filler.unlink()
        report[format] = {"exit": done.returncode, "intact": intact}
        if format != "report":
            again = subprocess.run([*words, "--resume"], capture_output=True, check=False)
            report[format]["resumed"] = again.returncode
            good &= again.returncode in (0, 5)  # 5: it does not fit at all
        good &= done.returncode == 5 and intact
    shutil.rmtree(arguments.folder / "captions")
    return report, good


def isolation(arguments: argparse.Namespace, scratch: Path) -> tuple[dict[str, Any], bool]:
    """Photos per second with and without isolation, in turns, without their start."""
    from captioner import Captioner, Greedy

    captioner = Captioner.from_pretrained(arguments.model, device="cpu")
    perturbed_photos(scratch / "photos", arguments.photos)
    paths = sorted(map(str, (scratch / "photos").iterdir()))
    speeds: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(arguments.rounds):
        for isolate, found in speeds.items():
            outcomes = captioner.stream(iter(paths), search=Greedy(), isolate=isolate)
            next(outcomes)  # its batch, after the processes have started
            start = time.perf_counter()
            count = sum(1 for _ in outcomes)
            found.append(count / (time.perf_counter() - start))
    threads, processes = (statistics.median(found) for found in speeds.values())
    report = {"threads": threads, "processes": processes, "ratio": processes / threads}
    return report, report["ratio"] >= MIN_RATIO


def files(arguments: argparse.Namespace, scratch: Path) -> tuple[dict[str, Any], bool]:
    """The most time and memory that a file of a folder takes, each in a process of its own."""
    most: dict[str, tuple[float, float, str]] = {}
    for path in sorted(each for each in arguments.folder.iterdir() if each.is_file()):
        receive, send = multiprocessing.Pipe(duplex=False)
        process = multiprocessing.get_context("spawn").Process(target=_open, args=(str(path), send))
        process.start()
        send.close()
        try:
            most[path.name] = receive.recv()
        except EOFError:
            most[path.name] = (0.0, 0.0, "decoder_crash")
        process.join()
    seconds = max(most, key=lambda name: most[name][0])
    size = max(most, key=lambda name: most[name][1])
    report = {"files": len(most), "seconds": (seconds, most[seconds][0]), "mib": (size, most[size][1])}
    crashes = [name for name, (_, _, code) in most.items() if code == "decoder_crash"]
    good = most[seconds][0] <= MAX_SECONDS and most[size][1] <= MAX_MIB and not crashes
    return report | {"crashes": crashes}, good


def _open(path: str, send: Any) -> None:
    from captioner.errors import ImageError
    from captioner.images import open_image

    Path("/proc/self/clear_refs").write_text("5")  # the peak of memory starts anew
    before, start = _peak(), time.perf_counter()
    try:
        open_image(path)
        code = "opened"
    except ImageError as error:
        code = error.code
    send.send((time.perf_counter() - start, _peak() - before, code))


def _peak() -> float:
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a model folder or bundled; default: a tiny untrained model")
    parts = parser.add_subparsers(dest="part", required=True)
    adders = {name: parts.add_parser(name).add_argument for name in PARTS}
    for name, count in (("memory", 20_000), ("kills", 3_000), ("disk", 3_000), ("isolation", 320)):
        adders[name]("--photos", type=int, default=count)
    adders["memory"]("--isolate", action="store_true")
    for name in ("kills", "disk"):
        adders[name]("--formats", nargs="+", choices=FORMATS, default=FORMATS)
    adders["kills"]("--kills", type=int, default=20, help="per format")
    adders["isolation"]("--rounds", type=int, default=3)
    for name in ("disk", "files"):
        adders[name]("folder", type=Path)
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        arguments.model = arguments.model or str(tiny_model(Path(scratch) / "tiny"))
        report, good = PARTS[arguments.part](arguments, Path(scratch))
    print(json.dumps(report))
    return 0 if good else 1


PARTS = {"memory": memory, "kills": kills, "disk": disk, "isolation": isolation, "files": files}

if __name__ == "__main__":
    sys.exit(main())
