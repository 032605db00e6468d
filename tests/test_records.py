"""Records: what JSONL, the service and Ray say about an image, and about a trace."""

import json
import math
from dataclasses import replace

import pytest

from captioner.caption import Caption, Captioned, CaptionWord
from captioner.errors import ImageError
from captioner.records import caption_record

BEST = Caption(
    "a dog runs",
    -1.234567,
    (CaptionWord("a", -0.1), CaptionWord("dog", -0.50004), CaptionWord("runs", -0.2)),
    (4, 5, 6, 2),
    (Caption("a cat", -3.0, (CaptionWord("a", -0.1), CaptionWord("cat", -2.0)), (4, 7, 2)),),
)
GOOD = Captioned(BEST, 40, 30, "ab12", ("alpha_on_white", "first_frame_only"))


def test_the_record_of_a_captioned_image() -> None:
    assert caption_record("x.jpg", GOOD, model="tiny") == {
        "path": "x.jpg",
        "sha256": "ab12",
        "caption": "a dog runs",
        "log_prob": -1.2346,
        "confidence": round(math.exp(-1.234567 / 4), 4),
        "captions": [
            {
                "text": "a dog runs",
                "log_prob": -1.2346,
                "words": [
                    {"text": "a", "log_prob": -0.1},
                    {"text": "dog", "log_prob": -0.5},
                    {"text": "runs", "log_prob": -0.2},
                ],
            },
            {
                "text": "a cat",
                "log_prob": -3.0,
                "words": [{"text": "a", "log_prob": -0.1}, {"text": "cat", "log_prob": -2.0}],
            },
        ],
        "width": 40,
        "height": 30,
        "model": "tiny",
        "notes": ["alpha_on_white", "first_frame_only"],
    }


def test_the_record_of_a_failed_input() -> None:
    error = ImageError("x.jpg: the file is empty; get it again", "empty")
    assert caption_record("x.jpg", error, model="tiny", min_confidence=1) == {
        "path": "x.jpg",
        "error": {"code": "empty", "message": "x.jpg: the file is empty; get it again"},
    }


def test_a_calibrated_model_adds_confidences_and_the_distance_of_the_photo() -> None:
    caption = replace(BEST, unfamiliarity=1.23456).calibrated([(1.0, 0.0, 0.0, 0.0), (0.5, 0.0, 0.0, -1.0)])
    record = caption_record("x.jpg", replace(GOOD, caption=caption), model="tiny", min_confidence=1)
    plain = caption_record("x.jpg", GOOD, model="tiny")
    a, dog, runs = caption.words
    assert record["confidence"] == round((a.confidence + dog.confidence + runs.confidence) / 3, 4)
    assert record["captions"][0]["words"][1] == {
        "text": "dog",
        "log_prob": -0.5,
        "confidence": round(dog.confidence, 4),
    }
    assert record["captions"][1:] == plain["captions"][1:]
    assert record.pop("unfamiliarity") == 1.23
    assert list(record) == list(plain)
    assert record["notes"] == [*GOOD.notes, "unfamiliar", "low_confidence"]
    familiar = caption_record("x.jpg", replace(GOOD, caption=replace(caption, unfamiliarity=0.5)), model="tiny")
    assert (familiar["unfamiliarity"], familiar["notes"]) == (0.5, [*GOOD.notes])


@pytest.mark.parametrize(("least", "notes"), [(0.734, []), (0.735, ["low_confidence"])])
def test_an_improbable_caption_is_noted(least: float, notes: list[str]) -> None:
    record = caption_record("x.jpg", GOOD, model="tiny", min_confidence=least)
    assert record["notes"] == [*GOOD.notes, *notes]


def test_prepended_text_is_not_the_models_own() -> None:
    record = caption_record("x.jpg", GOOD, model="tiny", prepend="sks, ")
    assert (record["caption"], record["captions"][0]["text"]) == ("sks, a dog runs", "a dog runs")
    assert json.loads(json.dumps(record)) == record
