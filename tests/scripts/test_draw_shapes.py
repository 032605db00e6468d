import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from captioner.data.checks import check
from captioner.data.formats import load_captions, read_listing
from scripts import draw_shapes


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    assert draw_shapes.main(["--output", str(folder), "--images", "200"]) == 0
    return folder


def read(folder: Path, name: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((folder / name).read_text(encoding="utf-8"))
    return data


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("first", "3"), ("second", "3"), ("other", "4")):
        draw_shapes.main(["--output", str(tmp_path / name), "--images", "12", "--seed", seed])
    first = contents(tmp_path / "first")
    assert len(first) == 14
    assert contents(tmp_path / "second") == first
    assert contents(tmp_path / "other").keys() == first.keys()
    assert contents(tmp_path / "other") != first


def test_the_set_is_sound_and_split(drawn: Path) -> None:
    assert check(read_listing(drawn)) == []
    captions = load_captions(drawn)
    assert Counter(image.split for image in captions.images) == {"train": 160, "val": 20, "test": 20}


def test_each_picture_has_three_to_five_different_captions(drawn: Path) -> None:
    captions = load_captions(drawn)
    assert {len(image.captions) for image in captions.images} == {3, 4, 5}
    for image in captions.images:
        assert len(set(image.captions)) == len(image.captions)
        assert all(text == text.lower().strip() and "{" not in text for text in image.captions)


def test_a_few_pictures_are_not_square(drawn: Path) -> None:
    sizes = Counter()
    for image in read(drawn, "captions.json")["images"]:
        with Image.open(drawn / "images" / image["file_name"]) as picture:
            assert picture.size == (image["width"], image["height"])
            sizes[picture.size] += 1
    assert sizes.keys() == set(draw_shapes.CANVASES)
    assert sizes[96, 96] > 100


def test_boxes_hold_the_shapes(drawn: Path) -> None:
    data = read(drawn, "instances.json")
    names = {category["id"]: category["name"] for category in data["categories"]}
    files = {image["id"]: image for image in data["images"]}
    kinds = defaultdict(set)
    for instance in data["annotations"]:
        image = files[instance["image_id"]]
        left, top, width, height = instance["bbox"]
        assert left >= 0
        assert top >= 0
        assert left + width <= image["width"]
        assert top + height <= image["height"]
        assert 0 < instance["area"] <= width * height + 0.05
        (outline,) = instance["segmentation"]
        assert (min(outline[::2]), min(outline[1::2])) == (left, top)
        kinds[instance["image_id"]].add(names[instance["category_id"]])
        # The center of every shape is filled with one of the colors.
        with Image.open(drawn / "images" / image["file_name"]) as picture:
            center = picture.getpixel((int(left + width / 2), int(top + height / 2)))
            assert center in draw_shapes.COLORS.values()
    assert {len(each) for each in kinds.values()} == {1, 2}
    for caption in read(drawn, "captions.json")["annotations"]:
        said = {kind for kind in draw_shapes.SHAPES if kind in caption["caption"].split()}
        assert said == kinds[caption["image_id"]]


@pytest.mark.parametrize("phrase", ["to the left of", "to the right of", "above", "below", "on top of", "next to"])
def test_relations_are_drawn_as_said(drawn: Path, phrase: str) -> None:
    data = read(drawn, "instances.json")
    names = {category["id"]: category["name"] for category in data["categories"]}
    boxes = {(i["image_id"], names[i["category_id"]]): i["bbox"] for i in data["annotations"]}
    seen = 0
    for caption in read(drawn, "captions.json")["annotations"]:
        if f" {phrase} " not in caption["caption"]:
            continue
        first, second = (
            boxes[caption["image_id"], side.split()[-1]] for side in caption["caption"].split(f" {phrase} ")
        )
        seen += 1
        right_gap = second[0] - (first[0] + first[2])
        below_gap = second[1] - (first[1] + first[3])
        if phrase == "to the left of":
            assert right_gap >= 5.9
        elif phrase == "to the right of":
            assert first[0] - (second[0] + second[2]) >= 5.9
        elif phrase == "above":
            assert below_gap >= 5.9
        elif phrase == "below":
            assert first[1] - (second[1] + second[3]) >= 5.9
        elif phrase == "on top of":
            assert below_gap == pytest.approx(0, abs=0.05)
        else:
            assert max(right_gap, first[0] - (second[0] + second[2])) == pytest.approx(0, abs=0.05)
    assert seen >= 5


def test_too_few_images_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        draw_shapes.main(["--images", "9"])
    assert "at least 10" in capsys.readouterr().err
