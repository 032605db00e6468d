"""Scores from raw captions: equal to the official tool's, and clear words for what cannot be scored."""

import json
import math
import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import captioner.metrics
from captioner.errors import AnnotationError, ConfigError, InputError, ResourceError
from captioner.metrics import score, score_captions
from captioner.metrics.java import find_java
from captioner.metrics.meteor import meteor, meteor_of
from captioner.metrics.metric import Captions
from captioner.metrics.scores import DEFAULT_METRICS
from tests.metrics.conftest import Official, read_official

NAMES = ["bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider_d"]
OFFICIAL_NAMES = dict(zip(NAMES, ["Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L", "CIDEr"], strict=True))

REFERENCES = {"1": ["a dog runs", "A dog."], "2": ["two cats sleep"], "3": ["a man"]}
CANDIDATES = {"1": "a dog", "2": "two cats", "3": "a woman"}


def test_public_names() -> None:
    assert captioner.metrics.__all__ == sorted(captioner.metrics.__all__)
    assert all(getattr(captioner.metrics, name).__name__ == name for name in captioner.metrics.__all__)
    with pytest.raises(AttributeError, match="no attribute 'bleu_score'"):
        _ = captioner.metrics.bleu_score


def test_equal_the_official_tool(official: Official) -> None:
    scores = score(official.candidates, official.references)
    assert list(scores.corpus) == list(scores.per_image) == NAMES
    for name in NAMES:
        np.testing.assert_allclose(scores.corpus[name], official.corpus[name], rtol=0, atol=1e-12)
        np.testing.assert_allclose(scores.per_image[name], official.per_image[name], rtol=0, atol=1e-12)
    assert score_captions(official.candidates, official.references) == scores.corpus


@pytest.mark.parametrize(
    "run",
    [
        "coco_karpathy_test/xe",
        "flickr8k_test_loo/human5",
        "abstract48S/candsB",
        "clipscore_example/good",
        "clipscore_example/bad",
        "nlg_eval_example/hyp",
        "edge_cases/a",
    ],
)
def test_equal_the_official_tool_on_shared_sets(run: str, load_shared: Callable[[str], Any]) -> None:
    folder, name = run.split("/")
    expected = load_shared(f"{folder}/official_{name}.json")
    scores = score(load_shared(f"{folder}/cand_{name}.json"), load_shared(f"{folder}/refs.json"))
    for ours, theirs in OFFICIAL_NAMES.items():
        per_image = [expected["per_image"][image][theirs] for image in scores.images]
        np.testing.assert_allclose(scores.corpus[ours], expected["corpus"][theirs], rtol=0, atol=1e-12)
        np.testing.assert_allclose(scores.per_image[ours], per_image, rtol=0, atol=1e-12)


