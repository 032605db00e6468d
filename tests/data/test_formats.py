import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import get_args

import pytest
from PIL import Image

from captioner.config import DataSetConfig
from captioner.data.annotations import CaptionSet, ListedCaption, ListedImage
from captioner.data.checks import check
from captioner.data.formats import FORMATS, SOURCES, assign_splits, load_captions, read_listing
from captioner.errors import AnnotationError, InputError

Plain = list[tuple[str, tuple[str, ...], str | None]]


def plain(captions: CaptionSet) -> Plain:
    return [(i.path.relative_to(captions.root).as_posix(), i.captions, i.split) for i in captions.images]


def draw(root: Path, *names: str) -> None:
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (number, 0, 0)).save(path, format="PNG")


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="")
    return path


def codes(root: Path) -> list[str]:
    return [problem.code for problem in check(read_listing(root), decode=False)]


def coco(names: list[str], start: int = 1) -> str:
    ids = range(start, start + len(names))
    return json.dumps(
        {
            "images": [{"id": i, "file_name": name} for i, name in zip(ids, names, strict=True)],
            "annotations": [{"id": i, "image_id": i, "caption": f"caption {i}"} for i in ids],
        }
    )


def test_the_formats_are_those_of_the_configuration() -> None:
    assert get_args(DataSetConfig.__annotations__["format"]) == FORMATS
    assert {*SOURCES, "auto", "folder"} == set(FORMATS)


def test_karpathy(tmp_path: Path) -> None:
    draw(tmp_path / "images", "val2014/a.jpg", "b.jpg", "c.jpg")
    images = [
        {
            "filename": "a.jpg",
            "filepath": "val2014",
            "cocoid": 42,
            "imgid": 0,
            "split": "restval",
            "sentences": [{"raw": "One dog.", "sentid": 1}, {"raw": "A dog.", "sentid": 2}],
        },
        {"filename": "b.jpg", "imgid": 7, "split": "val", "sentences": [{"raw": "Two dogs."}]},
        {"filename": "c.jpg", "split": "test", "sentences": [{"raw": "Three dogs."}]},
    ]
    write(tmp_path / "dataset_coco.json", json.dumps({"images": images}))
    captions = load_captions(tmp_path)
    assert plain(captions) == [
        ("val2014/a.jpg", ("One dog.", "A dog."), "train"),
        ("b.jpg", ("Two dogs.",), "val"),
        ("c.jpg", ("Three dogs.",), "test"),
    ]
    assert [image.image_id for image in captions.images] == [42, 7, "c.jpg"]


def test_problems_of_karpathy(tmp_path: Path) -> None:
    draw(tmp_path / "images", "a.jpg", "b.jpg")
    sentence = {"raw": "A dog.", "sentid": 1}
    images = [
        {"filename": "a.jpg", "imgid": 0, "split": "train", "sentences": [sentence, sentence, "text"]},
        {"filename": "b.jpg", "imgid": 0, "split": "train", "sentences": [{"raw": "A cat.", "sentid": "1"}]},
        {"filename": "b.jpg", "imgid": 1, "split": "train", "sentences": [{"tokens": ["no", "raw"]}]},
        {"filename": 3, "imgid": 2, "sentences": []},
        {"filename": "a.jpg", "imgid": 3, "split": "test"},
    ]
    write(tmp_path / "dataset.json", json.dumps({"images": images}))
    problems = check(read_listing(tmp_path), decode=False)
    assert [(problem.code, problem.where) for problem in problems] == [
        ("duplicate_annotation_id", "dataset.json: images[0]: sentences[1]"),
        ("structure", "dataset.json: images[0]: sentences[2]"),
        ("duplicate_image_id", "dataset.json: images[1]"),
        ("structure", "dataset.json: images[3]"),
        ("structure", "dataset.json: images[4]"),
        ("caption_not_text", "dataset.json: images[2]: sentences[0]"),
        ("no_captions", "dataset.json: images[4]"),
        ("same_picture", "a.jpg"),
    ]


