"""The measures are right where the truth is known: oracles, uniform maps, everything blurred."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from captioner.config import DecoderConfig, EncoderConfig, ModelConfig, TokenizerConfig
from captioner.data.dataset import read_photo, view_pixels
from captioner.data.formats import load_captions
from captioner.errors import AnnotationError, ConfigError
from captioner.inspection.faithfulness import (
    WordTable,
    area_under_curve,
    best_heads,
    box_pointing,
    mosaic_pointing,
    pixel_curves,
    rank_correlation,
    read_caption,
    read_words,
    slow_maps,
    standard_maps,
)
from captioner.inspection.relevance import perturbation
from captioner.inspection.summary import heads_summary, markdown, null_markdown, null_summary, summarize
from captioner.model.caption_model import CaptionModel
from captioner.tokenizer import Tokenizer


def network(texts, null_patch=True):
    torch.manual_seed(0)
    tokenizer = Tokenizer.train(texts, TokenizerConfig(min_count=1))
    config = ModelConfig(
        encoder=EncoderConfig(name="test_convnext", image_size=(64, 64)),
        decoder=DecoderConfig(width=32, layers=2, heads=2, max_length=24, null_patch=null_patch),
    )
    return CaptionModel(config, vocabulary=len(tokenizer)).eval(), tokenizer


@pytest.fixture(scope="module")
def images(shapes):
    """Drawn pictures, whose captions name objects of the noun list besides."""
    return [
        replace(image, captions=tuple(f"a dog and {text}" for text in image.captions))
        for image in load_captions(shapes).split("train").images[:8]
    ]


@pytest.fixture(scope="module")
def trained(images):
    return network([text for image in images for text in image.captions])


def test_an_oracle_points_perfectly_and_a_uniform_map_by_chance(trained, images):
    model, tokenizer = trained
    count = iter(range(100))

    def maps(model, forced):
        corner, words = next(count) % 4, len(forced.words)
        high, wide = model.encoder.grid
        oracle = np.zeros((words, high, wide), np.float32)
        row, column = divmod(corner, 2)
        oracle[:, row * (high - 1), column * (wide - 1)] = 0.3
        even = np.ones((words, high * wide), np.float32)
        return {"oracle": oracle.reshape(words, -1), "even": even, "empty": 0 * even}

    table = mosaic_pointing(model, tokenizer, images, mosaics=8, maps=maps)
    everything = np.ones(len(table.words), bool)
    assert table.mean("oracle mass", everything)[:3] == (1, 1, 1)
    assert table.mean("oracle hit", everything).value == 1
    assert table.mean("even mass", everything).value == pytest.approx(0.25)
    assert table.mean("empty mass", everything).value == pytest.approx(0.25)
    assert table.mean("empty hit", everything).value == pytest.approx(0.25)
    assert table.mean("oracle mass", everything, minus="even mass").value == pytest.approx(0.75)
    assert table.named.any()
    assert not table.named.all()


def test_the_standard_maps_of_a_model(trained, images):
    model, tokenizer = trained
    marked = CaptionModel(model.config, vocabulary=len(tokenizer)).eval()
    marked.load_state_dict(model.state_dict())
    marked.config = replace(model.config, best_heads=((0, 1), (1, 0)))
    table = mosaic_pointing(marked, tokenizer, images, mosaics=4, maps=slow_maps)
    names = {"raw", "relevance", "raw, best heads", "perturbation"}
    names |= {f"{kind}, layer {layer}" for kind in ("raw", "relevance") for layer in (0, 1)}
    assert set(table.columns) == {f"{name} {measure}" for name in names for measure in ("mass", "hit")}
    assert table.heads.shape == (len(table.words), 2, 2, 2)
    for values in table.columns.values():
        assert ((values >= 0) & (values <= 1 + 1e-6)).all()
    # Raw attention is the heads' mean, whose shares of patches add up.
    inside, total = table.heads.sum(axis=(1, 2)).T
    np.testing.assert_allclose(table.columns["raw mass"], inside / total, rtol=1e-4)
    again = mosaic_pointing(marked, tokenizer, images, mosaics=4, maps=slow_maps)
    np.testing.assert_array_equal(table.columns["relevance mass"], again.columns["relevance mass"])
    other = mosaic_pointing(
        marked, tokenizer, images, mosaics=4, shown=CaptionModel(model.config, vocabulary=len(tokenizer)).eval()
    )
    assert other.words == table.words
    np.testing.assert_array_equal(other.needs, table.needs)  # the words stay those of the model
    assert not np.allclose(other.columns["raw mass"], table.columns["raw mass"])


def test_too_few_images_make_no_mosaic(trained, images):
    with pytest.raises(ConfigError, match="a mosaic takes four"):
        mosaic_pointing(*trained, images[:3])


@pytest.mark.parametrize("null_patch", [True, False])
def test_visual_need_is_the_difference_that_the_image_makes(images, null_patch):
    model, tokenizer = network([text for image in images for text in image.captions], null_patch)
    memory = model.encode(torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8))
    forced = read_caption(model, tokenizer, memory, "a dog and a red circle")
    ids = torch.tensor([[tokenizer.bos, *tokenizer.encode("a dog and a red circle")]])
    if null_patch:
        assert model.blind(memory).positions == 1
    for word in range(len(forced.words)):
        logs = [
            model.decoder(ids[:, : word + 1], each).logits.log_softmax(-1)[0, -1, ids[0, word + 1]].item()
            for each in (memory, model.blind(memory))
        ]
        assert forced.log_probs[word] == pytest.approx(logs[0], abs=1e-4)
        assert forced.needs[word] == pytest.approx(logs[0] - logs[1], abs=1e-4)


def test_where_everything_is_blurred_all_rankings_are_alike(trained, images):
    table = pixel_curves(*trained, images[:3], fractions=(1.0,))
    maps = {column.rpartition(" ")[0] for column in table.columns}
    assert {"raw", "relevance", "center", "edges", "random"} <= maps
    for name in maps:
        np.testing.assert_allclose(table.columns[f"{name} deletion"], table.columns["raw deletion"], atol=1e-4)
        # Showing all of the photo gains what blurring all of it loses.
        np.testing.assert_allclose(table.columns[f"{name} insertion"], table.columns["raw deletion"], atol=1e-4)
    assert np.abs(table.columns["raw deletion"]).max() > 0
    assert table.named.all()
    assert len(table.words) == 3


def test_the_patch_that_matters_most_is_worth_most(trained, images):
    """One patch is hidden: no other ranking can lose more than that by the patches' own losses."""
    model, tokenizer = trained

    def maps(model, forced):
        encoder = model.encoder
        lost = perturbation(
            model.decoder, forced.memory, forced.tokens, forced.spans, encoder.grid, encoder.patches, size=1
        )
        exact = lost[:, encoder.patches].numpy()
        return {"exact": exact - exact.min(), "worst": exact.max() - exact}

    table = pixel_curves(model, tokenizer, images[:4], maps=maps, fractions=(0.01,))
    for name in ("worst", "center", "edges", "random"):
        assert (table.columns["exact memory"] >= table.columns[f"{name} memory"] - 1e-5).all()
    assert (table.columns["exact memory"] > table.columns["worst memory"]).all()


