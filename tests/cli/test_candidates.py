"""Candidates of `captioner score`: whatever `captioner caption` writes fits the references of training."""

import csv
import io
import json
from pathlib import Path

import pytest

from captioner.caption import Caption, Captioned
from captioner.cli import main
from captioner.cli.candidates import match_candidates, read_candidates
from captioner.cli.formats import Result, coco_document, encode, format_named
from captioner.errors import AnnotationError, ImageError

PATHS = ("my photos/100CANON/IMG_0001.jpg", "my photos/101CANON/IMG_0001.jpg", "my photos/x/bär=.png")
TEXTS = ("a dog runs", "two cats sleep", "=a man")
RESULTS = [
    Result.of(path, Captioned(Caption(text, -1.0, (), (4, 2), (Caption("worse", -2.0, (), ()),)), 4, 3, "ab", ()), "m")
    for path, text in zip(PATHS, TEXTS, strict=True)
]
FAILED = Result.of("my photos/broken.jpg", ImageError("broken.jpg: empty", "empty"), "m")


def write(format: str, folder: Path) -> Path:
    """The file or folder that `captioner caption` writes."""
    chosen = format_named(format)
    texts = [chosen.render(result) for result in (*RESULTS, FAILED)]
    if format == "sidecar":
        for path, text in zip(PATHS, texts, strict=False):
            file = (folder / "texts" / path.removeprefix("my photos/")).with_suffix(".txt")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        return folder / "texts"
    suffix = {"coco": "json", "text": "txt"}.get(format, format)
    whole = coco_document(texts) if format == "coco" else chosen.header + "".join(texts)
    (folder / f"out.{suffix}").write_bytes(encode(whole))
    return folder / f"out.{suffix}"


@pytest.mark.parametrize("format", ["jsonl", "csv", "text", "coco", "sidecar"])
def test_every_format_of_caption_is_scored_against_a_folder(
    format: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    references = tmp_path / "my photos"
    for path, text in zip(PATHS, TEXTS, strict=True):
        file = references / path.removeprefix("my photos/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
        file.with_suffix(".txt").write_text(text, encoding="utf-8")
    out = tmp_path / "out"
    out.mkdir()
    flags = ["--references", str(references), "--candidates", str(write(format, out))]
    target = tmp_path / "each.json"
    assert main(["score", *flags, "--metrics", "rouge_l", "--per-image", str(target)]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["rouge_l"] == 1
    assert sorted(json.loads(target.read_text())) == sorted(path.removeprefix("my photos/") for path in PATHS)


def test_numbers_of_coco_and_file_names_of_coco_annotations() -> None:
    names = {"7": "val2014/COCO_val2014_000000000042.jpg", "8": "dog.jpg"}
    for image, other in (("42", "dog"), ("photos/val2014/COCO_val2014_000000000042.jpg", "./dog.jpg"), ("7", "8")):
        found = match_candidates({image: "a", other: "b"}, ["7", "8"], names, Path("x"))
        assert found == ({"7": "a", "8": "b"}, [])


@pytest.mark.parametrize(
    ("candidate", "references"),
    [("x.jpg", ["a/x.jpg", "b/x.jpg"]), ("c/x.jpg", ["a/x.jpg"]), ("1", ["a_1.jpg", "b_1.jpg"]), ("", ["a"])],
)
def test_what_fits_none_or_several_is_not_guessed(candidate: str, references: list[str]) -> None:
    assert match_candidates({candidate: "a"}, references, {}, Path("x")) == ({}, [candidate])


def test_two_candidates_of_one_reference() -> None:
    with pytest.raises(AnnotationError, match=r"x: image a/1\.jpg: more than one caption; keep one"):
        match_candidates({"a/1.jpg": "a", "1.jpg": "b"}, ["a/1.jpg"], {}, Path("x"))


def test_the_later_line_of_a_changed_input_counts(tmp_path: Path) -> None:
    lines = [{"path": "a", "caption": "old"}, {"path": "b", "caption": "b"}, {"path": "a", "caption": "new"}]
    (tmp_path / "out.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    rows = io.StringIO()
    csv.writer(rows).writerows([["path", "caption"], ["a", "old"], ["b", "b"], ["b", "2nd"], ["a", "new"], ["a", "x"]])
    (tmp_path / "out.csv").write_text(rows.getvalue())
    for name in ("out.jsonl", "out.csv"):
        assert read_candidates(tmp_path / name) == {"a": "new", "b": "b"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"{}", "a.jsonl:1: no JSON object with path and caption"),
        ("a.jsonl", b"\n[", "a.jsonl:2: no JSON object"),
        ("a.csv", b"a,b\n1,2\n", "a.csv:2: no CSV with the columns path and caption"),
        ("a.csv", b'path,caption\na,"' + b"x" * 200_000, "a.csv:1: no CSV with the columns"),
        ("a.txt", b"a dog runs\n", "a.txt:1: no path, tab and caption"),
        ("a.tsv", b"a\t\xff\n", "a.tsv: byte 2 is not UTF-8"),
    ],
)
def test_files_that_are_no_candidates(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(AnnotationError, match=message.replace(".", r"\.")):
        read_candidates(tmp_path / name)
