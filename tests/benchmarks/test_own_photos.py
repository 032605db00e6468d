"""The benchmark of own photos, in small."""

from benchmarks.own_photos import main
from tests.benchmarks.test_suggestions import TINY
from tests.serving.conftest import save_tiny_model


def test_it_scores_own_and_other_photos_before_and_after(shapes, tmp_path, capsys):
    (tmp_path / "tiny.yaml").write_text(TINY)
    flags = ["--configs", str(tmp_path / "tiny.yaml"), "--model", save_tiny_model(tmp_path), "--captions", "2"]
    data = ["--data", str(shapes), "--split", "train", "--other", str(shapes), "--photos", "10", "--test", "4"]
    assert main([*data, *flags, "-o", str(tmp_path / "runs")]) == 0
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in table] == ["configuration", "---", "before", str(tmp_path / "tiny.yaml")]
    assert all(len(row) == 6 for row in table)
    assert (tmp_path / "runs" / "tiny" / "model").is_dir()