TOKENS = "b.jpg#0\tA dog , running .\r\nb.jpg#1\tTwo.\n\na.jpg#0\tA cat.\nextra.jpg.1#0\tNobody knows.\n"
KAGGLE = 'image,caption\nb.jpg,"A dog , running ."\nb.jpg,Two.\na.jpg,A cat.\nextra.jpg.1,Nobody knows.\n'


@pytest.mark.parametrize(
    ("name", "text", "folder"),
    [("Flickr8k.token.txt", TOKENS, "Flicker8k_Dataset"), ("captions.txt", KAGGLE, "Images")],
)
def test_both_forms_of_flickr8k(tmp_path: Path, name: str, text: str, folder: str) -> None:
    draw(tmp_path / folder, "a.jpg", "b.jpg")
    write(tmp_path / name, text)
    # Flickr8k's own file describes a picture that does not exist; none of its split lists names it.
    with pytest.raises(AnnotationError, match=r"extra\.jpg\.1 is not in"):
        load_captions(tmp_path)
    write(tmp_path / "Flickr_8k.trainImages.txt", "b.jpg\n")
    write(tmp_path / "Flickr_8k.devImages.txt", "a.jpg\n")
    write(tmp_path / "Flickr_8k.testImages.txt", "uncaptioned.jpg\n")
    assert plain(load_captions(tmp_path)) == [
        ("b.jpg", ("A dog , running .", "Two."), "train"),
        ("a.jpg", ("A cat.",), "val"),
    ]
    assert codes(tmp_path) == ["no_captions", "missing_image"]
    write(tmp_path / "Flickr_8k.testImages.txt", "a.jpg\n")
    assert codes(tmp_path) == ["same_picture"]


def test_broken_token_lines(tmp_path: Path) -> None:
    draw(tmp_path, "a.jpg")
    write(tmp_path / "Flickr8k.token.txt", "a.jpg A dog.\na.jpg\tA dog.\na.jpg#0\tA dog.\na.jpg#1\t \n")
    problems = check(read_listing(tmp_path), decode=False)
    assert [(problem.code, problem.where) for problem in problems] == [
        ("structure", "Flickr8k.token.txt:1"),
        ("structure", "Flickr8k.token.txt:2"),
        ("empty_caption", "Flickr8k.token.txt:4"),
    ]


def test_csv(tmp_path: Path) -> None:
    draw(tmp_path / "images", "a.jpg", "sub/b.jpg")
    rows = [
        "Caption,split,Path",
        '"A dog, running.",train,a.jpg',
        '"A ""dog"".",train,a.jpg',
        "",
        "A cat.,val,sub/b.jpg",
    ]
    write(tmp_path / "captions.csv", "\r\n".join(rows))
    assert plain(load_captions(tmp_path)) == [
        ("a.jpg", ("A dog, running.", 'A "dog".'), "train"),
        ("sub/b.jpg", ("A cat.",), "val"),
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.jpg,A dog.\n", [("structure", "captions.csv:1")]),
        ("", [("structure", "captions.csv:1")]),
        ("path,caption\na.jpg,A dog, running.\na.jpg\n", [("structure", f"captions.csv:{n}") for n in (2, 3)]),
        ("path,caption\na.jpg,\n", [("empty_caption", "captions.csv:2")]),
        ("path,caption\na.jpg,A dog.\n/a.jpg,A dog.\n", [("unsafe_path", "captions.csv:3")]),
        ("path,caption,split\na.jpg,A,train\na.jpg,B,val\n", [("same_picture", "a.jpg")]),
        ("path,caption\na.jpg," + "x" * 140_000, [("structure", "captions.csv:2")]),
    ],
    ids=range(7),
)
def test_problems_of_csv(tmp_path: Path, text: str, expected: list[tuple[str, str]]) -> None:
    draw(tmp_path / "images", "a.jpg")
    write(tmp_path / "captions.csv", text)
    problems = check(read_listing(tmp_path), decode=False)
    assert [(problem.code, problem.where) for problem in problems] == expected


