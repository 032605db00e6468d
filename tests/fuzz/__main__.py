"""Read mutated files for as long as told: `python -m tests.fuzz --seconds 3600`.

The kinds take turns. A file that raises anything but a CaptionerError, or takes too long, is kept in
`tests/fuzz/found/KIND/`, where the tests read it from then on. Every round also captions a folder of mutated images
through the command line. Prints a line for each defect and at the end; the exit code is 1 if there was one.
"""

import argparse
import hashlib
import os
import random
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded

from tests.fuzz.mutations import mutants
from tests.fuzz.targets import Target, all_targets, check_bytes

FOUND = Path(__file__).parent / "found"
ROUND_SECONDS = 5.0
"""Time for each kind in a round."""
EXAMPLES = 50
"""Files that are drawn at a time."""
COMMAND_SECONDS = 200
"""Longest that the command line may take for them."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0, help="how long to go on; default: 600")
    parser.add_argument("--kinds", nargs="+", metavar="KIND", help="only these kinds")
    parser.add_argument("--seed", type=int, default=None, help="default: another one each time")
    arguments = parser.parse_args(argv)
    end = time.monotonic() + arguments.seconds
    source = random.Random(arguments.seed)
    counts: Counter[str] = Counter()
    defects: set[str] = set()
    with tempfile.TemporaryDirectory() as scratch:
        targets = all_targets(Path(scratch))
        while time.monotonic() < end:
            for name in arguments.kinds or targets:
                until = min(end, time.monotonic() + ROUND_SECONDS)
                counts[name] += fuzz(name, targets[name], until, source, defects)
            if not arguments.kinds:
                counts["command line"] += caption_folder(targets["images"], Path(scratch), source, defects)
    print(f"{counts.total():,} files: {', '.join(f'{count:,} {name}' for name, count in counts.items())}")
    print(f"{len(defects)} defects")
    return 1 if defects else 0


def fuzz(name: str, target: Target, until: float, source: random.Random, defects: set[str]) -> int:
    """Mutate files of a kind until a time; how many there were."""
    count = 0
    while time.monotonic() < until:
        for content in mutated(target, EXAMPLES, source):
            count += 1
            try:
                check_bytes(target, content)
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # a PanicException is no Exception
                last = traceback.extract_tb(error.__traceback__)[-1]
                where = f"{name}: {type(error).__name__} at {Path(last.filename).name}:{last.lineno}"
                if where not in defects:
                    defects.add(where)
                    keep(name, content)
                    print(f"{where}: {str(error)[:200]}", flush=True)
            if time.monotonic() > until:
                break
    return count


def mutated(target: Target, count: int, source: random.Random) -> list[bytes]:
    """Some files that are like a target's."""
    files: list[bytes] = []

    @seeded(source.getrandbits(64))
    @settings(max_examples=count, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(mutants(target.seeds))
    def draw(content: bytes) -> None:
        files.append(content)

    draw()
    return files


def keep(name: str, content: bytes) -> None:
    """Save a file that showed a defect."""
    path = FOUND / name / hashlib.sha256(content).hexdigest()[:16]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def caption_folder(target: Target, scratch: Path, source: random.Random, defects: set[str]) -> int:
    """Caption a folder of mutated images in a process: how many there were."""
    folder = scratch / "command"
    folder.mkdir(exist_ok=True)
    files = mutated(target, EXAMPLES, source)
    for number, content in enumerate(files):
        (folder / f"{number:03}.jpg").write_bytes(content)
    command = [sys.executable, "-m", "captioner", "caption", str(folder), "--model", str(scratch / "tiny"), "--greedy"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    try:
        done = subprocess.run(command, capture_output=True, env=environment, timeout=COMMAND_SECONDS, check=False)
        problem = done.returncode not in (0, 1) or b"Traceback" in done.stderr or b"a bug" in done.stderr
        text = done.stderr.decode(errors="replace")[-500:] if problem else ""
    except subprocess.TimeoutExpired:
        text = "hangs"
    if text:
        defects.add(f"command line: {text}")
        print(f"command line: {text}", flush=True)
        for content in files:
            keep("images", content)
    return len(files)


if __name__ == "__main__":
    sys.exit(main())
