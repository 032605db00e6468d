"""`captioner data suggest`: what it prints, and which photos it leaves out."""

import json

import numpy as np
import pytest
from PIL import Image

from captioner.cli import main
from tests.serving.conftest import save_tiny_model


@pytest.fixture
def photos(tmp_path):
    """Six photos, of which the first has a caption beside it."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(6):
        noise = np.random.default_rng(number).integers(0, 256, (6, 8, 3), np.uint8)
        Image.fromarray(noise).resize((96, 64), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    (folder / "0.txt").write_text("a dog", encoding="utf-8")
    return folder


@pytest.fixture
def suggest(tmp_path, photos, capsys):
    model = save_tiny_model(tmp_path)

    def run(*flags):
        code = main(["data", "suggest", str(photos), "--model", model, "--device", "cpu", *map(str, flags)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_paths_and_records_name_the_same_photos(suggest, photos, tmp_path):
    code, out, err = suggest("-n", 3)
    assert (code, err) == (0, "3 of 5 photos without captions\n")
    paths = out.splitlines()
    assert len(set(paths)) == 3
    assert str(photos / "0.png") not in paths
    assert suggest("-n", 3, "-o", tmp_path / "next.txt") == (0, "", err)
    assert (tmp_path / "next.txt").read_text(encoding="utf-8") == out
    code, out, _ = suggest("-n", 3, "--format", "jsonl")
    records = [json.loads(line) for line in out.splitlines()]
    assert [record["path"] for record in records] == paths
    assert set(records[0]) == {"path", "caption", "confidence"}


def test_photos_of_a_captioned_data_set_are_left_out(suggest, photos, tmp_path):
    (tmp_path / "captions.csv").write_text("path,caption\n1.png,a dog\n2.png,a cat\n", encoding="utf-8")
    (photos / "captions.csv").write_bytes((tmp_path / "captions.csv").read_bytes())
    assert sorted(suggest("--captioned", photos / "captions.csv")[1].splitlines()) == [
        str(photos / f"{number}.png") for number in (0, 3, 4, 5)
    ]
    rows = "".join(f"{number}.png,a dog\n" for number in range(6))
    (photos / "captions.csv").write_text(f"path,caption\n{rows}", encoding="utf-8")
    code, _, err = suggest()
    assert code == 3
    assert "all of its 6 photos are captioned" in err


def test_an_unusable_photo_is_reported(suggest, photos):
    (photos / "3.png").write_bytes(b"no picture")
    code, out, err = suggest()
    assert code == 1
    assert len(out.splitlines()) == 4
    assert "3.png" in err