def test_jsonl(tmp_path: Path) -> None:
    draw(tmp_path / "images", "a.jpg", "b.jpg", "c.jpg")
    lines = [
        '{"path": "a.jpg", "caption": "A dog\u2028here.", "split": "train"}',
        "",
        '{"file_name": "b.jpg", "captions": ["A cat.", "Two."], "split": "val"}',
        '{"image": "a.jpg", "caption": "Third.", "split": "train"}',
        '{"path": "c.jpg", "captions": []}',
    ]
    write(tmp_path / "captions.jsonl", "\r\n".join(lines))
    assert plain(load_captions(tmp_path)) == [
        ("a.jpg", ("A dog here.", "Third."), "train"),
        ("b.jpg", ("A cat.", "Two."), "val"),
    ]
    assert codes(tmp_path) == ["no_captions"]


def test_problems_of_jsonl(tmp_path: Path) -> None:
    draw(tmp_path / "images", "a.jpg")
    lines = [
        '{"path": "a.jpg", "caption": NaN}',
        '{"path": "a.jpg", "caption": "A"',
        '["a.jpg", "A"]',
        "null",
        '{"caption": "A"}',
        '{"path": "a.jpg", "captions": "A"}',
        '{"path": "a.jpg"}',
        '{"path": "a.jpg", "caption": "A", "split": 1}',
    ]
    write(tmp_path / "captions.jsonl", "\n".join(lines))
    problems = check(read_listing(tmp_path), decode=False)
    assert [(problem.code, int(problem.where.rpartition(":")[2])) for problem in problems] == [
        ("nan", 1),
        ("json", 2),
        ("structure", 3),
        ("json", 4),
        ("structure", 5),
        ("structure", 6),
        ("structure", 8),
        ("caption_not_text", 1),
        ("caption_not_text", 7),
    ]


def test_folder_of_sidecars(tmp_path: Path) -> None:
    draw(tmp_path, "val/b.PNG", "train/deep/a.jpg", "train/bare.jpg", "loose.webp", "trainer/c.jpg")
    write(tmp_path / "val/b.txt", "\ufeffA cat.\r\n\r\n  Two cats. \n")
    write(tmp_path / "train/deep/a.txt", "A dog.")
    write(tmp_path / "loose.txt", "Loose.")
    write(tmp_path / "trainer/c.txt", "A trainer.")
    write(tmp_path / "notes.txt", "Not about a picture.")
    assert plain(load_captions(tmp_path)) == [
        ("loose.webp", ("Loose.",), None),
        ("train/deep/a.jpg", ("A dog.",), "train"),
        ("trainer/c.jpg", ("A trainer.",), None),
        ("val/b.PNG", ("A cat.", "Two cats."), "val"),
    ]
    assert sorted(codes(tmp_path)) == ["bom", "no_captions", "text_without_picture"]


