import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from captioner.data.annotations import (
    HARMLESS,
    MAX_CAPTION_CHARACTERS,
    CaptionedImage,
    Problem,
    clean_caption,
    safe_path,
    validated,
)
from captioner.data.checks import check
from captioner.data.formats import load_captions, read_listing
from captioner.errors import AnnotationError, InputError

COLORS = {"a.png": "red", "b.png": "green", "c.png": "blue"}


def coco() -> dict[str, Any]:
    """Two training pictures and one for validation, with one or two captions each."""
    return {
        "images": [
            {"id": 1, "file_name": "a.png", "split": "train"},
            {"id": 2, "file_name": "b.png", "split": "train"},
            {"id": "three", "file_name": "c.png", "split": "val"},
        ],
        "annotations": [
            {"id": 10, "image_id": 2, "caption": "a green wall"},
            {"id": 11, "image_id": 1, "caption": " a red\twall \n"},
            {"id": 12, "image_id": "three", "caption": "a blue wall"},
            {"id": 13, "image_id": 1, "caption": "all is red"},
        ],
    }


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for name, color in COLORS.items():
        Image.new("RGB", (8, 6), color).save(tmp_path / "images" / name)
    return tmp_path


def write(root: Path, data: object) -> Path:
    root.joinpath("captions.json").write_text(json.dumps(data), encoding="utf-8")
    return root


def codes(root: Path, *, decode: bool = False) -> list[str]:
    return [problem.code for problem in check(read_listing(root), decode=decode)]


def test_captions_are_grouped_by_image_and_cleaned(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    captions = load_captions(write(root, coco()))
    images = root / "images"
    assert captions.root == images
    assert captions.images == (
        CaptionedImage(1, images / "a.png", ("a red wall", "all is red"), "train"),
        CaptionedImage(2, images / "b.png", ("a green wall",), "train"),
        CaptionedImage("three", images / "c.png", ("a blue wall",), "val"),
    )
    assert capsys.readouterr() == ("", "")  # pycocotools is kept quiet


def test_splits_are_selected_by_name(root: Path) -> None:
    captions = load_captions(write(root, coco()))
    assert captions.split_names == ("train", "val")
    assert [image.image_id for image in captions.split("val").images] == ["three"]
    assert len(captions.split("train")) == 2
    assert captions.split("train").root == captions.root
    with pytest.raises(AnnotationError, match="no split 'dev'; choose one of: train, val") as caught:
        captions.split("dev")
    assert caught.value.code == "no_split"


def test_a_sound_set_has_no_problems(root: Path) -> None:
    data = coco()
    data["annotations"][1]["caption"] = "a red wall"
    # With a "categories" list, pycocotools alone would ask each caption for its category.
    assert check(read_listing(write(root, data | {"categories": []}))) == []


@pytest.mark.parametrize(
    ("key", "index", "field", "value", "expected"),
    [
        ("annotations", 0, "caption", "", "empty_caption"),
        ("annotations", 0, "caption", " \x00\x1f ", "empty_caption"),
        ("annotations", 0, "caption", None, "caption_not_text"),
        ("annotations", 0, "caption", 7, "caption_not_text"),
        ("annotations", 0, "caption", ["a wall"], "caption_not_text"),
        ("annotations", 0, "caption", "x" * 10_000, "long_caption"),
        ("annotations", 0, "caption", "a \x1b[31mred wall", "control_character"),
        ("annotations", 0, "caption", "a \ud800 wall", "control_character"),
        ("annotations", 1, "id", 10, "duplicate_annotation_id"),
        ("annotations", 1, "id", None, "structure"),
        ("annotations", 1, "id", True, "structure"),
        ("annotations", 1, "image_id", 99, "unknown_image"),
        ("annotations", 1, "image_id", "1", "unknown_image"),
        ("annotations", 1, "image_id", [1], "structure"),
        ("images", 0, "file_name", "missing.png", "missing_image"),
        ("images", 0, "file_name", "x" * 5000, "missing_image"),
        ("images", 0, "file_name", ".", "missing_image"),
        ("images", 0, "file_name", "../images/a.png", "unsafe_path"),
        ("images", 0, "file_name", "", "unsafe_path"),
        ("images", 0, "file_name", None, "structure"),
        ("images", 0, "split", 1, "structure"),
        ("images", 0, "id", 1.0, "structure"),
        ("images", 0, "id", "", "structure"),
        ("images", 1, "id", 1, "duplicate_image_id"),
        ("images", 2, "file_name", "a.png", "same_picture"),
        ("images", 2, "file_name", "./a.png", "same_picture"),
    ],
)
def test_every_problem_is_listed_and_stops_or_not(
    root: Path, key: str, index: int, field: str, value: object, expected: str
) -> None:
    data = coco()
    data["annotations"][1]["caption"] = "a red wall"
    data[key][index][field] = value
    found = codes(write(root, data))
    assert found[0] == expected
    if expected in HARMLESS:
        assert found == [expected]
        load_captions(root)
    else:
        with pytest.raises(AnnotationError, match="run `captioner data check --annotations"):
            load_captions(root)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (None, ["json"]),
        ([], ["structure", "structure"]),
        ({"images": []}, ["structure"]),
        ({"images": {}, "annotations": []}, ["structure"]),
        ({"images": [3], "annotations": ["x"]}, ["structure", "structure"]),
    ],
)
def test_json_of_another_shape_is_refused(root: Path, data: object, expected: list[str]) -> None:
    assert codes(write(root, data)) == expected
    with pytest.raises(AnnotationError):
        load_captions(root)