def official_scores(candidates: dict[str, str], references: dict[str, list[str]]) -> dict[str, Any]:
    """What pycocoevalcap, which needs Java, makes of captions: metric -> corpus value and values of images."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    tokenizer = PTBTokenizer()
    others = tokenizer.tokenize({key: [{"caption": text} for text in texts] for key, texts in references.items()})
    own = tokenizer.tokenize({key: [{"caption": text}] for key, text in candidates.items()})
    corpus, per_image = Bleu(4).compute_score(others, own, verbose=0)
    found = dict(zip(NAMES, zip(corpus, per_image, strict=True), strict=False))
    return found | {
        "rouge_l": Rouge().compute_score(others, own),
        "cider_d": Cider().compute_score(others, own),
    }


@pytest.mark.skipif(find_spec("pycocoevalcap") is None, reason="pycocoevalcap is not installed")
def test_equal_the_official_tool_at_work(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        java = Path(find_java())
    except ResourceError as error:
        pytest.skip(str(error))
    monkeypatch.setenv("PATH", f"{java.parent}{os.pathsep}{os.environ['PATH']}")
    candidates = {
        "plain": "a man riding a wave on top of a surfboard",
        "empty": "",
        "punctuation": "...!?",
        "one": "dog",
        "repeats": "a a a a a a a a",
        "quotes": 'the sign says "STOP" (all-way), doesn\'t it?',
        "fraction": "22 3/4 cups of flour",
        "long": " ".join(["a very long caption about nothing"] * 12),
    }
    references = {
        "plain": ["A man rides a wave.", "a surfer on top of a wave", "Man surfing!"],
        "empty": ["something", ""],
        "punctuation": ["nothing at all", "?!"],
        "one": ["A dog", "dog", "dogs"],
        "repeats": ["a a a", "a b a b a b"],
        "quotes": ['A sign that says "STOP", doesn\'t it', "the all-way stop sign"],
        "fraction": ["22 3/4 cups of flour", "some cups of flour"],
        "long": ["a caption about nothing"],
    }
    scores = score(candidates, references)
    for name, (corpus, per_image) in official_scores(candidates, references).items():
        np.testing.assert_allclose(scores.corpus[name], corpus, rtol=0, atol=1e-12, err_msg=name)
        np.testing.assert_allclose(scores.per_image[name], per_image, rtol=0, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("official", ["edge_cases"], indirect=True)
def test_meteor_equals_the_official_tool(official: Official) -> None:
    try:
        scores = score(official.candidates, official.references, ["meteor"])
    except ResourceError as error:
        pytest.skip(str(error))
    np.testing.assert_allclose(scores.corpus["meteor"], official.corpus["meteor"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(scores.per_image["meteor"], official.per_image["meteor"], rtol=0, atol=1e-12)
    found = scores.intervals()["meteor"]
    assert found is not None
    assert found[0] <= official.corpus["meteor"] <= found[1]
    assert "|metrics:meteor-1.5|" in scores.signature


@pytest.mark.slow
def test_meteor_of_several_sets_equals_the_official_tool() -> None:
    """In one call, as METEOR takes ten seconds to start."""
    sets = [read_official(name) for name in ("clipscore_bad", "clipscore_good", "coco_one_against_four")]
    candidates = [text for each in sets for text in each.tokenized_candidates]
    references = [texts for each in sets for texts in each.tokenized_references]
    try:
        found = meteor(Captions(candidates, references))
    except ResourceError as error:
        pytest.skip(str(error))
    ends = np.cumsum([len(each.candidates) for each in sets])[:-1]
    for each, statistics in zip(sets, np.split(found.statistics.values, ends), strict=True):
        np.testing.assert_allclose(meteor_of(statistics.sum(axis=0)), each.corpus["meteor"], rtol=0, atol=1e-12)
        np.testing.assert_allclose(meteor_of(statistics)[:, 0], each.per_image["meteor"], rtol=0, atol=1e-12)


def test_images_are_the_candidates_in_their_order() -> None:
    scores = score({3: "a man", 1: "a dog"}, REFERENCES)
    assert scores.images == ("3", "1")
    assert scores.per_image["rouge_l"][0] == 1
    assert scores.notes == ("1 images with references have no candidate; they are left out",)
    used = {key: REFERENCES[key] for key in ("3", "1")}
    assert score({"3": "a man", "1": "a dog"}, used).corpus == scores.corpus  # document frequencies too
    assert score({"3": "a man", "1": "a dog"}, used).signature == scores.signature
    assert score(CANDIDATES, REFERENCES).notes == ()


def test_one_image_alone_has_no_cider() -> None:
    scores = score({"1": "a dog"}, REFERENCES)
    assert scores.corpus["cider_d"] is None
    assert math.isnan(scores.per_image["cider_d"][0])
    assert scores.reasons == {
        "cider_d": "one image alone: every n-gram of its references is in all images, so CIDEr gives it no weight"
    }
    assert scores.corpus["rouge_l"] == 1
    assert set(scores.intervals().values()) == {None}
    assert scores.compare(scores)["cider_d"] == {"difference": None, "interval": None}


NAN = float("nan")


@pytest.mark.parametrize(
    ("candidates", "references", "message"),
    [
        ({"9": "a"}, {}, "references: image 9: none, though it has a candidate; add some, or leave it out"),
        ({"9": "a"}, {"9": []}, "references: image 9: none, though"),
        ({"9": "a"}, {"9": None}, "references: image 9: none, though"),
        ({"9": "a"}, {"9": "a dog"}, "references: image 9: 'a dog' is not a list of strings; make it one"),
        ({"9": "a"}, {"9": ["a", NAN]}, "references: image 9: nan is not a string; correct or remove it"),
        ({"9": NAN}, {"9": ["a"]}, "candidates: image 9: nan is not a string; correct or remove it"),
        ({"9": None}, {"9": ["a"]}, "candidates: image 9: None is not a string"),
        ({"9": ["a"]}, {"9": ["a"]}, r"candidates: image 9: \['a'\] is not a string"),
        ({9: "a", "9": "b"}, {"9": ["a"]}, "candidates: image 9: twice, as a number and as a string; keep one of them"),
        ({NAN: "a"}, {"9": ["a"]}, "candidates: id nan: not an integer or a string; give one"),
        ({"9": "a"}, {"9": ["a"], True: ["a"]}, "references: id True: not an integer or a string"),
    ],
)
def test_captions_that_cannot_be_scored(candidates: Any, references: Any, message: str) -> None:
    with pytest.raises(AnnotationError, match=f"^{message}"):
        score_captions(candidates, references)


def test_nothing_to_score() -> None:
    with pytest.raises(InputError, match="no candidates: nothing to score"):
        score_captions({}, REFERENCES)


def test_unknown_names() -> None:
    similar = {"cider": "cider_d", "rouge": "rouge_l", "BLEU": "bleu", "bleu_4": "bleu", "spcie": "spice"}
    similar |= dict.fromkeys(["objects", "object_precision", "object_recall"], "object_words")
    for name, meant in similar.items():
        with pytest.raises(ConfigError, match=rf"metric {name}: not known; did you mean {meant}\?"):
            score_captions(CANDIDATES, REFERENCES, metrics=[name])
    with pytest.raises(ConfigError, match="metric bertscore: not known; choose from bleu, rouge_l, cider_d, meteor,"):
        score_captions(CANDIDATES, REFERENCES, metrics=["bertscore"])
    with pytest.raises(ConfigError, match="tokenizer word: not known; choose from ptb, char, none"):
        score_captions(CANDIDATES, REFERENCES, tokenizer="word")  # type: ignore[arg-type]


@pytest.mark.parametrize("separator", ["\n", "\r", "\r\n", "\v", "\f", "\u2028", "\u2029"])
def test_separators_of_lines_are_spaces(separator: str) -> None:
    broken = {**REFERENCES, "1": [f"a dog{separator}runs", "A dog."]}
    expected = score(CANDIDATES | {"2": "two cats"}, REFERENCES).corpus
    assert score(CANDIDATES | {"2": f"two{separator}cats"}, broken).corpus == expected


def test_empty_candidates_score_as_in_the_official_tool() -> None:
    scores = score({"1": "", "2": "...", "3": "a man"}, REFERENCES)
    assert scores.per_image["bleu_4"][:2].max() < 1e-6
    assert scores.per_image["rouge_l"].tolist() == [0, 0, 1]
    assert scores.per_image["cider_d"][:2].tolist() == [0, 0]


def test_other_languages_need_another_tokenizer() -> None:
    references = {"1": ["一只狗在跑。"], "2": ["两只猫"]}
    characters = score({"1": "一只狗", "2": "两只猫"}, references, tokenizer="char")
    assert characters.corpus["bleu_1"] == pytest.approx(math.exp(1 - 9 / 6), abs=1e-6)
    assert "|tok:char|" in characters.signature
    plain = {"1": "Ein  Hund.", "2": "zwei Katzen"}
    assert score(plain, {"1": ["Ein Hund."], "2": ["zwei Katzen"]}, tokenizer="none").per_image["rouge_l"].min() == 1
    assert score(plain, {"1": ["ein Hund"], "2": ["zwei Katzen"]}, tokenizer="none").per_image["rouge_l"][0] == 0


def test_the_signature_names_what_decides_the_numbers() -> None:
    signature = score(CANDIDATES, REFERENCES).signature
    parts = dict(part.split(":") for part in signature.split("|"))
    assert list(parts) == ["captioner", "tok", "metrics", "images", "refs", "hash"]
    assert (parts["tok"], parts["images"], parts["refs"]) == ("ptb", "3", "1-2")
    assert parts["metrics"] == "bleu+rouge_l+cider_d"
    reordered = dict(reversed(CANDIDATES.items()))
    assert score(reordered, REFERENCES).signature == signature
    assert score(CANDIDATES | {"1": "x"}, REFERENCES).signature == signature
    assert score(CANDIDATES, {**REFERENCES, "3": ["a woman"]}).signature != signature
    assert score(CANDIDATES, REFERENCES, metrics=["bleu"]).signature != signature


def test_intervals_hold_the_values_and_narrow_with_images(official: Official) -> None:
    if len(official.candidates) < 5:
        pytest.skip("too few images")
    scores = score(official.candidates, official.references)
    for name, found in scores.intervals().items():
        value = scores.corpus[name]
        assert found is not None
        assert value is not None
        assert found[0] < value < found[1]
    assert scores.intervals() == scores.intervals()
    assert scores.intervals(seed=1) != scores.intervals()


def test_paired_differences_are_narrower_than_their_parts(official: Official) -> None:
    scores = score(official.candidates, official.references)
    assert scores.compare(scores) == {name: {"difference": 0, "interval": (0, 0)} for name in NAMES}
    if len(official.candidates) < 5:
        return
    first = next(iter(official.candidates))
    other = score(official.candidates | {first: "a b c d"}, official.references)
    difference = scores.compare(other)["cider_d"]
    assert difference["difference"] == scores.corpus["cider_d"] - other.corpus["cider_d"]  # type: ignore[operator]
    low, high = difference["interval"]
    whole = scores.intervals()["cider_d"]
    assert whole is not None
    assert low <= difference["difference"] <= high
    assert high - low < whole[1] - whole[0]


def test_only_scores_of_the_same_images_are_compared() -> None:
    with pytest.raises(ConfigError, match="cannot be compared"):
        score(CANDIDATES, REFERENCES).compare(score({"1": "a dog"}, REFERENCES))


CAPTION = st.text(max_size=40) | st.text(alphabet="ab .,'\"\n\r\u2028\u00a0!?-/12()&", max_size=40)
SETS = st.dictionaries(
    st.integers() | st.text(max_size=3).map(lambda text: f"x{text}"),
    st.tuples(CAPTION, st.lists(CAPTION, min_size=1, max_size=3)),
    min_size=1,
    max_size=4,
)


@pytest.mark.parametrize("tokenizer", ["ptb", "char", "none"])
@given(captions=SETS)
def test_no_caption_crashes_it_and_values_stay_in_range(
    tokenizer: Any, captions: dict[Any, tuple[str, list[str]]]
) -> None:
    candidates = {image: candidate for image, (candidate, _) in captions.items()}
    references = {image: several for image, (_, several) in captions.items()}
    scores = score(candidates, references, [*DEFAULT_METRICS, "object_words"], tokenizer)
    assert (scores.corpus["cider_d"] is None) == (len(captions) == 1)
    limits = dict.fromkeys(scores.corpus, 1 + 1e-9) | {"cider_d": 10 + 1e-9}
    for name, limit in limits.items():
        values = [*scores.per_image[name].tolist(), scores.corpus[name]]
        assert all(value is None or math.isnan(value) or 0 <= value <= limit for value in values)
    for found in scores.intervals(resamples=3).values():
        assert found is None or 0 <= found[0] <= found[1] <= 10 + 1e-9


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5), lambda each: st.lists(each, max_size=3)
)


@given(
    candidates=st.dictionaries(st.text(max_size=2), JSON, max_size=3),
    references=st.dictionaries(st.text(max_size=2), JSON, max_size=3),
)
def test_whatever_is_no_caption_is_an_error_that_names_its_image(candidates: Any, references: Any) -> None:
    message = ""
    try:
        scores: Any = score_captions(candidates, references)
    except (AnnotationError, InputError) as error:
        scores, message = None, str(error)
    if scores is None:
        assert any(f"image {image}: " in message for image in candidates) or not candidates
    else:
        assert json.dumps(scores)


def test_object_words_stand_among_the_metrics():
    candidates = {"a": "a dog on a bench", "b": "two cats"}
    found = score(candidates, {"a": ["a puppy runs"], "b": ["a cat"]}, metrics=["object_words"])
    assert found.corpus == {"object_precision": pytest.approx(2 / 3), "object_recall": pytest.approx(1.0)}
    nothing = score({"a": "it is", "b": "so"}, {"a": ["it was"], "b": ["so so"]}, metrics=["object_words"])
    assert set(nothing.corpus) == set(nothing.reasons) == {"object_precision", "object_recall"}


def test_spice_needs_its_folder():
    with pytest.raises(ConfigError, match="spice_dir"):
        score({"a": "a dog"}, {"a": ["a dog"]}, metrics=["spice"])
