"""Captions as data sets want them."""

import json
import math

import pytest

from captioner.caption import Caption, Captioned, CaptionWord
from captioner.cli.finishing import Finishing, Tag
from captioner.cli.formats import Result, format_named
from captioner.generation import BeamSearch, Greedy, Sampling


def caption(text: str, *log_probs: float, alternatives: tuple[Caption, ...] = ()) -> Caption:
    words = tuple(CaptionWord(word, each) for word, each in zip(text.split(), log_probs, strict=True))
    return Caption(text, sum(log_probs), words, (4, 2), alternatives)


OTHER = caption("a dog and a ball", -0.1, -0.9, -0.1, -0.1, -0.4)
BEST = caption("a grey dog runs in snow", -0.1, -0.2, -0.3, -0.1, -0.1, -0.7, alternatives=(OTHER,))


@pytest.mark.parametrize(
    ("finishing", "text", "finished"),
    [
        (Finishing(), "a dog runs", "a dog runs"),
        (Finishing(sentence=True), "a dog runs", "A dog runs."),
        (Finishing(sentence=True), "Is it a dog?", "Is it a dog?"),
        (Finishing(sentence=True), "", ""),
        (Finishing(trigger="sks", sentence=True), "a dog runs", "sks, A dog runs."),
        (
            Finishing(replacements=(("grey", "gray"), ("dog", "hot dog"))),
            "a Grey dog, greyish",
            "a gray hot dog, greyish",
        ),
        (Finishing(replacements=(("in front", ""), ("dog", ""))), "a dog in front of dogs", "a of dogs"),
        (Finishing(replacements=(("ball", ""),)), "a dog, a ball.", "a dog, a."),
        (Finishing(replacements=((r"c++", r"\1"),)), "a c++ book", r"a \1 book"),
    ],
)
def test_the_text_of_a_caption(finishing: Finishing, text: str, finished: str) -> None:
    assert finishing.finished(text) == finished


def test_tags_are_the_most_certain_objects_of_all_captions() -> None:
    dog, ball = Tag("dog", math.exp(-0.3)), Tag("ball", math.exp(-0.4))
    found = Finishing(tags=9).tags_of(BEST)
    assert found[:2] == [dog, ball]
    assert [tag.confidence for tag in found] == sorted((tag.confidence for tag in found), reverse=True)
    assert Finishing(tags=1).tags_of(BEST) == [dog]
    assert Finishing(tags=2, replacements=(("ball", ""), ("dog", "hound"))).tags_of(BEST)[0].text == "hound"
    assert Finishing().tags_of(BEST) == []


def test_records_keep_the_captions_of_the_model() -> None:
    finishing = Finishing(sentence=True, trigger="sks", tags=2, replacements=(("grey", "gray"),))
    outcome = Captioned(BEST, 40, 30, "ab", ())
    result = Result.of("x.jpg", outcome, "tiny", finishing=finishing)
    assert result.record["caption"] == "sks, A gray dog runs in snow."
    assert [each["text"] for each in result.record["captions"]] == [BEST.text]
    assert [tag["text"] for tag in result.record["tags"]] == ["dog", "ball"]
    assert format_named("sidecar").render(result) == "sks, dog, ball\n"
    plain = Result.of("x.jpg", outcome, "tiny")
    assert "tags" not in plain.record
    assert [each["text"] for each in plain.record["captions"]] == [BEST.text, OTHER.text]


def test_a_photo_without_object_words_has_no_tags() -> None:
    outcome = Captioned(caption("it runs", -0.1, -0.2), 40, 30, "ab", ())
    result = Result.of("x.jpg", outcome, "tiny", finishing=Finishing(tags=3))
    assert result.record["tags"] == []
    assert [format_named(name).render(result) for name in ("text", "csv", "coco", "sidecar")] == [""] * 4
    assert json.loads(format_named("jsonl").render(result))["caption"] == "it runs"


def test_tags_ask_the_search_for_more_captions() -> None:
    assert Finishing(tags=3).search(BeamSearch(width=4)) == BeamSearch(width=4, captions=4)
    assert Finishing(tags=3).search(Sampling(seed=2)) == Sampling(seed=2, samples=5)
    assert Finishing(tags=3).search(Greedy()) == Greedy()
    assert Finishing().search(BeamSearch()) == BeamSearch()