@pytest.mark.parametrize(
    "text", ["", "{", '{"images": [' + "9" * 5000 + "]}", "[" * 100_000, "{'images': []}"], ids=range(5)
)
def test_what_is_no_json_is_one_problem(root: Path, text: str) -> None:
    root.joinpath("captions.json").write_text(text, encoding="utf-8")
    assert codes(root) == ["json"]


def test_a_picture_without_captions_is_left_out(root: Path) -> None:
    data = coco()
    del data["annotations"][2]
    data["images"][2]["file_name"] = "not there either.png"
    write(root, data)
    assert codes(root) == ["control_character", "no_captions", "missing_image"]
    assert load_captions(root).split_names == ("train",)


def test_a_set_without_any_caption_is_refused(root: Path) -> None:
    with pytest.raises(AnnotationError, match="no image has a caption"):
        load_captions(write(root, coco() | {"annotations": []}))


def test_a_byte_order_mark_is_noted_and_dropped(root: Path) -> None:
    root.joinpath("captions.json").write_text(json.dumps(coco()), encoding="utf-8-sig")
    assert codes(root) == ["bom", "control_character"]
    assert len(load_captions(root)) == 3


def test_bytes_that_are_not_utf8_stop(root: Path) -> None:
    data = coco()
    data["annotations"][1]["caption"] = "café"
    root.joinpath("captions.json").write_bytes(json.dumps(data, ensure_ascii=False).encode("latin-1"))
    assert codes(root) == ["encoding"]
    with pytest.raises(AnnotationError, match="not UTF-8"):
        load_captions(root)


def test_nan_is_read_as_null_and_stops_only_where_it_matters(root: Path) -> None:
    data = coco()
    data["images"][0]["area"] = float("nan")
    data["images"][1]["area"] = float("-inf")
    write(root, data)
    problems = check(read_listing(root), decode=False)
    assert problems[0] == Problem("nan", "captions.json", "holds -Infinity, NaN, which is not valid JSON; read as null")
    assert len(load_captions(root)) == 3
    data["annotations"][0]["caption"] = float("nan")
    assert "caption_not_text" in codes(write(root, data))


def test_the_same_bytes_in_two_splits_are_found(root: Path) -> None:
    data = coco()
    images = root / "images"
    (images / "c.png").write_bytes((images / "a.png").read_bytes())
    (images / "b.png").write_bytes((images / "a.png").read_bytes())  # within one split a copy is allowed
    (problem,) = [p for p in check(read_listing(write(root, data)), decode=False) if p.code not in HARMLESS]
    message = "(train) has the same bytes as b.png (train), c.png (val)"
    copies = ("a.png", "b.png", "c.png")
    assert problem == Problem("same_picture", "a.png", message, harmless=True, pictures=copies)


def test_files_of_one_size_but_other_bytes_are_two_pictures(root: Path) -> None:
    for name in COLORS:
        (root / "images" / name).write_bytes(name.encode())
    assert codes(write(root, coco())) == ["control_character"]


