"""Compare the speed of commits of this repository: `python -m benchmarks.history COMMIT [COMMIT ...]`.

Each commit gets its own worktree. Commits take turns, with a new process for each turn. Prints medians over turns, in
milliseconds: decoding with the weights of `benchmarks.generation` (20 tokens, no early stop), and captioning one of the
photos in docs/photos with the commit's own bundled model (beam 5, batches of 16). Needs the extra `benchmark`, git and
the repository's history.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.peers import save_transformers

ROOT = Path(__file__).resolve().parent.parent
TURN = """
import json, sys, time
from pathlib import Path

import torch

from captioner import Captioner
from captioner.convert import from_transformers
from captioner.generation import BeamSearch, Greedy, generate

try:
    from captioner.model.packed import pack
except ImportError:  # a commit before it
    def pack(decoder):
        return decoder

weights, photos = map(Path, sys.argv[1:])
model, tokenizer = from_transformers(weights)
packed = pack(model.decoder)
lengths = {"max_length": 20, "min_length": 19}
found = {}
for images, beams in ((1, 1), (1, 5), (32, 5)):
    strategy = Greedy(**lengths) if beams == 1 else BeamSearch(width=beams, **lengths, consensus=False)
    features = torch.randn(images, 197, 384)
    seconds = []
    for turn in range(3 if images > 1 else 9):
        start = time.perf_counter()
        with torch.inference_mode():
            generate(packed, model.decoder.project(features), strategy, bos=tokenizer.bos, eos=tokenizer.eos)
        seconds.append(time.perf_counter() - start)
    found[f"decode {images}x{beams}"] = sorted(seconds[1:])[(len(seconds) - 1) // 2]
captioner = Captioner.from_pretrained()
paths = 2 * sorted(photos.glob("*.jpg"))
list(captioner.stream(paths, batch_size=16))
start = time.perf_counter()
list(captioner.stream(paths, batch_size=16))
found["bundled, a photo"] = (time.perf_counter() - start) / len(paths)
print(json.dumps(found))
"""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commits", nargs="+", metavar="COMMIT")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "transformers"
        save_transformers(weights)
        trees = {commit: Path(folder) / commit for commit in arguments.commits}
        for commit, tree in trees.items():
            git("worktree", "add", "--detach", str(tree), commit)
        try:
            turns = [{commit: turn(tree, weights) for commit, tree in trees.items()} for _ in range(arguments.rounds)]
        finally:
            for tree in trees.values():
                git("worktree", "remove", "--force", str(tree))
    names = list(turns[0][arguments.commits[0]])
    print("| | " + " | ".join(names) + " |\n" + "|---" * (1 + len(names)) + "|")
    for commit in arguments.commits:
        medians = (1000 * statistics.median(each[commit][name] for each in turns) for name in names)
        subject = git("show", "-s", "--format=%h %s", commit)
        print(f"| {subject} | " + " | ".join(f"{value:,.0f}" for value in medians) + " |")
    return 0


def turn(tree: Path, weights: Path) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", TURN, str(weights), str(ROOT / "docs/photos")],
        env=os.environ | {"PYTHONPATH": str(tree)},
        cwd=tree,
        check=True,
        stdout=subprocess.PIPE,
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def git(*arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(ROOT), *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
