"""Objects that captions name: the list, how phrases are found, precision and recall, CHAIR."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioner.errors import ConfigError
from captioner.metrics.metric import Captions
from captioner.metrics.object_words import (
    COCO_CATEGORIES,
    NOTHING,
    NounList,
    chair,
    image_categories,
    object_words,
)

GOLDEN = Path(__file__).parent / "golden"
NOUNS = NounList.bundled()
CAPTION = st.lists(st.sampled_from(sorted({*NOUNS.named, *NOUNS.hinted, "a", "on"})), max_size=6).map(" ".join)


@pytest.mark.parametrize(
    ("caption", "named"),
    [
        ("a dog and two puppies", ["dog", "dog"]),
        ("a man holds a hot dog", ["person", "hot dog"]),
        ("a dog beside a traffic light", ["dog", "traffic light"]),
        ("a toy car on the road", ["toy", "street"]),
        ("a baby elephant and its mother", ["elephant", "person"]),
        ("people at home plate", ["person", "home plate"]),
        ("a teddy bear on a bed", ["teddy bear", "bed"]),
        ("a couple of cats", ["cat"]),
        ("a couple with cats", ["person", "cat"]),
        ("a girl smiles at the camera", ["person"]),
        ("a girl with a camera", ["person", "camera"]),
        ("a t-shirt and the catcher 's mitt", ["shirt", "baseball glove"]),
        ("an orange shirt", []),
        ("a bowl of oranges", ["bowl", "orange"]),
        ("the man watches a train", ["person", "train"]),
        ("a train waits at the train station", ["train", "train station"]),
        ("", []),
    ],
)
def test_the_longest_phrase_that_fits_wins(caption: str, named: list[str]) -> None:
    assert NOUNS.objects([caption]).named == named


def test_an_ambiguous_word_is_only_possible() -> None:
    found = NOUNS.objects(["a man on a board"])
    assert found.named == ["person"]
    assert found.possible == {"person", "snowboard", "skateboard", "surfboard"}


def test_captions_do_not_run_into_each_other() -> None:
    assert NOUNS.objects(["something hot", "dog"]).named == ["dog"]


def test_the_list_covers_what_it_promises() -> None:
    concepts = set(NOUNS.named.values())
    assert len(COCO_CATEGORIES) == 80
    assert concepts >= COCO_CATEGORIES
    assert concepts >= {"beach", "hat", "mountain", "snow", "street", "swimsuit", "toy", "tree", "water"}
    assert len(concepts) > 400
    for words in ("people men women boys girls children kids players", "puppies kittens ponies calves geese"):
        assert all(word in NOUNS.named for word in words.split())


def test_words_of_the_list_are_as_the_tokenizer_writes_them() -> None:
    from captioner.metrics.ptb import tokenize

    words = sorted({*NOUNS.named, *NOUNS.hinted})
    assert [word for word, written in zip(words, tokenize(words), strict=True) if word != written] == []


def test_format() -> None:
    nouns = NounList.parse("# a remark\n\ncat: cats,  house cat\n\nfan: fan?, ceiling fan\nnothing: cat walk", "x")
    assert nouns.named == {
        "cats": "cat",
        "house cat": "cat",
        "cat": "cat",
        "ceiling fan": "fan",
        "cat walk": NOTHING,
    }
    assert nouns.hinted == {"fan": {"fan"}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cat: cats\ncats, dogs", "nouns.txt:2: cats, dogs: no concept; write `concept: word, word`"),
        (": cats", "nouns.txt:1: : cats: no concept"),
        ("cat: pet\n\ndog: pet", "nouns.txt:3: pet is a cat already; add a ? to one of them"),
        ("cat: dog\ndog: puppy", "nouns.txt:2: dog is a cat already"),
    ],
)
def test_what_is_no_list(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        NounList.parse(text, "nouns.txt")
    assert str(caught.value).startswith(message)


def test_precision_and_recall() -> None:
    candidates = ["a dog and a cat on a couch", "a man rides a wave", "something blue"]
    references = [
        ["a puppy sits on a sofa", "a dog near a lamp"],  # dog, couch, lamp: the cat is made up
        ["a surfer under a cloud", "a man surfs"],  # person, cloud; surfing makes a wave possible
        ["a red bus"],
    ]
    found = object_words(Captions(candidates, references))
    np.testing.assert_array_equal(found.statistics.values, [[2, 3, 2, 3], [2, 2, 1, 2], [0, 0, 0, 1]])
    np.testing.assert_allclose(found.per_image, [[2 / 3, 2 / 3], [1, 1 / 2], [math.nan, 0]])
    np.testing.assert_allclose(found.corpus, [4 / 5, 3 / 6])


def test_no_objects_have_no_precision() -> None:
    assert np.isnan(object_words(Captions(["something blue"], [["it is red"]])).corpus).all()
    assert object_words(Captions([], [])).per_image.shape == (0, 2)


@given(CAPTION, st.lists(CAPTION, max_size=3))
def test_scores_are_shares_and_a_caption_supports_itself(candidate: str, references: list[str]) -> None:
    found = object_words(Captions([candidate], [references]))
    assert (np.isnan(found.corpus) | ((found.corpus >= 0) & (found.corpus <= 1))).all()
    np.testing.assert_array_equal(found.per_image[0], found.corpus)
    own = object_words(Captions([candidate], [[candidate]])).corpus
    assert (np.isnan(own) | (own == 1)).all()
    more = object_words(Captions([candidate], [[*references, candidate]])).corpus[0]
    assert math.isnan(more) or more == 1


def test_the_right_image_scores_higher_than_another() -> None:
    data = json.loads((GOLDEN / "coco_one_against_four.json").read_text(encoding="utf-8"))["tokenized"]
    candidates, references = list(data["candidates"].values()), list(data["references"].values())
    right = object_words(Captions(candidates, references)).corpus
    wrong = object_words(Captions(candidates, references[1:] + references[:1])).corpus
    assert right[0] > 0.8 > 0.4 > wrong[0]
    assert right[1] > 0.4 > 0.3 > wrong[1]


def test_chair() -> None:
    candidates = ["a man and a dog on a bench", "two cats", "a tree by the water", "a dog chases a dog"]
    instances = [{"person", "bench"}, {"cat"}, set(), {"bird"}]
    found = chair(candidates, instances)
    assert found.hallucinated == [["dog"], [], [], ["dog", "dog"]]
    assert found.instances == 3 / 6
    assert found.sentences == 2 / 4
    told = chair(candidates, instances, references=[["a puppy"], [], [], ["a cat"]])
    assert told.hallucinated == [[], [], [], ["dog", "dog"]]


def test_chair_without_mentions() -> None:
    found = chair(["a tree"], [set()])
    assert math.isnan(found.instances)
    assert found.sentences == 0
    assert math.isnan(chair([], []).sentences)


def test_chair_takes_only_categories_of_coco() -> None:
    with pytest.raises(ConfigError, match="instances: sofa: no categories of COCO"):
        chair(["a sofa"], [{"sofa", "dog"}])


def test_categories_of_images() -> None:
    instances: dict[str, Any] = {
        "images": [{"id": 7}, {"id": 8}],
        "categories": [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}],
        "annotations": [{"image_id": 7, "category_id": 18}, {"image_id": 7, "category_id": 18}],
    }
    assert image_categories(instances) == {7: {"dog"}, 8: set()}
