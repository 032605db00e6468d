"""Python in the documentation that needs no data of the reader's runs as it stands."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RUNNABLE = {"README.md": "from captioner import Captioner", "docs/metrics.md": "from captioner.evaluation import"}
"""Page -> how the block that runs can be told."""


@pytest.mark.parametrize(("page", "mark"), RUNNABLE.items())
def test_an_example_runs(page, mark, monkeypatch, tmp_path):
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    chosen = [block for block in blocks if mark in block]
    assert chosen
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    for block in chosen:
        exec(compile(block, page, "exec"), {})