def test_check_opens_the_pictures(root: Path) -> None:
    picture = root / "images" / "b.png"
    picture.write_bytes(picture.read_bytes()[:40])
    (root / "images" / "c.png").write_bytes(b"")
    write(root, coco())
    assert codes(root) == ["control_character"]
    assert codes(root, decode=True) == ["control_character", "truncated", "empty"]


def test_an_error_names_the_first_problems_and_counts_the_rest(root: Path) -> None:
    data = coco()
    for annotation in data["annotations"]:
        annotation["caption"] = None
    with pytest.raises(AnnotationError) as caught:
        load_captions(write(root, data))
    assert str(caught.value) == (
        "captions.json: annotations[1]: the caption is None, not text; "
        "captions.json: annotations[3]: the caption is None, not text; "
        "captions.json: annotations[0]: the caption is None, not text; "
        f"and 1 more; run `captioner data check --annotations {root / 'captions.json'} --images {root / 'images'}` "
        "for the whole list"
    )


def test_an_unreadable_file_is_an_input_error(root: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        load_captions(root, annotations=root / "none.json")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "empty"),
        ("a\0.png", "NUL"),
        ("a\\b.png", "backslash"),
        ("/etc/passwd", "absolute"),
        ("C:/a.png", "absolute"),
        ("c:a.png", "absolute"),
        ("../a.png", r"\.\."),
        ("a/../../b.png", r"\.\."),
        ("..", r"\.\."),
    ],
)
def test_unsafe_paths_are_refused(tmp_path: Path, name: str, reason: str) -> None:
    with pytest.raises(AnnotationError, match=reason) as caught:
        safe_path(tmp_path, name)
    assert caught.value.code == "unsafe_path"


@pytest.mark.parametrize("name", ["a.png", "a/b.png", "a..b/...png", "ä b.png"])
def test_plain_paths_are_taken(tmp_path: Path, name: str) -> None:
    assert safe_path(tmp_path, name) == tmp_path / name


@pytest.mark.skipif(sys.platform == "win32", reason="making links needs a privilege on Windows")
def test_links_in_the_image_folder_are_followed(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """People link data sets together: a picture, and a folder of pictures, that lie elsewhere."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (root / "images" / "b.png").rename(elsewhere / "b.png")
    (root / "images" / "b.png").symlink_to(elsewhere / "b.png")
    (root / "images" / "linked").symlink_to(elsewhere)
    data = coco()
    data["annotations"][1]["caption"] = "a red wall"
    data["images"].append({"id": 4, "file_name": "linked/b.png", "split": "train"})
    data["annotations"].append({"id": 14, "image_id": 4, "caption": "a green wall"})
    assert codes(write(root, data), decode=True) == []
    assert [image.path.name for image in load_captions(root).images] == ["a.png", "b.png", "c.png", "b.png"]
    (root / "images" / "b.png").unlink()
    (root / "images" / "b.png").symlink_to("b.png")
    assert codes(root) == ["missing_image"]


@given(st.text())
def test_a_safe_path_stays_inside_whatever_the_name(name: str) -> None:
    root = Path(__file__).parent
    with suppress(AnnotationError):
        assert os.path.normpath(safe_path(root, name)).startswith(str(root))


@given(st.text(st.characters()))
def test_a_cleaned_caption_is_one_utf8_line(text: str) -> None:
    cleaned = clean_caption(text)
    assert cleaned.encode().decode() == cleaned
    assert cleaned.splitlines() in ([], [cleaned])
    assert clean_caption(cleaned) == cleaned


def test_a_caption_of_the_greatest_length_is_taken(root: Path) -> None:
    data = coco()
    data["annotations"][0]["caption"] = "x" * MAX_CAPTION_CHARACTERS
    assert "long_caption" not in codes(write(root, data))


def test_flickr8k_reads_the_same_from_both_of_its_files(shared: Path) -> None:
    folder = shared / "data" / "flickr8k"
    ours = load_captions(folder, format="coco")
    karpathy = validated(read_listing(folder, format="karpathy"))
    assert len(ours) == 8091
    for name, count in (("train", 6000), ("val", 1000), ("test", 1000)):
        first, second = (
            {image.path: sorted(image.captions) for image in each.split(name).images} for each in (ours, karpathy)
        )
        assert len(first) == count
        assert {len(captions) for captions in first.values()} == {5}
        assert first.keys() == second.keys()
        assert [path for path in first if first[path] != second[path]] == []
