"""Create .venv with everything the project needs, in the tested versions. Do nothing if it is up to date.

python3 scripts/environment.py                      for development: all extras
python3 scripts/environment.py --extras ""          for use only
python3 scripts/environment.py --torch-index URL    with PyTorch from another package index, such as its CPU builds
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
INPUTS = ("pyproject.toml", "constraints.txt")
OLDEST = (3, 11)
EXTRAS = "convert,dev,embed,heif,lite2,meteor,onnx,parquet,ray,serve"


def interpreter(environment: Path) -> Path:
    """The Python executable of a virtual environment on this system."""
    return environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def fingerprint() -> str:
    """A hash of the files that an environment depends on."""
    digest = hashlib.sha256()
    for name in INPUTS:
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


def installed(stamp: Path) -> set[str] | None:
    """The extras of an up-to-date environment, or None if it is missing or out of date."""
    try:
        record = json.loads(stamp.read_text(encoding="utf-8"))
        return set(record["extras"]) if record["fingerprint"] == fingerprint() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def commands(environment: Path, extras: set[str], torch_index: str | None) -> list[list[str]]:
    """The commands that create an environment and install into it.

    PyTorch comes first, because it may come from another index. It is then installed without its dependencies, because
    that index may lack the versions pinned here.
    """
    python = interpreter(environment)
    create = [] if python.exists() else [[sys.executable, "-m", "venv", str(environment)]]
    pip = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--constraint", str(ROOT / INPUTS[1])]
    index = ["--no-deps", "--index-url", torch_index] if torch_index else []
    package = f"{ROOT}[{','.join(sorted(extras))}]" if extras else str(ROOT)
    return [*create, [*pip, *index, "torch", "torchvision"], [*pip, "--editable", package]]


def main(argv: list[str] | None = None) -> int:
    if sys.version_info < OLDEST:
        found = f"Python {sys.version.split()[0]} ({sys.executable})"
        print(f"{found} is too old: captioner needs Python {OLDEST[0]}.{OLDEST[1]} or newer", file=sys.stderr)
        return 2
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", type=Path, default=ROOT / ".venv", help="folder of the environment (.venv)")
    parser.add_argument("--extras", default=EXTRAS, help="extras to install (%(default)s)")
    parser.add_argument("--torch-index", metavar="URL", help="package index for torch and torchvision")
    parser.add_argument("--dry-run", action="store_true", help="only print the commands")
    arguments = parser.parse_args(argv)

    stamp = arguments.path / "captioner-environment.json"
    extras = {extra for extra in arguments.extras.split(",") if extra}
    present = installed(stamp)
    if present is not None and extras <= present:
        print(f"{arguments.path} is up to date")
        return 0
    extras |= present or set()
    for command in commands(arguments.path, extras, arguments.torch_index):
        print(shlex.join(command), flush=True)
        if not arguments.dry_run and (code := subprocess.run(command, check=False).returncode) != 0:
            print(f"{arguments.path} is not complete: the command above ended with {code}", file=sys.stderr)
            return 1
    if arguments.dry_run:
        return 0
    stamp.write_text(json.dumps({"fingerprint": fingerprint(), "extras": sorted(extras)}), encoding="utf-8")
    print(f"{arguments.path} is ready")
    return 0


if __name__ == "__main__":
    sys.exit(main())
