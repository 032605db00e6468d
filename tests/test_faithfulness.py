"""The measurement of a model's maps: which tables it makes, and the weights that it fits."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from captioner import Captioner, faithfulness
from captioner.data.formats import load_captions
from captioner.errors import ConfigError
from captioner.faithfulness import Options, Report, hallucination_examples, measure
from captioner.inspection.hallucination import fit_weights
from tests.inspection.conftest import network


@pytest.fixture(scope="module")
def images(shapes):
    """Pictures that show a dog, by their references."""
    return [replace(image, captions=("a dog",)) for image in load_captions(shapes).split("train").images[:8]]


@pytest.fixture(scope="module")
def captioner():
    """A model whose words are all objects, and whose weights are not those of `random_weights`."""
    return Captioner(*network(["dog cat man car bus train horse"], seed=1), name="tiny")


def test_tests_that_are_left_out_have_no_table(captioner, images):
    lines = []
    report = measure(captioner, images, Options(mosaics=100, captions=0), lines.append)
    assert lines == ["pointing in 8 mosaics"]  # there are no more photos
    assert set(report.to_dict()) == {"random_weights", "pointing"}  # no word needs the image, so no head is compared
    assert report.to_markdown().startswith("## Pointing in 8 mosaics\n")
    assert report.notes == ("too few words for narrow intervals; take more mosaics",)
    nothing = measure(captioner, images, Options(mosaics=0, captions=0))
    assert nothing == Report(nothing.options)
    assert (nothing.to_dict(), nothing.to_markdown(), nothing.best_heads) == ({"random_weights": False}, "", ())
    with pytest.raises(ConfigError, match="a mosaic takes four"):
        measure(captioner, images[:3])


def test_hallucination_weights_are_fitted_to_enough_examples(captioner, images, monkeypatch):
    images = images[:3]
    examples = hallucination_examples(captioner, images)
    words, hallucinated = len(examples.hallucinated), int(examples.hallucinated.sum())
    assert 0 < hallucinated <= words
    assert set(examples.photos) == set(range(3))
    few = measure(captioner, images, Options(mosaics=0))
    assert few.hallucination == {"words": words, "hallucinated": hallucinated}
    assert f"{hallucinated} of {words} object words" in few.to_markdown()
    assert few.hallucination_weights == ()
    assert few.notes == ("fewer than 50 hallucinated objects, or others: too few to fit weights",)
    monkeypatch.setattr(faithfulness, "MIN_EXAMPLES", 0)
    enough = measure(captioner, images, Options(mosaics=0))
    np.testing.assert_allclose(enough.hallucination_weights, fit_weights(examples.features, examples.hallucinated))
    assert enough.notes == ()
    assert measure(captioner, images, Options(mosaics=0, random_weights=True)).hallucination is None


def test_random_weights_are_the_same_each_time_and_leave_the_seed_alone(captioner, images):
    options = Options(mosaics=4, captions=0, random_weights=True)
    state = torch.random.get_rng_state()
    first, second = (measure(captioner, images, options).to_dict() for _ in range(2))
    assert first == second
    assert torch.equal(torch.random.get_rng_state(), state)
    assert first["pointing"] != measure(captioner, images, replace(options, random_weights=False)).pointing


def test_random_weights_point_at_annotated_objects_by_maps_of_their_own(captioner, images, shapes, tmp_path):
    instances = json.loads((shapes / "instances.json").read_text())
    for category in instances["categories"]:
        category["name"] = "dog"
    (tmp_path / "dogs.json").write_text(json.dumps(instances))
    options = Options(mosaics=0, captions=0, instances=tmp_path / "dogs.json")
    lines = []
    [trained] = measure(captioner, images, options, lines.append).grounding.values()
    [random] = measure(captioner, images, replace(options, random_weights=True)).grounding.values()
    assert lines == ["pointing at annotated objects"]
    assert trained["area"] == random["area"]
    assert trained["mass"] != random["mass"]


def test_images_can_be_file_contents(captioner, images):
    contents = [replace(image, source=image.path.read_bytes()) for image in images[:2]]
    for found, expected in zip(
        hallucination_examples(captioner, contents), hallucination_examples(captioner, images[:2]), strict=True
    ):
        np.testing.assert_array_equal(found, expected)