@pytest.mark.skipif(sys.platform == "win32", reason="FIFOs of Unix")
def test_near_misses_of_sidecar_names_are_read(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.JPG", "c.jpg", "d.jpg", "D.jpg"):
        (tmp_path / name).touch()
    texts = {"a.TXT": "one", "b.jpg.txt": "two", "c.txt": "three", "c.jpg.txt": "not read", "d.txt": "4", "D.txt": "5"}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    listing = read_listing(tmp_path)
    found = {image.file_name: [caption.text for caption in image.captions] for image in listing.images}
    assert found == {"D.jpg": ["5"], "a.jpg": ["one"], "b.JPG": ["two"], "c.jpg": ["three"], "d.jpg": ["4"]}
    assert [(problem.code, problem.where) for problem in listing.problems] == [("text_without_picture", "c.jpg.txt")]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf_16_is_one_problem(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    (tmp_path / "a.txt").write_bytes("a dog\na cat\n".encode(encoding))
    listing = read_listing(tmp_path)
    assert [caption.text for caption in listing.images[0].captions] == ["a dog", "a cat"]
    problems = check(listing, decode=False)
    assert [(each.code, each.message) for each in problems] == [("encoding", "is UTF-16 text; save the file as UTF-8")]


def test_a_sidecar_that_would_block_is_a_problem(tmp_path: Path) -> None:
    draw(tmp_path, "a.jpg", "b.jpg")
    write(tmp_path / "b.txt", "A dog.")
    os.mkfifo(tmp_path / "a.txt")
    assert sorted(codes(tmp_path)) == ["no_captions", "unreadable"]


def test_coco_as_its_authors_lay_it_out(tmp_path: Path) -> None:
    draw(tmp_path, "train2017/a.jpg", "val2017/a.jpg")
    write(tmp_path / "annotations/captions_train2017.json", coco(["a.jpg"], start=1))
    write(tmp_path / "annotations/captions_val2017.json", coco(["a.jpg"], start=2))
    write(tmp_path / "annotations/instances_val2017.json", "{}")
    assert plain(load_captions(tmp_path)) == [
        ("train2017/a.jpg", ("caption 1",), "train"),
        ("val2017/a.jpg", ("caption 2",), "val"),
    ]
    write(tmp_path / "annotations/captions_val2017.json", "{")
    assert codes(tmp_path) == ["json"]


def test_one_file_and_its_folder_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(tmp_path, "data/val2017/a.jpg", "data/val2017/b.jpg")
    file = write(tmp_path / "data/annotations/captions_val2017.json", coco(["a.jpg", "b.jpg"]))
    expected = load_captions(None, annotations=file, images=tmp_path / "data/val2017")
    assert [image.path.name for image in expected.images] == ["a.jpg", "b.jpg"]
    assert load_captions(tmp_path / "data", "annotations/captions_val2017.json", "val2017") == expected
    monkeypatch.chdir(tmp_path)
    relative = load_captions("data", "data/annotations/captions_val2017.json", "data/val2017")
    assert plain(relative) == plain(expected)


def test_the_format_picks_among_several_files(tmp_path: Path) -> None:
    draw(tmp_path, "a.jpg")
    write(tmp_path / "captions.json", coco(["a.jpg"]))
    write(tmp_path / "captions.csv", "path,caption\na.jpg,From CSV.\n")
    write(tmp_path / "a.txt", "From text.")
    assert load_captions(tmp_path).images[0].captions == ("caption 1",)
    assert load_captions(tmp_path, format="csv").images[0].captions == ("From CSV.",)
    assert load_captions(tmp_path, format="folder").images[0].captions == ("From text.",)
    with pytest.raises(InputError, match=r"no captions\.jsonl for format jsonl"):
        load_captions(tmp_path, format="jsonl")
    for name in ("dataset_a.json", "dataset_b.json"):
        write(tmp_path / name, "{}")
    with pytest.raises(AnnotationError, match=r"several annotation files \(dataset_a\.json, dataset_b\.json\)"):
        load_captions(tmp_path, format="karpathy")


def test_a_named_format_overrules_the_suffix(tmp_path: Path) -> None:
    draw(tmp_path, "a.jpg")
    file = write(tmp_path / "list.tsv", "a.jpg#0\tA dog.\n")
    with pytest.raises(AnnotationError, match="--format"):
        load_captions(None, annotations=file)
    assert load_captions(None, annotations=file, format="flickr8k").images[0].captions == ("A dog.",)


def test_what_is_not_there_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no captions given"):
        load_captions(None)
    with pytest.raises(InputError, match="no such folder"):
        load_captions(tmp_path / "none")
    with pytest.raises(InputError, match=r"no captions; looked for captions\.json"):
        load_captions(tmp_path)
    with pytest.raises(InputError, match=r"pictures: no such folder"):
        load_captions(tmp_path, images=tmp_path / "pictures")


def listed(*names: str) -> list[ListedImage]:
    return [ListedImage(name, name, (ListedCaption("A dog.", name),), None, name) for name in names]


def test_a_set_without_splits_gets_stable_ones() -> None:
    images = listed(*(f"{number}.jpg" for number in range(1000)))
    splits = {image.file_name: image.split for image in assign_splits(images)}
    assert Counter(splits.values()) == {"train": 909, "val": 91}
    reversed_half = assign_splits(reversed(images[:500]))
    assert {image.file_name: splits[image.file_name] for image in reversed_half} == {
        image.file_name: image.split for image in reversed_half
    }


@pytest.mark.parametrize(("count", "val"), [(1, 0), (2, 1), (3, 1)])
def test_few_pictures_have_one_for_validation(count: int, val: int) -> None:
    images = assign_splits(listed(*(f"{number}.jpg" for number in range(count))))
    assert Counter(image.split for image in images) == Counter({"val": val, "train": count - val})


def test_pictures_without_captions_take_no_part_in_splits() -> None:
    bare = ListedImage("bare.jpg", "bare.jpg", (), None, "bare.jpg")
    assert [image.split for image in assign_splits([bare, *listed("only.jpg")])] == [None, "train"]
    assert assign_splits([]) == []


def test_loading_assigns_splits_only_where_none_is_named(tmp_path: Path) -> None:
    draw(tmp_path, "a.jpg", "b.jpg")
    write(tmp_path / "captions.csv", "path,caption,split\na.jpg,A,\nb.jpg,B,\n")
    assert load_captions(tmp_path).split_names == ("train", "val")
    write(tmp_path / "captions.csv", "path,caption,split\na.jpg,A,\nb.jpg,B,test\n")
    assert [image.split for image in load_captions(tmp_path).images] == [None, "test"]


@pytest.mark.skipif(sys.platform == "win32", reason="making links needs a privilege on Windows")
def test_links_are_followed_and_loops_end(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for folder in (tmp_path / "own", elsewhere):
        folder.mkdir(exist_ok=True)
        draw(folder, f"{folder.name}.jpg")
        write(folder / f"{folder.name}.txt", "A dog.\n")
    (tmp_path / "linked").symlink_to(elsewhere)
    draw(tmp_path, "b.jpg")
    (tmp_path / "b.txt").symlink_to(tmp_path / "own" / "own.txt")
    (elsewhere / "up").symlink_to(tmp_path)
    (tmp_path / "own" / "again").symlink_to(tmp_path / "own")
    names = [image.path.relative_to(tmp_path).as_posix() for image in load_captions(tmp_path).images]
    assert names == ["b.jpg", f"linked/{elsewhere.name}.jpg", "own/own.jpg"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("captions.csv", "path,caption,Tone\na.jpg,A dog.,loud\na.jpg,A cat.,\n"),
        (
            "captions.jsonl",
            '{"path": "a.jpg", "caption": "A dog.", "Tone": " loud "}\n'
            '{"path": "a.jpg", "caption": "A cat.", "Tone": []}',
        ),
        (
            "captions.json",
            json.dumps(
                {
                    "images": [{"id": 1, "file_name": "a.jpg"}],
                    "annotations": [
                        {"id": 1, "image_id": 1, "caption": "A dog.", "Tone": "loud"},
                        {"id": 2, "image_id": 1, "caption": "A cat."},
                    ],
                }
            ),
        ),
        (
            "captions.json",
            json.dumps(
                {"images": [{"filename": "a.jpg", "sentences": [{"raw": "A dog.", "Tone": "loud"}, {"raw": "A cat."}]}]}
            ),
        ),
    ],
    ids=["csv", "jsonl", "coco", "karpathy"],
)
def test_a_column_may_hold_styles(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    (tmp_path / name).write_text(content, encoding="utf-8")
    (image,) = load_captions(tmp_path, style_column="Tone").images
    assert dict(zip(image.captions, image.styles, strict=True)) == {"A dog.": "loud", "A cat.": None}
    (plain,) = load_captions(tmp_path).images
    assert plain.styles == ()


def test_a_style_of_an_image_is_that_of_all_its_captions(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    captions = [{"id": number, "image_id": 1, "caption": f"A dog {number}."} for number in (1, 2)]
    images = [{"id": 1, "file_name": "a.jpg", "tone": 7}]
    (tmp_path / "captions.json").write_text(json.dumps({"images": images, "annotations": captions}))
    assert load_captions(tmp_path, style_column="tone").images[0].styles == ("7", "7")
