"""Results in every format."""

import csv
import io
import json

import pytest

from captioner.caption import Caption, Captioned, CaptionWord
from captioner.cli.formats import COLUMNS, Result, coco_document, coco_id, encode, format_named
from captioner.errors import ImageError

BEST = Caption(
    "a dog runs",
    -1.234567,
    (CaptionWord("a", -0.1), CaptionWord("dog", -0.50004), CaptionWord("runs", -0.2)),
    (4, 5, 6, 2),
    (Caption("a cat", -3.0, (CaptionWord("a", -0.1), CaptionWord("cat", -2.0)), (4, 7, 2)),),
)
GOOD = Captioned(BEST, 40, 30, "ab12", ("alpha_on_white", "first_frame_only"))
BAD = ImageError("x.jpg: the file is empty; get it again", "empty")
ODD = 'a\tb\n"c", ü\udce9\r.jpg'


def render(format: str, path: str, outcome: Captioned | ImageError, *, single: bool = False, **settings: object) -> str:
    result = Result.of(path, outcome, model="tiny", **settings)  # type: ignore[arg-type]
    return encode(format_named(format, single=single).render(result)).decode()  # type: ignore[arg-type]


def rows(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text, newline="")))


def test_a_failed_input_has_a_record_in_jsonl_and_a_row_in_csv() -> None:
    error = {"code": "empty", "message": str(BAD)}
    assert json.loads(render("jsonl", "x.jpg", BAD)) == {"path": "x.jpg", "error": error}
    assert rows(render("csv", "x.jpg", BAD)) == [["x.jpg", *[""] * 8, "empty"]]
    assert [render(each, "x.jpg", BAD) for each in ("text", "coco", "sidecar")] == ["", "", ""]


def test_csv_has_a_row_a_caption() -> None:
    header = format_named("csv").header
    rest = ["40", "30", "ab12", "tiny", "alpha_on_white first_frame_only", ""]
    assert rows(header + render("csv", "x.jpg", GOOD)) == [
        list(COLUMNS),
        ["x.jpg", "a dog runs", "-1.2346", "0.7344", *rest],
        ["x.jpg", "a cat", "-3.0", "0.3679", *rest],
    ]
    assert format_named("jsonl").header == ""


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_spreadsheets_evaluate_no_cell(start: str) -> None:
    path = f"{start}cmd|'x'!A1.jpg"
    for outcome in (GOOD, BAD):
        for row in rows(render("csv", path, outcome, prepend=start)):
            assert row[0] == f"./{path}"  # still its name
            assert not any(cell.startswith(start) for cell in row if cell and not cell[1:2].isdecimal())


def test_text_has_paths_only_for_several_inputs() -> None:
    assert render("text", "x.jpg", GOOD) == "x.jpg\ta dog runs\nx.jpg\ta cat\n"
    assert render("text", "x.jpg", GOOD, single=True) == render("sidecar", "x.jpg", GOOD) == "a dog runs\na cat\n"


def test_odd_names_stay_one_record() -> None:
    assert render("text", ODD, GOOD).splitlines()[0] == 'a\\tb\\n"c", ü\\udce9\\r.jpg\ta dog runs'
    line = render("jsonl", ODD, GOOD)
    assert json.loads(line)["path"] == ODD
    assert line.count("\n") == 1
    assert "ü" in line
    assert [row[0] for row in rows(render("csv", ODD, GOOD))] == [ODD.replace("\udce9", "\\udce9")] * 2
    assert json.loads(coco_document([render("coco", ODD, GOOD)]))[0]["image_id"] == ODD[:-4]


def test_text_is_put_before_captions_but_not_into_the_models_own() -> None:
    record = json.loads(render("jsonl", "x.jpg", GOOD, prepend="sks, "))
    assert (record["caption"], record["captions"][0]["text"]) == ("sks, a dog runs", "a dog runs")
    assert render("sidecar", "x.jpg", GOOD, prepend="sks, ") == "sks, a dog runs\nsks, a cat\n"
    assert rows(render("csv", "x.jpg", GOOD, prepend="sks, "))[0][1] == "sks, a dog runs"
    assert json.loads(render("coco", "1.jpg", GOOD, prepend="sks, "))["caption"] == "sks, a dog runs"


def test_less_probable_captions_are_left_out_but_noted_in_jsonl() -> None:
    assert render("text", "x.jpg", GOOD, min_confidence=0.5) == "x.jpg\ta dog runs\n"
    assert len(rows(render("csv", "x.jpg", GOOD, min_confidence=0.5))) == 1
    assert json.loads(render("jsonl", "x.jpg", GOOD, min_confidence=0.5))["notes"] == list(GOOD.notes)
    assert [render(each, "x.jpg", GOOD, min_confidence=0.9) for each in ("text", "csv", "coco", "sidecar")] == [""] * 4
    assert json.loads(render("jsonl", "x.jpg", GOOD, min_confidence=0.9))["notes"] == [*GOOD.notes, "low_confidence"]


def test_a_line_end_in_a_caption_does_not_make_two() -> None:
    lines = Captioned(Caption("a\ndog", -1.0, (), (4, 2)), 4, 3, "ab", ())
    assert render("text", "x.jpg", lines) == "x.jpg\ta dog\n"
    assert json.loads(render("jsonl", "x.jpg", lines))["caption"] == "a\ndog"


@pytest.mark.parametrize(
    ("path", "identity"),
    [
        ("val/COCO_val2014_000000000042.jpg", 42),
        ("7.jpg", 7),
        ("dog.jpg", "dog"),
        ("3dogs", "3dogs"),
        ("a.b2.png", 2),
        ("x²", "x²"),
    ],
)
def test_coco_ids(path: str, identity: int | str) -> None:
    assert coco_id(path) == identity
    assert json.loads(render("coco", path, GOOD))["image_id"] == identity


def test_a_coco_document_holds_its_entries_whatever_line_ends_they_have() -> None:
    names = [f"a{end}b.jpg" for end in "\u2028\u2029\x85"]
    document = coco_document(["", *(render("coco", name, GOOD) for name in names)])
    assert [entry["image_id"] for entry in json.loads(document)] == [name[:-4] for name in names]


def test_coco_takes_the_best_caption() -> None:
    document = coco_document([render("coco", "42.jpg", GOOD)])
    assert json.loads(document) == [{"image_id": 42, "caption": "a dog runs"}]
    assert json.loads(coco_document([])) == []
