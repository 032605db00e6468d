"""Evaluation beyond the scores, on captions that can be counted by hand."""

import json
import sys

import pytest
import torch

from captioner.caption import Caption
from captioner.config import DecoderConfig, TokenizerConfig
from captioner.evaluation import caption_features, evaluate_captions
from captioner.generation import BeamSearch, Sampling
from captioner.metrics import score_captions
from captioner.metrics.ptb import tokenize
from captioner.model.decoder import TextDecoder
from captioner.tokenizer import Tokenizer

REFERENCES = {
    1: ["a dog runs on the grass", "a brown dog"],
    2: ["two men ride bikes", "people on bicycles"],
    "c": ["a girl with a ball", "a child plays"],
}


def caption(text, cut_off=False):
    return Caption(text, -1.0, (), (5,), cut_off=cut_off)


@pytest.fixture
def captions():
    return {
        1: caption("a dog and a dog and a"),
        2: caption("Two men ride bikes."),
        "c": caption("a girl", cut_off=True),
    }


def test_statistics_are_counted(captions):
    statistics = evaluate_captions(captions, REFERENCES, known=["two men ride bikes", "other"]).statistics
    assert statistics.distinct_captions == 1
    assert statistics.distinct_1 == 8 / 13  # a dog and two men ride bikes girl
    assert statistics.distinct_2 == 7 / 10
    assert statistics.vocabulary == 8
    assert statistics.novel == 2 / 3
    assert (statistics.shortest, statistics.longest, statistics.mean_length) == (2, 7, 13 / 3)
    assert statistics.reference_length == pytest.approx((6 + 3 + 4 + 3 + 5 + 3) / 6)
    assert statistics.repeated_bigrams == 1 / 3
    assert statistics.repeated_objects == 1 / 3  # the dogs
    assert statistics.cut_off == 2 / 3  # one ends on "a", one was stopped
    assert statistics.object_precision == 1.0
    assert statistics.object_recall == 4 / 6  # dog, person, bicycle, person; not the grass nor the ball


def test_the_scores_are_those_of_score(captions):
    found = evaluate_captions(captions, REFERENCES)
    texts = {image: each.text for image, each in captions.items()}
    assert found.scores.corpus == score_captions(texts, REFERENCES)
    assert found.to_dict()["metrics"] == found.scores.corpus
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["captions"]["novel"] is None
    assert "chair" not in found.to_dict()


def test_every_caption_is_tokenized_once(captions):
    counted = []

    def count(frame, event, argument):
        if event == "call" and frame.f_code is tokenize.__code__:
            counted.extend(frame.f_locals["captions"])

    references = {image: [f"{text} once" for text in several] for image, several in REFERENCES.items()}
    sys.setprofile(count)
    try:
        evaluate_captions(captions, references, known=["a known one"], objects={1: (), 2: (), "c": ()})
    finally:
        sys.setprofile(None)
    candidates = [each.text for each in captions.values()]
    assert sorted(counted) == sorted(
        [*candidates, *(text for several in references.values() for text in several), "a known one"]
    )


def test_chair_counts_objects_that_are_not_there(captions):
    there = {1: {"dog"}, 2: {"person"}, "c": set()}
    found = evaluate_captions(captions, REFERENCES, objects=there).to_dict()["chair"]
    # dog dog, person bicycle, person: the bicycle and the girl are not there.
    assert found == {"instances": 2 / 5, "sentences": 2 / 3}


def test_results_are_cocos(captions):
    results = evaluate_captions(captions, REFERENCES).results()
    assert results[1] == {"image_id": 2, "caption": "Two men ride bikes."}
    assert [result["image_id"] for result in results] == [1, 2, "c"]


def test_images_are_ranked_worst_first(captions):
    metric, ranked = evaluate_captions(captions, REFERENCES).ranked()
    assert metric == "cider_d"
    assert ranked[-1] == 2  # a reference, word by word
    metric, ranked = evaluate_captions({1: captions[1]}, REFERENCES).ranked()
    assert (metric, ranked) == ("bleu_1", [1])


def test_images_without_a_score_are_ranked_as_the_worst(captions):
    captions = captions | {2: caption("something blue")}
    metric, ranked = evaluate_captions(captions, REFERENCES, metrics=["object_words"]).ranked()
    assert (metric, ranked[0]) == ("object_precision", 2)


def test_a_caption_without_words_is_evaluated():
    found = evaluate_captions({1: caption(""), 2: caption("?")}, REFERENCES).statistics
    assert (found.mean_length, found.vocabulary, found.distinct_1, found.object_precision) == (0, 0, 0, None)


@pytest.fixture
def decoder():
    torch.manual_seed(0)
    words = Tokenizer.train(["a dog runs on the grass and barks"], TokenizerConfig(min_count=1))
    config = DecoderConfig(width=16, heads=2, layers=1, max_length=12)
    return TextDecoder(config, vocabulary=len(words), encoder_width=8).eval(), words


@pytest.mark.parametrize("search", [BeamSearch(width=3), Sampling(seed=3)])
def test_batches_of_features_and_memories_give_the_same_captions(decoder, search):
    network, words = decoder
    features = torch.randn(5, 4, 8)
    whole = caption_features(network, words, [(["a", "b", "c", "d", "e"], features)], search)
    parts = caption_features(
        network,
        words,
        [
            (["a", "b"], features[:2].half().float()),
            (["b", "a"], features[2:4]),  # known already: passed over
            (["c", "d", "c"], network.project(features[[2, 3, 2]])),
            (["e"], features[4:]),
        ],
        search,
    )
    assert list(parts) == list(whole)
    assert [parts[image].text for image in "cde"] == [whole[image].text for image in "cde"]
    one = caption_features(network, words, [(["d"], features[3:4])], search)["d"]
    assert one.text == whole["d"].text
    assert one.log_prob == pytest.approx(whole["d"].log_prob, abs=1e-5)
