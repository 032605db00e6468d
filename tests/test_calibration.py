"""Confidence and familiarity: what is counted as right, and what is fitted to it."""

import math
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.confidence import calibration_error
from captioner import Captioner, calibration
from captioner.calibration import WordOutcomes, calibrate
from captioner.caption import Caption, CaptionWord, log_odds
from captioner.checkpoint import load_model, save_model
from captioner.config_files import load_config
from captioner.data.formats import load_captions
from captioner.extraction import extract_features
from captioner.model import familiarity
from captioner.training.run import train
from scripts import calibrate as script
from tests.inspection.conftest import network

TINY = """
encoder: {name: test_convnext, image_size: [64, 64]}
decoder: {width: 32, layers: 1, heads: 2, max_length: 24}
tokenizer: {min_count: 1}
training: {epochs: 1, trainer: {enable_progress_bar: false, accelerator: cpu}}
"""


@pytest.fixture
def few_photos_suffice(monkeypatch):
    monkeypatch.setattr(calibration, "MIN_TRAIN", 8)
    monkeypatch.setattr(calibration, "MIN_VAL", 2)
    monkeypatch.setattr(familiarity, "DIRECTIONS", 4)


@pytest.fixture
def splits(shapes):
    """The drawn training and validation pictures; each has a caption of its own that no model writes."""
    captions = load_captions(shapes)
    return captions.split("train").images, captions.split("val").images


def table(count, seed=0):
    """Words whose outcomes follow known weights."""
    rng = np.random.default_rng(seed)
    features = rng.normal([1, 0.5, -0.3], [2, 0.3, 0.4], (count, 3))
    objects = rng.random(count) < 0.4
    weights = ((0.5, -1.0, -0.7, 1.0), (0.8, 0.2, -2.0, -1.5))
    chance = WordOutcomes(features, objects, objects, np.arange(count)).confidence(weights)
    return WordOutcomes(features, rng.random(count) < chance, objects, np.arange(count)), weights


def test_a_word_is_right_where_a_human_caption_has_it():
    words = tuple(CaptionWord(text, -1.0) for text in ("A", "dog", "runs."))
    one = Caption("A dog runs.", -3.0, words, (1, 2, 3))
    other = Caption("A", -1.0, words[:1], (1,), unfamiliarity=2.0)
    found = WordOutcomes.of([(one, ["The Dog, a brown one", "it runs!"]), (other, ["dog"])])
    assert found.right.tolist() == [True, True, True, False]
    assert found.is_object.tolist() == [False, True, False, False]
    assert found.captions.tolist() == [0, 0, 0, 1]
    expected = [(log_odds(-1), place, 0) for place in (0, 1 / 3, 2 / 3)] + [(log_odds(-1), 0, math.log(2))]
    np.testing.assert_allclose(found.features, expected)


def test_the_weights_of_objects_and_other_words_are_found():
    words, weights = table(60000)
    np.testing.assert_allclose(words.fit(), weights, atol=0.15)
    assert calibration_error(words.confidence(words.fit()), words.right) < 0.01
    assert calibration_error(words.confidence([(1, 0, 0, 0)] * 2), words.right) > 0.05


def test_few_objects_share_the_weights_of_all_words():
    words, _ = table(1000)
    few = words._replace(is_object=np.arange(1000) < calibration.MIN_OBJECTS - 1)
    one, other = few.fit()
    assert one == other
    assert len(set(words.fit())) == 2


@pytest.mark.usefixtures("few_photos_suffice")
def test_a_calibrated_model_agrees_with_what_was_fitted(splits, tmp_path, shapes):
    train_images, val = splits
    model, tokenizer = network([text for image in train_images for text in image.captions])
    calibrate(model, tokenizer, train_images, val)
    captions = Captioner(model, tokenizer, name="tiny")([image.source for image in val])
    words = WordOutcomes.of(zip(captions, [image.captions for image in val], strict=True))
    np.testing.assert_allclose(words.fit(), model.config.confidence, rtol=1e-2, atol=1e-2)
    said = [word.confidence for caption in captions for word in caption.words]
    np.testing.assert_allclose(words.confidence(model.config.confidence), said, rtol=1e-5)
    distances = [caption.unfamiliarity for caption in captions]
    assert np.quantile(distances, calibration.FAMILIAR_SHARE) == pytest.approx(1, rel=1e-3)
    other, _ = network([text for image in train_images for text in image.captions])
    store = extract_features(other.encoder, load_captions(shapes), tmp_path / "store")
    calibrate(other, tokenizer, train_images, val, store)
    assert other.config.familiar_distance == pytest.approx(model.config.familiar_distance, rel=0.05)


def test_with_too_few_photos_nothing_is_fitted_and_old_fits_are_dropped(splits):
    model, tokenizer = network(["a dog"])
    model.config = replace(model.config, confidence=((1, 0, 0, 0),) * 2, familiar_distance=2.0)
    calibrate(model, tokenizer, *splits)
    assert (model.config.confidence, model.config.familiar_distance, model.familiarity) == ((), None, None)


@pytest.mark.usefixtures("few_photos_suffice")
def test_training_ends_with_a_calibrated_model_and_the_script_calibrates_others(shapes, tmp_path, capsys):
    file = tmp_path / "tiny.yaml"
    file.write_text(TINY)
    folder = train(load_config(file, [f"data.root={shapes}"]), tmp_path / "run")
    trained, tokenizer = load_model(folder)
    assert len(trained.config.confidence) == 2
    plain, _ = load_model(folder)
    plain.familiarity, plain.config = None, replace(plain.config, confidence=(), familiar_distance=None)
    save_model(tmp_path / "plain", plain, tokenizer, card="a card")
    assert script.main([str(tmp_path / "plain"), "--data", str(shapes)]) == 0
    again, _ = load_model(tmp_path / "plain")
    assert again.config.familiar_distance == pytest.approx(trained.config.familiar_distance, rel=1e-3)
    np.testing.assert_allclose(again.config.confidence, trained.config.confidence, rtol=1e-2, atol=1e-2)
    assert (tmp_path / "plain" / "README.md").read_text() == "a card"
    assert "familiar distance" in capsys.readouterr().out
