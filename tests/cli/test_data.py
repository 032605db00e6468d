import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from captioner.cli import main
from captioner.data.formats import load_captions

OWN = ("train/a.png", "train/b.png", "val/c.png")
"""The pictures of `photos`."""


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three pictures of known sizes with known words."""
    texts = {
        "train/a": ("A dog runs.\nThe dog's ball\n", (100, 200)),
        "train/b": ("a dog\n", (300, 80)),
        "val/c": ("Ein Hund läuft über die Straße\n", (120, 120)),
    }
    for name, (text, size) in texts.items():
        path = tmp_path / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", size).save(path)
        path.with_suffix(".txt").write_text(text, encoding="utf-8")
    return tmp_path


def test_a_sound_set_passes(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(photos)]) == 0
    assert capsys.readouterr() == ("", "problems: 0; 3 images usable; training can start\n")


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
    assert [line[:3] for line in lines] == [
        ["error", "empty_caption", "captions.jsonl:1"],
        ["error", "missing_image", "captions.jsonl:2"],
        ["error", "empty", "val/c.png"],
    ]
    assert [len(line) for line in lines] == [4, 4, 4]
    assert lines[1][3] == f"x\\ty\\x1b.png is not in {photos}"
    refused = "of 3 images usable; training cannot start before the errors are corrected\n"
    assert err == f"problems: 3; 0 {refused}"
    assert main(["data", "check", *flags, "--no-decode"]) == 1
    assert capsys.readouterr().err == f"problems: 2; 1 {refused}"
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
            "width": {"min": 100, "median": 120, "max": 300},
            "height": {"min": 80, "median": 120, "max": 200},
        },
    }
    assert main(["data", "stats", str(photos), "--no-decode"]) == 0
    assert "image_sizes" not in json.loads(capsys.readouterr().out)


def test_pictures_outside_every_split_are_counted(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (4, 4)).save(photos / "loose.png")
    (photos / "loose.txt").write_text("loose", encoding="utf-8")
    assert main(["data", "stats", str(photos), "--no-decode"]) == 0
    assert json.loads(capsys.readouterr().out)["splits"] == {"none": 1, "train": 2, "val": 1}


def test_problems_that_do_not_stop_training_are_warnings(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "train/a.txt").write_bytes(b"\xef\xbb\xbfA dog.")
    (photos / "val/b.png").write_bytes((photos / "train/b.png").read_bytes())
    (photos / "val/b.txt").write_text("a dog")
    assert main(["data", "check", str(photos)]) == 1
    out, err = capsys.readouterr()
    assert [line.split("\t")[:2] for line in out.splitlines()] == [["warning", "bom"], ["warning", "same_picture"]]
    assert err == "problems: 2; 4 images usable; training can start\n"


def test_stats_describe_what_is_usable(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "val/c.png").write_bytes(b"no picture")
    assert main(["data", "check", str(photos)]) == 1
    assert capsys.readouterr().err == (
        "problems: 1; 2 of 3 images usable; training can start with --skip-bad, or after `captioner data fix`\n"
    )
    assert main(["data", "stats", str(photos)]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["images"] == 2
    assert err == "captioner: 1 unusable images are left out; see captioner data check\n"
    photos.joinpath("captions.csv").write_text("path,caption\ntrain/a.png,\n", encoding="utf-8")
    assert main(["data", "stats", str(photos)]) == 2
    assert "no image is usable; `captioner data check` says why" in capsys.readouterr().err


def test_fix_shows_what_it_would_do_and_does_it(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "Zwei Hunde im Café, nämlich große\n"
    (photos / "train/a.txt").write_bytes(text.encode("utf-16"))
    (photos / "train/b.txt").write_bytes(text.encode("cp1252"))
    (photos / "val/c.png").write_bytes(b"no picture")
    (photos / "val/c.txt").rename(photos / "val/c.TXT")
    Image.new("RGB", (90, 90)).save(photos / "val/d.png")
    (photos / "val/d.txt").write_bytes(b"\n")
    before = {path: path.read_bytes() for path in photos.rglob("*.*")}
    assert main(["data", "check", str(photos)]) == 1
    codes = [line.split("\t")[1:3] for line in capsys.readouterr().out.splitlines()]
    assert [place for code, place in codes if code == "encoding"] == ["train/a.txt", "train/b.txt"]
    expected = [
        ["convert", str(photos / "train/a.txt"), "utf-16 to UTF-8"],
        ["convert", str(photos / "train/b.txt"), "cp1252 to UTF-8"],
        ["move", str(photos / "val/d.txt"), "the file holds no caption"],
        ["move", str(photos / "val/c.png")],
        ["move", str(photos / "val/c.TXT"), "the caption of val/c.png"],
    ]
    for flags in ([], ["--write"]):
        assert {path: path.read_bytes() for path in photos.rglob("*.*")} == before
        assert main(["data", "fix", str(photos), *flags]) == 0
        out, err = capsys.readouterr()
        lines = [line.split("\t") for line in out.splitlines()]
        assert [line[: len(each)] for line, each in zip(lines, expected, strict=True)] == expected
        assert err.startswith(f"repairs: 5; {'done' if flags else 'nothing done yet; --write does it'}")
    quarantine = photos.with_name(f"{photos.name}-quarantine")
    moved = {path.relative_to(quarantine): path.read_bytes() for path in quarantine.rglob("*.*")}
    names = ("train/a.txt", "train/b.txt", "val/c.png", "val/c.TXT", "val/d.txt")
    assert moved == {Path(name): before[photos / name] for name in names}
    assert (photos / "train/a.txt").read_text(encoding="utf-8") == text
    assert (photos / "train/b.txt").read_text(encoding="utf-8") == text
    assert main(["data", "check", str(photos)]) == 1  # d.png has no caption
    assert capsys.readouterr().err == "problems: 1; 2 images usable; training can start\n"
    assert main(["data", "fix", str(photos)]) == 0
    assert capsys.readouterr().err == "repairs: 0\n"
    (photos / "train/a.txt").write_bytes(b"\n")
    assert main(["data", "fix", str(photos), "--write"]) == 0
    assert (quarantine / "train/a.txt").read_bytes() == before[photos / "train/a.txt"]
    assert (quarantine / "train/a-2.txt").read_bytes() == b"\n"


def test_splits_are_written_for_training(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(7):
        noise = np.random.default_rng(number).integers(0, 256, (6, 8, 3), np.uint8)
        Image.fromarray(noise).resize((96, 64), Image.Resampling.BICUBIC).save(photos / f"{number}.png")
        (photos / f"{number}.txt").write_text(f"picture {number}\nseen twice", encoding="utf-8")
    Image.open(photos / "3.png").resize((48, 32)).save(photos / "copy.png")
    (photos / "copy.txt").write_text("picture 3", encoding="utf-8")
    (photos / "6.png").write_bytes(b"no picture")
    flags = ("--val", "0.2", "--test", "0.2")
    assert main(["data", "split", str(photos), *flags]) == 0
    out, err = capsys.readouterr()
    assert out == f"{photos / 'captions.json'}\n"
    assert err.splitlines()[1:] == ["train 6, test 2, val 2; 2 copies in 1 groups"]
    assert "left out" in err
    assert "6.png" in err
    written = load_captions(photos)
    names = {image.path.relative_to(photos).as_posix(): image.split for image in written.images}
    assert sorted(names) == ["0.png", "1.png", "2.png", "3.png", "4.png", "5.png", "copy.png", *OWN]
    assert names["3.png"] == names["copy.png"]
    assert dict(zip(names, (image.captions for image in written.images), strict=True))["0.png"] == (
        "picture 0",
        "seen twice",
    )
    before = (photos / "captions.json").read_bytes()
    assert main(["data", "split", str(photos), *flags]) == 2
    assert "captions.json: exists; name the file to write with -o" in (said := capsys.readouterr().err)
    assert f"anew: captioner data split {photos} --format folder -o {photos / 'captions.json'}" in said
    (photos / "captions.json").unlink()
    assert main(["data", "split", str(photos), *flags, "-o", str(photos / "captions.json")]) == 0
    assert (photos / "captions.json").read_bytes() == before
    assert main(["data", "split", str(photos), *flags, "--seed", "1", "-o", str(tmp_path / "other.json")]) == 0
    assert (tmp_path / "other.json").read_bytes() != before
    for number in range(10, 20):
        Image.new("RGB", (8, 8), (9 * number, 0, 0)).save(photos / f"{number}.png")
        (photos / f"{number}.txt").write_text(f"picture {number}", encoding="utf-8")
    assert main(["data", "split", str(photos), *flags, "--format", "folder", "-o", str(photos / "captions.json")]) == 0
    grown = {each.path.relative_to(photos).as_posix(): each.split for each in load_captions(photos).images}
    assert grown.items() > names.items()
    assert {grown[f"{number}.png"] for number in range(10, 20)} == {"train", "val", "test"}


def test_texts_that_changed_after_the_split_are_told(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "split", str(photos)]) == 0
    capsys.readouterr()
    main(["data", "check", str(photos)])
    assert "unread_text" not in capsys.readouterr().out
    for number, name in enumerate(("train/a.txt", "captions.json", "train/b.txt", "val/c.txt")):
        os.utime(photos / name, (number, number))
    assert main(["data", "check", str(photos)]) == 1
    line = next(line for line in capsys.readouterr().out.splitlines() if "unread_text" in line)
    command = f"captioner data split {photos} --format folder -o {photos / 'captions.json'}"
    said = "2 text files are newer than captions.json, which is read instead; read them by: "
    assert line == f"warning\tunread_text\ttrain/b.txt\t{said}{command}"
    assert main(shlex.split(command)[1:]) == 0
    capsys.readouterr()
    main(["data", "check", str(photos)])
    assert "unread_text" not in capsys.readouterr().out


def test_a_page_of_the_problems(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(photos), "--html", str(tmp_path / "page.html")]) == 0
    assert "0 problems; 3 images usable; training can start." in (tmp_path / "page.html").read_text(encoding="utf-8")
    (photos / "val/c.txt").write_text("Hund", encoding="utf-8")
    assert main(["data", "check", str(photos), "--html", str(tmp_path / "page.html")]) == 1
    assert "one_word" in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert main(["data", "check", str(photos), "--html", str(tmp_path)]) == 2
    assert "a folder; name a file" in capsys.readouterr().err


def test_quarantine_is_outside_the_data_set(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "fix", str(photos), "--quarantine", str(photos / "bad")]) == 2
    assert "name another folder" in capsys.readouterr().err


@pytest.mark.parametrize("action", ["check", "stats", "fix"])
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


def test_a_c_locale_changes_nothing(photos: Path) -> None:
    (photos / "val/c.png").rename(photos / "val/Straße.png")
    (photos / "val/c.txt").rename(photos / "val/Straße.txt")
    (photos / "val/Straße.txt").write_text("Füße", encoding="utf-8")
    command = [sys.executable, "-m", "captioner", "data", "check", str(photos)]
    found = [
        subprocess.run(command, env={**os.environ, "LC_ALL": locale}, capture_output=True, check=False)
        for locale in ("C", "C.UTF-8")
    ]
    assert found[0].stdout == found[1].stdout
    assert "one_word\tval/Straße.txt:1\t'Füße'" in found[0].stdout.decode("utf-8")


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


def test_shards_are_written(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of one split; what they hold is tested in tests/data/test_shards.py."""
    count = len(load_captions(photos).split("val"))
    assert main(["data", "shard", str(photos), "--split", "val", "-o", str(tmp_path / "out")]) == 0
    out, err = capsys.readouterr()
    assert out == f"{tmp_path / 'out' / 'val-000000.tar'}\n"
    assert f"{count} images in 1 shards; `sha256sum -c SHA256SUMS` checks copies" in err
    assert main(["data", "shard", str(photos), "--split", "val", "-o", str(tmp_path / "out")]) == 2
    assert "already holds shards" in capsys.readouterr().err
