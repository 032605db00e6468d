"""Hallucination: the features of a trace and the regression on them."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from captioner.geometry import Geometry
from captioner.inspection.hallucination import (
    FEATURES,
    fit_weights,
    hallucination_probabilities,
    is_hallucinated,
    object_words_of,
)
from captioner.inspection.trace import AttentionTrace


@pytest.fixture
def trace():
    words = ("a", "dog", "eats", "a", "hot", "dog.")
    weights = np.zeros((6, 1, 1, 5), np.float32)
    weights[..., :4] = 0.2
    weights[..., 4] = 0.2
    evidence = np.zeros((6, 1, 1, 5), np.float32)
    evidence[1, 0, 0] = [4, -3, 0, 0, 9]
    evidence[5, 0, 0] = [1, 1, 1, 1, 0]
    geometry, photo = Geometry.of(4, 4, size=(32, 32), fit="squash"), Image.new("RGB", (4, 4))
    log_probs, needs = (-1.0, -2.0, -3.0, -4.0, -5.0, -6.0), (0.0, 1.0, 0.0, 0.0, 0.5, 0.25)
    return AttentionTrace(
        " ".join(words), words, log_probs, weights, (2, 2), 0, geometry, photo, "relevance", needs, evidence
    )


def test_object_words_have_their_features(trace):
    dog, sausage = object_words_of(trace)
    assert (dog.concept, dog.word, sausage.concept, sausage.word) == ("dog", 1, "hot dog", 5)
    assert dog.features == pytest.approx((-2, 1, 4, 0, 1, 0.2, 1 / 6))
    assert sausage.features == pytest.approx((-11, 0.75, 4, 2, 0.25, 0.2, 4 / 6))
    assert len(FEATURES) == len(dog.features)
    finer = replace(trace, method="refined", contributions=np.ones((6, 4, 4), np.float32))
    assert object_words_of(finer) == [dog, sausage]  # the regression was fitted to relevance


def test_phrases_that_name_no_object_are_left_out(trace):
    assert object_words_of(replace(trace, words=("rock", "climbing", "and", "a", "rock", "concert"))) == []


def test_each_object_word_has_a_probability(trace):
    found = hallucination_probabilities(trace, [0.0] * 7 + [0.0])
    assert found == {1: 0.5, 5: 0.5}
    assert hallucination_probabilities(trace, [1.0] + [0.0] * 6 + [2.0])[1] == pytest.approx(0.5)  # log p is -2


def test_an_object_is_hallucinated_where_no_reference_may_mean_it():
    assert is_hallucinated("dog", ["a cat sleeps", "a kitten on a sofa"])
    assert not is_hallucinated("dog", ["a cat sleeps", "two Puppies."])
    assert not is_hallucinated("skateboard", ["a boy on a board"])


def test_regression_finds_the_weights_that_made_the_labels():
    rng = np.random.default_rng(0)
    features = rng.normal(3, [1, 5, 0.1], (20000, 3))
    truth = np.array([1.0, -0.4, 5.0, -10.0])
    chance = 1 / (1 + np.exp(-(features @ truth[:3] + truth[3] - 3)))
    labels = rng.random(len(features)) < chance
    np.testing.assert_allclose(fit_weights(features, labels), truth - [0, 0, 0, 3], rtol=0.1)
    constant = np.column_stack([features, np.ones(len(features))])
    assert np.isfinite(fit_weights(constant, labels)).all()


def test_labels_that_one_feature_decides_leave_the_weights_finite():
    features = np.random.default_rng(0).normal(size=(200, 2))
    weights = fit_weights(features, features[:, 0] > 0)
    assert np.abs(weights).max() < 100
    assert weights[0] > 10 * abs(weights[1])