def test_pointing_at_annotated_objects(trained, images, shapes, tmp_path):
    model, tokenizer = trained
    data = json.loads((shapes / "instances.json").read_text())
    table = box_pointing(
        model,
        tokenizer,
        images,
        shapes / "instances.json",
        maps=lambda model, forced: {"even": np.ones((len(forced.words), 4))},
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
        return {"left": found.reshape(len(forced.words), -1)}

    half = box_pointing(model, tokenizer, [image, images[1]], tmp_path / "half.json", maps=left)
    assert half.words == ("dog",)
    assert half.columns["area"] == pytest.approx([0.5], abs=0.05)
    assert half.columns["left mass"] == pytest.approx([1.0], abs=0.05)
    assert half.columns["left hit"].tolist() == [1]
    (tmp_path / "wrong.json").write_text("{}")
    with pytest.raises(AnnotationError, match="no COCO instances"):
        box_pointing(model, tokenizer, images, tmp_path / "wrong.json")


def table_of(heads, named=None, needs=None):
    count = len(heads)
    return WordTable(
        photos=np.arange(count),
        words=tuple("dog" for _ in range(count)),
        named=np.ones(count, bool) if named is None else np.array(named),
        needs=np.full(count, 2.0, np.float32) if needs is None else np.array(needs, np.float32),
        shares=np.linspace(1, 0, count).astype(np.float32),
        null_mass=np.zeros(count, np.float32),
        columns={"raw mass": np.linspace(0, 1, count).astype(np.float32), "new mass": np.ones(count, np.float32)},
        heads=heads,
    )


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
    assert best_heads(table_of(heads, needs=[0, 0, 0, 0])) == ()


def test_summaries():
    table = table_of(np.full((6, 1, 2, 2), 0.5, np.float32), named=[True] * 4 + [False] * 2, needs=[2, 2, 0, 2, 2, 2])
    found = summarize(table)
    assert [group["words"] for group in found.values()] == [3, 1, 2]
    first = found["objects that need the image by more than 1 nat"]["mass"]
    assert first["raw"]["value"] == pytest.approx((0 + 0.2 + 0.6) / 3, abs=1e-4)
    assert first["new"]["minus_raw"]["value"] == pytest.approx(1 - 0.8 / 3, abs=1e-4)
    assert "minus_raw" not in first["raw"]
    page = markdown("Title", found)
    assert page.startswith("## Title\n")
    assert "| new | 1.000 (1.000 to 1.000) | +0.733" in page
    assert heads_summary(table)["mass_by_layer_and_head"] == [[1, 1]]
    assert null_summary(table) == {}
    nulls = replace(
        table, null_mass=np.array([0.1, 0.1, 0.3, 0.1, 0.9, 0.8], np.float32), words=("dog",) * 4 + ("a", "of")
    )
    null = null_summary(nulls)
    assert null["auc_function_words_above_objects"] == 1
    assert null["objects"] == pytest.approx(0.15, abs=1e-4)
    page = null_markdown({"human captions": null, "its own captions": null})
    assert "| auc function words above objects | 1.0 | 1.0 |" in page
    assert json.dumps(found, allow_nan=False)


def test_the_area_under_the_curve_counts_pairs():
    rng = np.random.default_rng(0)
    one, other = rng.integers(0, 6, 40), rng.integers(0, 5, 30)
    pairs = [(a > b) + (a == b) / 2 for a in one for b in other]
    assert area_under_curve(one, other) == pytest.approx(np.mean(pairs))
    assert np.isnan(area_under_curve(one, other[:0]))


def test_rank_correlation():
    assert rank_correlation(np.array([1, 2, 3, 9]), np.array([10, 20, 21, 400])) == pytest.approx(1)
    assert rank_correlation(np.array([1, 2, 3]), np.array([3, 2, 1])) == pytest.approx(-1)
    # Ties: ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4.
    assert rank_correlation(np.array([1, 2, 2, 3]), np.array([1, 2, 3, 4])) == pytest.approx(0.9486833)


def test_standard_maps_have_a_row_a_word(trained):
    model, tokenizer = trained
    memory = model.encode(torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8))
    forced = read_caption(model, tokenizer, memory, "a red circle")
    assert {each.shape for each in standard_maps(model, forced).values()} == {
        (3, model.encoder.grid[0] * model.encoder.grid[1])
    }


