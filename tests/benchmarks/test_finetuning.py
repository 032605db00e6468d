"""The benchmark of fine-tuning, in small."""

from benchmarks.finetuning import main


def test_it_measures_each_way(capsys):
    assert main(["--encoder", "test_efficientnet", "--train", "2", "--images", "2", "--rounds", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == [
        "float32",
        "float32, depthwise frozen",
        "bfloat16",
        "bfloat16, depthwise frozen",
    ]
