"""Whether two versions of this repository give the same results: `python -m benchmarks.compare OLD NEW --images DIR`.

OLD and NEW are commits or folders with a checkout. Each captions the same photos from the command line with beam search
and with greedy search, writes the attention maps of some, and runs commands that must fail. Prints one JSON object and
exits with 1 where anything differs. Captions are equal as docs/reliability.md says: the same text, or two texts whose
log-probabilities differ by less than 1e-4; log-probabilities within 1e-3.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
SEARCHES = {"beam 5": ["--beam", "5"], "greedy": ["--greedy"]}
LOG_PROB_TOLERANCE, TIE = 1e-3, 1e-4
"""Nats."""
MAP_TOLERANCE = 1e-4
"""Nats of log-odds a patch."""
FAILURES = {
    "no input": ["caption", "nowhere/*.jpg"],
    "no such model": ["caption", "docs/photos/dog.jpg", "--model", "nowhere"],
    "not an image": ["caption", "README.md"],
    "unknown flag": ["caption", "docs/photos/dog.jpg", "--bean", "5"],
    "flags that do not fit together": ["caption", "docs/photos/dog.jpg", "--greedy", "--num-captions", "3"],
    "a configuration with mistakes": ["config", "check", "pyproject.toml"],
    "no such metric": ["score", "--references", "a.json", "--candidates", "b.json", "--metrics", "blue"],
}
"""What is wrong -> the command line; its exit code is compared."""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", help="a commit, or a folder with a checkout")
    parser.add_argument("new", help="likewise")
    parser.add_argument("--images", type=Path, default=ROOT / "docs/photos", help="folder; default: docs/photos")
    parser.add_argument(
        "--annotations", type=Path, help="COCO captions that name the images; default: all in the folder"
    )
    parser.add_argument("--split", default="test", help="split of the annotations; default: test")
    parser.add_argument("--limit", type=int, help="at most this many photos")
    parser.add_argument("--maps", type=int, default=20, help="photos whose attention maps are compared; default: 20")
    arguments = parser.parse_args(argv)
    photos = [str(photo.resolve()) for photo in find_photos(arguments)[: arguments.limit]]
    with checkout(arguments.old) as old, checkout(arguments.new) as new:
        found: dict[str, Any] = {"photos": len(photos)}
        for name, flags in SEARCHES.items():
            found[name] = compare_captions(*(caption(tree, photos, flags) for tree in (old, new)))
        found["maps"] = compare_maps(*(attention_maps(tree, photos[: arguments.maps]) for tree in (old, new)))
        found["exit codes"] = compare_exit_codes(old, new)
    print(json.dumps(found, indent=2))
    return int(any(found[name]["differences"] for name in (*SEARCHES, "maps", "exit codes")))


def find_photos(arguments: argparse.Namespace) -> list[Path]:
    if arguments.annotations is None:
        return sorted(each for each in arguments.images.iterdir() if each.suffix.lower() in (".jpg", ".png", ".webp"))
    images = json.loads(arguments.annotations.read_text(encoding="utf-8"))["images"]
    return [arguments.images / each["file_name"] for each in images if each.get("split") == arguments.split]


@contextmanager
def checkout(version: str) -> Iterator[Path]:
    """The folder of a checkout; of a commit one that is removed afterwards."""
    if Path(version).is_dir():
        yield Path(version).resolve()
        return
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(tree), version], check=True)
        try:
            yield tree
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)


def run(tree: Path, arguments: list[str]) -> "subprocess.CompletedProcess[str]":
    """The command line of a checkout, in that checkout."""
    return subprocess.run(
        [sys.executable, "-m", "captioner", *arguments],
        cwd=tree,
        env=os.environ | {"PYTHONPATH": str(tree)},
        capture_output=True,
        text=True,
        check=False,
    )


def caption(tree: Path, photos: list[str], flags: list[str]) -> list[dict[str, Any]]:
    """A record a photo."""
    with tempfile.TemporaryDirectory() as folder:
        listing = Path(folder) / "photos.txt"
        listing.write_text("\n".join(photos), encoding="utf-8")
        done = run(tree, ["caption", f"@{listing}", "--format", "jsonl", *flags])
        if done.returncode not in (0, 1):
            raise SystemExit(f"{tree}: exit code {done.returncode}\n{done.stderr}")
        return [json.loads(line) for line in done.stdout.splitlines()]


def compare_captions(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> dict[str, Any]:
    """Records that differ by more than rounding."""
    differences, ties, largest = [], 0, 0.0
    for one, other in zip(old, new, strict=True):
        gap = abs(one.get("log_prob", 0.0) - other.get("log_prob", 0.0))
        largest = max(largest, gap)
        if one.get("caption") != other.get("caption") and gap < TIE:
            ties += 1
        elif without_numbers(one) != without_numbers(other) or gap > LOG_PROB_TOLERANCE:
            differences.append([one, other])
    return {"differences": differences, "near ties": ties, "largest difference of log_prob": largest}


def without_numbers(record: dict[str, Any]) -> dict[str, Any]:
    """What of a record must be equal to the letter."""
    numbers = ("log_prob", "confidence", "unfamiliarity", "captions")
    return {key: value for key, value in record.items() if key not in numbers}


def attention_maps(tree: Path, photos: list[str]) -> dict[str, list[list[list[float]]]]:
    """Photo -> a map (h, w) a word, as `captioner inspect --json` writes it."""
    if not photos:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        done = run(tree, ["inspect", *photos, "-o", folder, "--json"])
        if done.returncode:
            raise SystemExit(f"{tree}: exit code {done.returncode}\n{done.stderr}")
        records = [json.loads(each.read_text(encoding="utf-8")) for each in sorted(Path(folder).glob("*.json"))]
    return {record["path"]: [word["map"] for word in record["words"]] for record in records}


def compare_maps(old: dict[str, list[list[list[float]]]], new: dict[str, list[list[list[float]]]]) -> dict[str, Any]:
    differences, largest = [], 0.0
    for photo in sorted(old.keys() | new.keys()):
        one, other = np.array(old.get(photo, [])), np.array(new.get(photo, []))
        gap = (
            float(np.abs(one - other).max()) if one.shape == other.shape and one.size else float(one.size != other.size)
        )
        largest = max(largest, gap)
        if gap > MAP_TOLERANCE:
            differences.append(photo)
    return {"photos": len(new), "differences": differences, "largest difference of a patch": largest}


def compare_exit_codes(old: Path, new: Path) -> dict[str, Any]:
    codes = {name: [run(tree, words).returncode for tree in (old, new)] for name, words in FAILURES.items()}
    return {"commands": len(codes), "differences": {name: both for name, both in codes.items() if len(set(both)) > 1}}


if __name__ == "__main__":
    sys.exit(main())
