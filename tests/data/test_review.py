"""Doubtful captions and pictures: each kind is found, and ordinary ones are not reported."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from captioner.data.checks import check
from captioner.data.formats import read_listing
from captioner.data.review import Look, review, script

NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "many", "no")


def reviewed(root: Path, rows: list[tuple[str, str]], splits: dict[str, str] | None = None) -> list[tuple[str, str]]:
    """The codes and places found in a data set of (picture, caption)."""
    lines = [{"path": name, "caption": caption, "split": (splits or {}).get(name)} for name, caption in rows]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (root / "captions.jsonl").write_text(text, encoding="utf-8")
    listing, looks = read_listing(root), {}
    found = check(listing, True, lambda name, opened: looks.update({name: Look.at(opened)}))
    return [(problem.code, problem.where) for problem in (*found, *review(listing, looks, found))]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Twenty different pictures, 00.png to 19.png."""
    for number in range(20):
        noise = np.random.default_rng(number).integers(0, 256, (6, 8, 3), np.uint8)
        Image.fromarray(noise).resize((80, 60), Image.Resampling.BICUBIC).save(tmp_path / f"{number:02}.png")
    return tmp_path


def test_copies_in_two_splits(root: Path) -> None:
    Image.open(root / "00.png").resize((70, 50)).save(root / "19.png")
    (root / "18.png").write_bytes((root / "01.png").read_bytes())
    rows = [(f"{number:02}.png", f"picture {NUMBERS[number % 12]} of {number}") for number in range(20)]
    splits = {name: "val" if name >= "15" else "train" for name, _ in rows}
    assert reviewed(root, rows, splits) == [("same_picture", "01.png"), ("similar_picture", "00.png")]
    assert reviewed(root, rows, dict.fromkeys(splits, "train")) == []


def test_tiny_pictures(root: Path) -> None:
    Image.new("RGB", (31, 400)).save(root / "05.png")
    Image.new("RGB", (32, 400)).save(root / "06.png")
    assert reviewed(root, [("05.png", "a dog"), ("06.png", "a cat")]) == [("tiny", "05.png")]


def test_captions_of_one_word_and_captions_twice(root: Path) -> None:
    rows = [("00.png", "Dog!"), ("01.png", "A dog runs."), ("01.png", "a dog  runs"), ("02.png", "a dog runs")]
    assert reviewed(root, rows) == [("one_word", "captions.jsonl:1"), ("same_caption", "captions.jsonl:3")]
    assert reviewed(root, [("00.png", "一只狗在草地上奔跑"), ("01.png", "สุนัขวิ่งบนหญ้า")]) == []


def test_one_caption_of_many_pictures(root: Path) -> None:
    rows = [(f"{number:02}.png", "A photo." if number < 10 else f"a dog {number}") for number in range(20)]
    assert reviewed(root, rows) == [("repeated_caption", "captions.jsonl:1")]
    assert reviewed(root, rows[1:]) == []


def test_captions_in_another_script(root: Path) -> None:
    rows = [(f"{number:02}.png", f"a dog on grass {number}") for number in range(19)]
    assert reviewed(root, [*rows, ("19.png", "собака бежит")]) == [("other_script", "captions.jsonl:20")]
    assert reviewed(root, [*rows[:5], *(("19.png", f"собака бежит {number}") for number in range(3))]) == []


def test_captions_in_another_language(root: Path) -> None:
    rows = [
        (f"{number % 20:02}.png", f"a dog and {NUMBERS[number % 12]} cats play in the park with ball {number}")
        for number in range(200)
    ]
    german = ("03.png", "Zwei Hunde spielen auf einer grünen Wiese")
    short = ("04.png", "zwei kleine Hunde")
    assert reviewed(root, [*rows, german, short]) == [("other_language", "captions.jsonl:201")]
    assert reviewed(root, [*rows[:100], german]) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a dog", "LATIN"), ("собака 12", "CYRILLIC"), ("犬が走る", "CJK"), ("كلب يجري", "ARABIC"), ("12 !", None)],
)
def test_script(text: str, expected: str | None) -> None:
    assert script(text) == expected
