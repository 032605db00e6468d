"""The benchmark of suggestions, in small."""

import math

from benchmarks.suggestions import main, random_photos
from tests.serving.conftest import save_tiny_model

TINY = """
data: {batch_images: 8}
training: {epochs: 1, trainer: {enable_progress_bar: false, accelerator: cpu}}
"""


def test_random_photos_are_interpolated():
    scores = {25: 0.1, 50: 0.3, 100: 0.2, 200: 0.5}
    assert random_photos(scores, 0.2) == 37.5
    assert random_photos(scores, 0.3) == 50
    assert random_photos(scores, 0.6) == math.inf


def test_it_compares_suggested_and_random_photos(shapes, tmp_path, capsys):
    (tmp_path / "tiny.yaml").write_text(TINY)
    flags = ["--config", str(tmp_path / "tiny.yaml"), "--model", save_tiny_model(tmp_path), "--seeds", "1"]
    assert main(["--data", str(shapes), *flags, "--photos", "4", "8", "-o", str(tmp_path / "runs")]) == 0
    rows = [line.split("|")[1].strip() for line in capsys.readouterr().out.splitlines()]
    assert rows == ["photos", "---", "4", "8"]
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == [
        f"{name}-{count}-0" for name in ("random", "suggested") for count in (4, 8)
    ]
