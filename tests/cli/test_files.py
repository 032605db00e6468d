"""Files and folders that are named on the command line are checked before torch is loaded."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from captioner.model_files import model_folder

CASES = {
    "caption --model nowhere data/images/000001.png": (4, "no such model"),
    "caption --model data data/images/000001.png": (4, "config.json is missing"),
    "caption data/images/000001.png -o README.md/captions.jsonl": (5, "README.md: File exists"),
    "inspect --model nowhere data/images/000001.png": (4, "no such model"),
    "inspect data/images/000001.png -o README.md/sheets": (2, "a file; name a folder"),
    "inspect --annotations nowhere": (3, "cannot be read"),
    "inspect --annotations nowhere.json": (3, "cannot be read"),
    "evaluate --annotations nowhere": (3, "cannot be read"),
    "evaluate --annotations data --model nowhere": (4, "no such model"),
    "evaluate --annotations data --compare nowhere": (4, "no such model"),
    "evaluate --annotations data --grounding nowhere": (3, "no such file"),
    "score --references nowhere --candidates data/images/000001.png": (3, "no such file"),
    "train --config nowhere": (2, "cannot read this configuration"),
    "train nowhere": (3, "no such folder"),
    "train data --set data.annotations=nowhere.json": (3, "cannot be read"),
    "train data --set data.text=nowhere.txt": (3, "cannot be read"),
    "train data --set data.shards=nowhere --set training.objective=cross_entropy": (3, "no .tar files"),
    "train data --init nowhere": (4, "no such model"),
    "train data --init data": (4, "config.json is missing"),
    "train data --init run": (4, "the model of this run is run/model"),
    "train data --resume nowhere": (4, "no such file"),
    "train data -o README.md": (2, "a file; name a folder"),
    "data check README.md": (3, "a file; name its folder"),
    "data suggest data/images --model nowhere": (4, "no such model"),
    "serve --model nowhere": (4, "no such model"),
    "export onnx --model nowhere -o new": (4, "no such model"),
    "export onnx -o README.md/exported": (2, "a file; name a folder"),
    "convert transformers:nowhere -o new": (4, "not a complete transformers captioner"),
}
SCRIPT = """
import contextlib, io, json, sys
from captioner.cli import main

results = {}
for line in json.load(sys.stdin):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as errors:
        results[line] = [main(line.split()), errors.getvalue(), "torch" in sys.modules]
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def results(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str, bool]]:
    """Exit code, message, and whether torch was loaded by then: all in one process, as that is faster."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "data").symlink_to(shapes)
    (folder / "README.md").write_text("a file")
    (folder / "run" / "model").parent.mkdir()
    (folder / "run" / "model").symlink_to(model_folder("bundled"))
    command, given = [sys.executable, "-c", SCRIPT], json.dumps([*CASES])
    done = subprocess.run(command, input=given, cwd=folder, capture_output=True, text=True, check=True)
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "data", "run"], "nothing is left behind"
    found: dict[str, tuple[int, str, bool]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("command", CASES)
def test_what_is_missing_is_named_before_torch_is_loaded(
    command: str, results: dict[str, tuple[int, str, bool]]
) -> None:
    code, message = CASES[command]
    found, errors, torch_loaded = results[command]
    assert message in errors
    assert errors.startswith("captioner: error: ")
    assert errors.count("\n") == 1
    assert (found, torch_loaded) == (code, False)
