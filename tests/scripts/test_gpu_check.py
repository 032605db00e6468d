"""The check of a GPU, on a machine without one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available() or os.name == "nt", reason="the small run of a machine without a GPU")
def test_without_a_gpu_it_says_so_and_checks_the_cpu(tmp_path):
    """All sections are written, none failed, and captions of the device are the CPU's."""
    results = tmp_path / "results.md"
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    script = ROOT / "scripts" / "gpu_check.sh"
    finished = subprocess.run([script, results], capture_output=True, text=True, env=environment, check=False)
    text = results.read_text()
    assert finished.returncode == 0, text
    assert "no GPU found" in finished.stderr
    assert finished.stdout == f"{results}\n"
    assert "There is no GPU in this machine" in text
    assert "Photos with captions that differ from the CPU's: 0\n" in text
    searches = [f"{kind}, {name}" for kind in ("search", "caption files") for name in ("Greedy", "BeamSearch")]
    for name in ("encode, float32", *searches, "train all layers, bfloat16"):
        assert f"| {name}" in text
    assert text.count("static steps | ") == 2
    assert "epoch 0: CIDEr-D" in text
    assert "FAILED" not in text
