"""How long the first caption takes: `python -m benchmarks.startup`.

Medians over whole processes that take turns: Python alone, `import torch`, `import timm` (which imports torch), the
imports of `captioner caption`, that command on one photo, and on all, and on one photo the command of a folder that
`captioner export onnx` wrote, if `--onnx` names one. Then the modules that took longest to import.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

PHOTOS = Path(__file__).resolve().parent.parent / "docs" / "photos"
CAPTION = [sys.executable, "-m", "captioner", "caption"]
IMPORTS = "import captioner.cli.caption, captioner.pipeline"
SLOWEST = 12


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--photos", type=Path, default=PHOTOS)
    parser.add_argument("--onnx", type=Path, metavar="DIR", help="an exported folder")
    parser.add_argument("--output", type=Path, help="also write the numbers to this file")
    arguments = parser.parse_args(argv)
    photos = sorted(map(str, arguments.photos.glob("*.jpg")))
    if not photos:
        parser.error(f"{arguments.photos}: no photos (*.jpg) in this folder")
    commands = {
        "python": [sys.executable, "-c", "pass"],
        "import torch": [sys.executable, "-c", "import torch"],
        "import timm": [sys.executable, "-c", "import timm"],
        "imports": [sys.executable, "-c", IMPORTS],
        "one photo": [*CAPTION, photos[0]],
        f"{len(photos)} photos": [*CAPTION, *photos],
    }
    if arguments.onnx:
        commands["one photo, onnx"] = [sys.executable, str(arguments.onnx / "run.py"), photos[0]]
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for turn in range(arguments.rounds + 1):
        for name, command in commands.items():
            start = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            if turn:  # skip the first turn, which reads from disk
                seconds[name].append(time.perf_counter() - start)
    medians = {name: round(statistics.median(values), 3) for name, values in seconds.items()}
    found = {
        "seconds": medians,
        "one_photo_over_import_torch": round(medians["one photo"] / medians["import torch"], 2),
        "one_photo_over_import_timm": round(medians["one photo"] / medians["import timm"], 2),
        "slowest_imports_ms": slowest_imports(),
    }
    print(json.dumps(found, indent=2))
    if arguments.output:
        arguments.output.write_text(json.dumps(found, indent=2) + "\n")
    return 0


def slowest_imports() -> dict[str, int]:
    """Module -> milliseconds to import, without the modules it imports."""
    told = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", IMPORTS], check=True, capture_output=True, text=True
    )
    own = {}
    for line in told.stderr.splitlines():
        micros, _, name = line.removeprefix("import time:").partition("|")
        if line.startswith("import time:") and micros.strip().isdecimal():
            own[name.rpartition("|")[2].strip()] = round(int(micros) / 1000)
    return dict(sorted(own.items(), key=lambda each: -each[1])[:SLOWEST])


if __name__ == "__main__":
    sys.exit(main())