def test_words_are_read_with_what_is_known_without_the_image(trained, images):
    """The share of the distribution that both have, against a loop; the words of a caption, in order."""
    model, tokenizer = trained
    captions = [image.captions[0] for image in images[:2]]
    table = read_words(model, tokenizer, images[:2], captions)
    assert table.columns == {}
    pixels = torch.from_numpy(view_pixels(read_photo(images[0]), model.encoder.config, images[0]))
    with torch.inference_mode():
        memory = model.encode(pixels[None])
        tokens = torch.tensor([[tokenizer.bos, *tokenizer.encode(captions[0]), tokenizer.eos]])[:, :-1]
        seen = model.decoder(tokens, memory).logits.softmax(-1)[0]
        blind = model.decoder(tokens, model.blind(memory)).logits.softmax(-1)[0]
    common = [
        sum(min(float(p), float(q)) for p, q in zip(*rows, strict=True)) for rows in zip(seen, blind, strict=True)
    ]
    words = tokenizer.words([*tokenizer.encode(captions[0])])
    expected = [np.mean(common[word.start : word.stop]) for word in words]
    np.testing.assert_allclose(table.shares[: len(words)], expected, atol=1e-5)
    assert list(table.photos) == [0] * len(words) + [1] * (len(table.photos) - len(words))
