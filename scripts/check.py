#!/usr/bin/env python3
"""Check format, lint, types, layers and tests. Without arguments, skip the demo and the tests marked slow."""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv" / ("Scripts" if os.name == "nt" else "bin")
SCRATCH = "SCRATCH"
TESTS = [
    "python",
    "-m",
    "pytest",
    "--cov",
    "--durations=10",
    "--numprocesses=auto",
    "--maxprocesses=4",
    "--dist=worksteal",
]
STEPS = {
    "format": ["ruff", "format", "--check", "."],
    "lint": ["ruff", "check", "."],
    "types": ["mypy"],
    "layers": ["lint-imports", "--no-logo"],
    "demo": ["python", "scripts/demo.py", "--output", SCRATCH],
    "quick-tests": [*TESTS, "-m", "not slow"],
    "tests": TESTS,
}
QUICK = ("format", "lint", "types", "layers", "quick-tests")


def command(step: str, scratch: str) -> list[str]:
    """The command of a step, with the tools of .venv if it exists: git hooks may run this file with any Python."""
    program, *words = STEPS[step]
    folder = VENV if VENV.exists() else Path(sys.executable).parent
    return [str(folder / program), *(scratch if word == SCRATCH else word for word in words)]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("steps", nargs="*", metavar="STEP", help=", ".join(STEPS))
    steps = parser.parse_args(argv).steps or QUICK
    if unknown := [step for step in steps if step not in STEPS]:
        parser.error(f"no such step: {', '.join(unknown)} (there are {', '.join(STEPS)})")
    failed = []
    for step in steps:
        with tempfile.TemporaryDirectory() as scratch:
            words = command(step, scratch)
            print(f"== {step}: {shlex.join(words)}", flush=True)
            start = time.perf_counter()
            try:
                code = subprocess.run(words, cwd=ROOT, check=False).returncode
            except FileNotFoundError:
                print(f"{words[0]} is missing: run scripts/environment.py (or make) first", file=sys.stderr)
                return 2
            if code != 0:
                failed.append(step)
            print(f"== {step}: {'FAILED' if step in failed else 'ok'}, {time.perf_counter() - start:.0f} s", flush=True)
    if failed:
        print(f"check failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
