import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from captioner.cli import main


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three pictures of known sizes with known words."""
    texts = {
        "train/a": ("A dog runs.\nThe dog's ball\n", (10, 20)),
        "train/b": ("a dog\n", (30, 8)),
        "val/c": ("Ein Hund läuft über die Straße\n", (12, 12)),
    }
    for name, (text, size) in texts.items():
        path = tmp_path / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", size).save(path)
        path.with_suffix(".txt").write_text(text, encoding="utf-8")
    return tmp_path


def test_a_sound_set_passes(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(photos)]) == 0
    assert capsys.readouterr() == ("", "problems: 0\n")


def test_problems_are_printed_one_a_line(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "val/c.png").write_bytes(b"")
    photos.joinpath("captions.jsonl").write_text(
        '{"path": "train/a.png", "caption": ""}\n{"path": "x\\ty\\u001b.png", "caption": "A dog."}\n'
        '{"path": "val/c.png", "caption": "A dog."}\n',
        encoding="utf-8",
    )
    flags = ["--annotations", str(photos / "captions.jsonl"), "--images", str(photos)]
    assert main(["data", "check", *flags]) == 1
    out, err = capsys.readouterr()
    lines = [line.split("\t") for line in out.splitlines()]
    assert [(line[0], line[1]) for line in lines] == [
        ("empty_caption", "captions.jsonl:1"),
        ("missing_image", "captions.jsonl:2"),
        ("empty", "val/c.png"),
    ]
    assert [len(line) for line in lines] == [3, 3, 3]
    assert lines[1][2] == f"x\\ty\\x1b.png is not in {photos}"
    assert err == "problems: 3\n"
    assert main(["data", "check", *flags, "--no-decode"]) == 1
    assert capsys.readouterr().err == "problems: 2\n"
    assert main(["data", "check", str(photos), "--format", "folder", "--no-decode"]) == 0


def test_stats(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "stats", str(photos)]) == 0
    printed = json.loads(capsys.readouterr().out)
    top = printed.pop("top_words")
    assert list(top.items())[:3] == [("a", 2), ("dog", 2), ("ball", 1)]
    assert printed == {
        "images": 3,
        "captions": 4,
        "splits": {"train": 2, "val": 1},
        "captions_per_image": {"min": 1, "mean": 4 / 3, "max": 2},
        "caption_words": {"mean": 14 / 4, "p95": 6, "max": 6},
        "vocabulary": 12,
        "words_seen_once": 10,
        "image_sizes": {
            "width": {"min": 10, "median": 12, "max": 30},
            "height": {"min": 8, "median": 12, "max": 20},
        },
    }
    assert main(["data", "stats", str(photos), "--no-decode"]) == 0
    assert "image_sizes" not in json.loads(capsys.readouterr().out)


def test_pictures_outside_every_split_are_counted(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (4, 4)).save(photos / "loose.png")
    (photos / "loose.txt").write_text("loose", encoding="utf-8")
    assert main(["data", "stats", str(photos), "--no-decode"]) == 0
    assert json.loads(capsys.readouterr().out)["splits"] == {"none": 1, "train": 2, "val": 1}


def test_stats_refuse_a_broken_set(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos.joinpath("captions.csv").write_text("path,caption\ntrain/a.png,\n", encoding="utf-8")
    assert main(["data", "stats", str(photos)]) == 2
    assert capsys.readouterr().err == (
        "captioner: error: captions.csv:2: the caption is empty; write one or remove the entry; "
        f"run `captioner data check --annotations {photos / 'captions.csv'} --images {photos}` for the whole list\n"
    )


@pytest.mark.parametrize("action", ["check", "stats"])
def test_a_data_set_must_be_named(action: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", action]) == 2
    assert capsys.readouterr().err.startswith("captioner: error: no data set given; name a folder")


def test_nothing_found_is_exit_3(tmp_path: Path) -> None:
    assert main(["data", "check", str(tmp_path)]) == 3


def test_the_verb_does_not_import_torch(photos: Path) -> None:
    code = (
        "import sys; from captioner.cli import main; "
        f"main(['data', 'check', {str(photos)!r}]); assert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_prepare_says_what_to_fetch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "prepare", "coco", str(tmp_path / "my coco"), "--archives", str(tmp_path / "my zips")]) == 3
    out, err = capsys.readouterr()
    assert out.startswith(
        "# train2014.zip: 0 of 13,510,573,713 bytes are there; "
        "SHA-256 ede4087e640bddba550e090eae701092534b554b42b05ac33f0300b984b31775\n"
    )
    assert out.count("\ncurl ") == 4
    assert f"--output '{tmp_path}/my zips/train2014.zip' http://images.cocodataset.org/zips/train2014.zip\n" in out
    assert subprocess.run(["sh", "-n"], input=out, text=True, check=False).returncode == 0
    names = "train2014.zip, val2014.zip, annotations_trainval2014.zip, caption_datasets.zip"
    assert err == (
        f"captioner: error: {tmp_path}/my zips: missing or incomplete: {names}; "
        "fetch them as printed above, then run this again\n"
    )
    assert list(tmp_path.iterdir()) == []
