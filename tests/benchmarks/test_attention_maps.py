"""Each map that was tried, on a few mosaics."""

from benchmarks.attention_maps import main


def test_each_map_is_measured(shapes, capsys):
    assert main(["--data", str(shapes), "--split", "train", "--mosaics", "2"]) == 0
    table = capsys.readouterr().out
    for name in ("raw", "relevance", "relevance, all steps", "relevance, keys and values", "integrated gradients"):
        assert f"| {name}" in table
