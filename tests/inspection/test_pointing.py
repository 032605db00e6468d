"""Pointing is right where the truth is known: oracles, uniform maps, a box over half of a picture."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from captioner.errors import AnnotationError, ConfigError
from captioner.geometry import Geometry
from captioner.inspection.maps import maps_with_perturbation
from captioner.inspection.pointing import _categories, _coverage, best_heads, center, instance_pointing, mosaic_pointing
from captioner.model.caption_model import CaptionModel
from tests.inspection.conftest import network
from tests.inspection.test_word_table import table_of


def test_an_oracle_points_perfectly_and_a_uniform_map_by_chance(trained, images):
    model, tokenizer = trained
    count = iter(range(100))

    def maps(model, forced):
        corner, words = next(count) % 4, len(forced.words)
        high, wide = model.encoder.grid
        oracle = np.zeros((words, high, wide), np.float32)
        row, column = divmod(corner, 2)
        oracle[:, row * (high - 1), column * (wide - 1)] = 0.3
        even = np.ones((words, 3, 5), np.float32)  # a map may have a grid of its own
        return {"oracle": oracle, "even": even, "empty": 0 * even}

    table = mosaic_pointing(model, tokenizer, images, mosaics=8, maps=maps)
    everything = np.ones(len(table.words), bool)
    assert table.mean("oracle mass", everything)[:3] == (1, 1, 1)
    assert table.mean("oracle hit", everything).value == 1
    assert table.mean("even mass", everything).value == pytest.approx(0.25)
    assert table.mean("empty mass", everything).value == pytest.approx(0.25)
    assert table.mean("empty hit", everything).value == pytest.approx(0.25)
    assert table.mean("oracle mass", everything, minus="even mass").value == pytest.approx(0.75)
    assert table.is_object.any()
    assert not table.is_object.all()


def test_the_standard_maps_of_a_model(trained, images):
    model, tokenizer = trained
    marked = CaptionModel(model.config, vocabulary=len(tokenizer)).eval()
    marked.load_state_dict(model.state_dict())
    marked.config = replace(model.config, best_heads=((0, 1), (1, 0)))
    table = mosaic_pointing(marked, tokenizer, images, mosaics=4, maps=maps_with_perturbation)
    names = {"raw", "relevance", "refined", "raw, best heads", "perturbation"}
    names |= {f"{kind}, layer {layer}" for kind in ("raw", "relevance") for layer in (0, 1)}
    assert set(table.columns) == {f"{name} {measure}" for name in names for measure in ("mass", "hit")}
    assert table.heads.shape == (len(table.words), 2, 2, 2)
    for values in table.columns.values():
        assert ((values >= 0) & (values <= 1 + 1e-6)).all()
    # Raw attention is the heads' mean, whose shares of patches add up.
    inside, total = table.heads.sum(axis=(1, 2)).T
    np.testing.assert_allclose(table.columns["raw mass"], inside / total, rtol=1e-4)
    again = mosaic_pointing(marked, tokenizer, images, mosaics=4, maps=maps_with_perturbation)
    np.testing.assert_array_equal(table.columns["relevance mass"], again.columns["relevance mass"])
    other = mosaic_pointing(
        marked, tokenizer, images, mosaics=4, map_model=CaptionModel(model.config, vocabulary=len(tokenizer)).eval()
    )
    assert other.words == table.words
    np.testing.assert_array_equal(other.visual_need, table.visual_need)  # the words stay those of the model
    assert not np.allclose(other.columns["raw mass"], table.columns["raw mass"])


def test_too_few_images_make_no_mosaic(trained, images):
    with pytest.raises(ConfigError, match="a mosaic takes four"):
        mosaic_pointing(*trained, images[:3])


def test_pointing_at_annotated_objects(trained, images, shapes, tmp_path):
    model, tokenizer = trained
    data = json.loads((shapes / "instances.json").read_text())
    table = instance_pointing(
        model,
        tokenizer,
        images,
        shapes / "instances.json",
        maps=lambda model, forced: {"even": np.ones((len(forced.words), 4, 4))},
    )
    names = {category["name"] for category in data["categories"]}
    assert len(table.words) > 0
    assert set(table.words) <= names | {f"{name}s" for name in names} | {f"{name}es" for name in names}
    np.testing.assert_allclose(table.columns["even mass"], table.columns["area"], atol=1e-6)
    assert table.columns["area"].min() > 0
    assert table.columns["area"].max() < 1
    # A box that covers the left half of a picture covers half of the patches.
    first = data["images"][0]
    only = {
        "images": [first],
        "categories": [{"id": 1, "name": "dog"}],
        "annotations": [
            {
                "id": 1,
                "image_id": first["id"],
                "category_id": 1,
                "iscrowd": 0,
                "bbox": [0, 0, first["width"] / 2, first["height"]],
                "segmentation": [
                    [0, 0, first["width"] / 2, 0, first["width"] / 2, first["height"], 0, first["height"]]
                ],
            }
        ],
    }
    (tmp_path / "half.json").write_text(json.dumps(only))
    image = replace(images[0], image_id=first["id"])

    def left(model, forced):
        high, wide = model.encoder.grid
        found = np.zeros((len(forced.words), high, wide))
        found[:, :, 0] = 1
        return {"left": found}

    half = instance_pointing(model, tokenizer, [image, images[1]], tmp_path / "half.json", maps=left)
    assert set(half.words) == {"dog"}
    assert len(half.words) == len(image.captions) > 1
    assert half.columns["area"] == pytest.approx([0.5] * len(half.words), abs=0.05)
    assert half.columns["left mass"] == pytest.approx([1.0] * len(half.words), abs=0.05)
    assert half.columns["center mass"] == pytest.approx([0.5] * len(half.words), abs=0.05)
    assert set(half.columns["left hit"]) == {1}
    # Two boxes that share a patch cover it together.
    corners = [(0, 0), (first["width"] / 2, 0), (first["width"] / 2, first["height"]), (0, first["height"])]
    boxes = [[(x / 2 + shift, y) for x, y in corners] for shift in (0, first["width"] / 4)]
    template = only["annotations"][0]
    only["annotations"] = [
        {**template, "id": number, "segmentation": [[each for corner in box for each in corner]]}
        for number, box in enumerate(boxes, 1)
    ]
    (tmp_path / "two.json").write_text(json.dumps(only))
    two = instance_pointing(model, tokenizer, [image], tmp_path / "two.json", maps=left)
    np.testing.assert_allclose(two.columns["area"], half.columns["area"], atol=0.01)
    np.testing.assert_allclose(two.columns["left mass"], half.columns["left mass"], atol=0.01)
    (tmp_path / "wrong.json").write_text("{}")
    with pytest.raises(AnnotationError, match="no COCO instances"):
        instance_pointing(model, tokenizer, images, tmp_path / "wrong.json")


def test_the_best_heads_are_those_whose_mean_map_points_best():
    heads = np.zeros((4, 2, 2, 2), np.float32)
    heads[..., 1] = 1.0
    heads[:, 0, 0, 0] = [0.9, 0.9, 0.1, 0.1]
    heads[:, 1, 1, 0] = [0.6, 0.6, 0.6, 0.6]
    heads[:, 0, 1, 0] = [0.0, 0.2, 0.9, 0.9]
    assert best_heads(table_of(heads))[0] == (1, 1)
    assert best_heads(table_of(heads), most=1) == ((1, 1),)
    heads[:, 1, 0] = [[0.4, 0.4]] * 4  # little mass, all of it right
    assert best_heads(table_of(heads)) == ((1, 0),)
    assert best_heads(table_of(heads, visual_need=[0, 0, 0, 0])) == ()


def test_captions_of_an_image_take_turns(images):
    model, tokenizer = network(["a dog and a cat"])
    two = [replace(image, captions=("a dog", "a cat")) for image in images]
    table = mosaic_pointing(model, tokenizer, two, mosaics=8)
    assert table.words == ("a", "dog") * 4 + ("a", "cat") * 4


def test_the_bars_of_a_letterboxed_photo_are_no_part_of_an_object():
    geometry = Geometry.of(64, 32, size=(64, 64), fit="letterbox")
    covered = _coverage(np.ones((32, 64), np.uint8), Image.new("RGB", (64, 32)), geometry, (4, 2))
    np.testing.assert_allclose(covered.reshape(4, 2), [[0, 0], [1, 1], [1, 1], [0, 0]], atol=0.01)


def test_words_name_categories_in_both_numbers_and_by_their_synonyms():
    words = ["Two", "crosses", "a", "cross,", "puppies", "and", "hot", "dogs"]
    expected = [None, "cross", None, "cross", "dog", None, "hot dog", "hot dog"]
    assert _categories(words, ["cross", "dog", "hot dog"]) == expected
    assert _categories(words, []) == [None] * len(words)


def test_the_center_of_a_grid_is_its_central_patches():
    assert np.argwhere(center((3, 5))).tolist() == [[1, 2]]
    assert np.argwhere(center((2, 3))).tolist() == [[0, 1], [1, 1]]
    assert np.count_nonzero(center((4, 4))) == 4
