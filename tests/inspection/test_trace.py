"""The weights are those of the steps that predict the words, for any caption, tokenizer, model and photo."""

import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from captioner.config import DecoderConfig, EncoderConfig, ModelConfig, TokenizerConfig
from captioner.errors import ConfigError
from captioner.geometry import Geometry
from captioner.inspection.trace import METHODS, AttentionTrace, Method
from captioner.model.caption_model import CaptionModel
from captioner.model.memory import Memory
from captioner.pipeline import Captioner
from captioner.tokenizer import Tokenizer

CAPTIONS = ["a brown dog runs over the green grass", "two men play music near the street", "unbelievable grasshoppers"]
LAYERS, HEADS = 2, 4


def tiny(
    *, kind: str = "word", null_patch: bool = True, encoder: str = "test_vit", size: tuple[int, int] = (96, 64)
) -> Captioner:
    """An untrained captioner whose attention is far from even."""
    torch.manual_seed(0)
    tokenizer = Tokenizer.train(CAPTIONS, TokenizerConfig(kind=kind, min_count=1, vocabulary_size=280))  # type: ignore[arg-type]
    config = ModelConfig(
        encoder=EncoderConfig(name=encoder, image_size=size),
        decoder=DecoderConfig(width=32, layers=LAYERS, heads=HEADS, max_length=24, null_patch=null_patch),
    )
    model = CaptionModel(config, vocabulary=len(tokenizer))
    with torch.no_grad():
        for name, parameter in model.decoder.named_parameters():
            if "cross_attention" in name or "embedding" in name:
                parameter.mul_(12)
    return Captioner(model, tokenizer, name="tiny")


@pytest.fixture(scope="module")
def captioner() -> Captioner:
    return tiny()


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8))


def forced(captioner: Captioner, photo: Image.Image, tokens: list[int]) -> np.ndarray:
    """(T, L, H, N): the weights of the steps after the start token and after each of `tokens`, for all of them."""
    geometry = Geometry.of(*photo.size, size=(96, 64), fit="squash")
    pixels = torch.from_numpy(np.array(geometry.apply(photo, "bicubic"))).permute(2, 0, 1)[None]
    with torch.inference_mode():
        memory: Memory = captioner.model.encode(pixels)
        _, weights = captioner.model.decoder(
            torch.tensor([[captioner.tokenizer.bos, *tokens]]), memory, return_weights=True
        )
    return weights[0].permute(2, 0, 1, 3).numpy()


def by_hand(weights: np.ndarray, grid: tuple[int, int], prefix: int = 0) -> AttentionTrace:
    words = tuple(f"w{number}" for number in range(len(weights)))
    geometry = Geometry.of(8, 6, size=(32, 32), fit="squash")
    photo = Image.new("RGB", (8, 6))
    return AttentionTrace(
        " ".join(words), words, (-1.0,) * len(words), weights.astype(np.float32), grid, prefix, geometry, photo
    )


def test_the_weights_are_those_of_a_direct_forced_pass(captioner: Captioner, photo: Image.Image) -> None:
    text = "two men play music"
    trace = captioner.inspect(photo, caption=text)
    direct = forced(captioner, photo, captioner.tokenizer.encode(text))
    assert trace.words == ("two", "men", "play", "music")
    assert trace.weights.shape == (4, LAYERS, HEADS, 1 + trace.grid[0] * trace.grid[1] + 1)
    np.testing.assert_allclose(trace.weights, direct[:4], atol=1e-6)
    assert np.ptp(trace.weights, axis=-1).max() > 0.1  # else equality says little


def test_a_word_has_the_map_of_the_step_that_predicts_it(captioner: Captioner, photo: Image.Image) -> None:
    text = "two men play music"
    trace, tokens = captioner.inspect(photo, caption=text), captioner.tokenizer.encode(text)
    for word in range(len(tokens)):
        # The step that has seen only what comes before the word.
        np.testing.assert_allclose(trace.weights[word], forced(captioner, photo, tokens[:word])[-1], atol=1e-5)


def test_a_later_word_changes_no_earlier_map(captioner: Captioner, photo: Image.Image) -> None:
    one = captioner.inspect(photo, caption="two men play music near the street")
    other = captioner.inspect(photo, caption="two men play grass near the street")
    # Music and grass are chosen by the same step, so their maps are alike too; those after them are not.
    np.testing.assert_allclose(one.weights[:4], other.weights[:4], atol=1e-6)
    assert one.log_probs[:3] == pytest.approx(other.log_probs[:3], abs=1e-5)
    assert one.log_probs[3] != pytest.approx(other.log_probs[3], abs=1e-3)
    assert np.abs(one.weights[4] - other.weights[4]).max() > 1e-3


def test_the_models_own_caption_has_the_probabilities_that_it_was_made_with(
    captioner: Captioner, photo: Image.Image
) -> None:
    trace, caption = captioner.inspect(photo), captioner(photo)
    assert trace.text == caption.text
    assert trace.words == tuple(word.text for word in caption.words)
    assert trace.log_probs == pytest.approx([word.log_prob for word in caption.words], abs=1e-3)


def test_a_word_of_several_tokens_has_their_mean_map_and_the_sum_of_their_log_probabilities(photo: Image.Image) -> None:
    captioner = tiny(kind="bpe")
    text = "two unbelievable men"
    tokens = captioner.tokenizer.encode(text)
    spans = captioner.tokenizer.words(tokens)
    trace, direct = captioner.inspect(photo, caption=text), forced(captioner, photo, tokens)
    assert trace.words == ("two", "unbelievable", "men")
    assert max(span.stop - span.start for span in spans) > 3
    for word, span in enumerate(spans):
        np.testing.assert_allclose(trace.weights[word], direct[span.start : span.stop].mean(axis=0), atol=1e-6)
    parts = [captioner.inspect(photo, caption=text[:end]).log_probs for end in (3, 16)]
    assert trace.log_probs[0] == pytest.approx(parts[0][0], abs=1e-4)
    assert trace.log_probs[1] == pytest.approx(parts[1][1], abs=1e-4)
    assert len({round(value, 3) for value in trace.log_probs}) == 3


def test_unknown_words_are_shown_as_such(captioner: Captioner, photo: Image.Image) -> None:
    assert captioner.inspect(photo, caption="a purple dog").words == ("a", "<unk>", "dog")


def test_one_word_is_enough(captioner: Captioner, photo: Image.Image) -> None:
    trace = captioner.inspect(photo, caption="Dog!")
    assert (trace.text, trace.words, trace.weights.shape[0]) == ("dog", ("dog",), 1)


@pytest.mark.parametrize("caption", ["", "  ", "?!"])
def test_a_caption_without_words_is_refused(captioner: Captioner, photo: Image.Image, caption: str) -> None:
    with pytest.raises(ConfigError, match="no words"):
        captioner.inspect(photo, caption=caption)


def test_the_longest_caption_is_taken_and_a_longer_one_refused(captioner: Captioner, photo: Image.Image) -> None:
    assert len(captioner.inspect(photo, caption="dog " * 23).words) == 23
    with pytest.raises(ConfigError, match="24 tokens, this model takes 23"):
        captioner.inspect(photo, caption="dog " * 24)


@pytest.mark.parametrize("size", [(80, 60), (1, 2000), (2000, 1), (1, 1)])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_any_photo_has_a_map_of_its_own_size(captioner: Captioner, size: tuple[int, int], mode: str) -> None:
    trace = captioner.inspect(Image.new(mode, size, 77), caption="a dog")
    assert trace.photo.size == size
    assert trace.geometry.heatmap(trace.patches(1)).shape == size[::-1]
    assert Image.open(_png(trace)).format == "PNG"


def test_a_photo_that_lies_on_its_side_is_looked_at_upright(captioner: Captioner, photo: Image.Image) -> None:
    lying = photo.transpose(Image.Transpose.ROTATE_90)
    lying.getexif()[0x0112] = 6
    trace = captioner.inspect(lying, caption="a dog")
    assert trace.photo.size == photo.size
    np.testing.assert_allclose(trace.weights, captioner.inspect(photo, caption="a dog").weights, atol=1e-6)


def test_without_a_null_patch_there_is_no_null_mass(photo: Image.Image) -> None:
    trace = tiny(null_patch=False).inspect(photo, caption="a dog")
    assert not trace.has_null_patch
    assert trace.null_mass.tolist() == [0.0, 0.0]
    assert trace.weights.shape[3] == trace.prefix + trace.grid[0] * trace.grid[1]


def test_prefix_tokens_patches_and_the_null_patch_share_all_attention(captioner: Captioner, photo: Image.Image) -> None:
    trace = captioner.inspect(photo, caption="a dog runs", method="raw")
    assert (trace.prefix, trace.grid, trace.has_null_patch) == (1, (6, 4), True)
    on_patches = np.array([trace.patches(word).sum() for word in range(3)])
    np.testing.assert_allclose(trace.prefix_mass + on_patches + trace.null_mass, 1.0, atol=1e-5)
    assert trace.prefix_mass.min() > 0


def test_a_convolutional_encoder_has_no_prefix(photo: Image.Image) -> None:
    trace = tiny(encoder="test_efficientnet", size=(64, 96)).inspect(photo, caption="a dog")
    assert trace.prefix == 0
    assert trace.weights.shape[3] == trace.grid[0] * trace.grid[1] + 1


def test_a_region_takes_all_attention(captioner: Captioner, photo: Image.Image) -> None:
    trace = captioner.inspect(photo, caption="a dog", region=(0.0, 0.0, 0.5, 0.5), method="raw")
    seen = trace.patches(0) > 0
    assert seen[:3, :2].all()
    assert seen.sum() == 6
    np.testing.assert_array_equal(trace.visible, seen)
    assert captioner.inspect(photo, caption="a dog").visible is None
    assert trace._repr_png_() != replace(trace, visible=None)._repr_png_()  # the sheet shows what was hidden


def test_patches_are_read_row_by_row_after_the_prefix() -> None:
    weights = np.zeros((1, 1, 1, 9))
    weights[0, 0, 0] = [9, 1, 2, 3, 4, 5, 6, 7, 8]
    assert by_hand(weights, (2, 3), prefix=1).patches(0).tolist() == [[1, 2, 3], [4, 5, 6]]
    assert by_hand(weights, (2, 3), prefix=1).null_mass.tolist() == [15]


def test_one_layer_or_head_is_selected() -> None:
    weights = np.random.default_rng(0).dirichlet(np.ones(7), size=(3, LAYERS, HEADS))
    trace = by_hand(weights, (2, 3))
    one = trace.select(layer=1, head=2)
    np.testing.assert_allclose(one.weights, weights[:, 1:2, 2:3], rtol=1e-6)
    np.testing.assert_allclose(one.patches(2).ravel(), weights[2, 1, 2, :6], rtol=1e-6)
    np.testing.assert_allclose(trace.select(head=2).patches(2).ravel(), weights[2, :, 2, :6].mean(axis=0), rtol=1e-6)
    several = trace.select(heads=[(0, 1), (1, 3)])
    expected = (weights[2, 0, 1, :6] + weights[2, 1, 3, :6]) / 2
    np.testing.assert_allclose(several.patches(2).ravel(), expected, rtol=1e-6)
    np.testing.assert_allclose(several.null_mass, (weights[:, 0, 1, 6] + weights[:, 1, 3, 6]) / 2, rtol=1e-6)
    np.testing.assert_allclose(one.null_mass, weights[:, 1, 2, 6], rtol=1e-6)
    assert trace.select() is trace
    with pytest.raises(ConfigError, match="none given"):
        trace.select(heads=[])
    assert len(repr(trace)) < 100


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"layer": 2}, "layer 2: this model has layers 0 to 1"),
        ({"layer": -1}, "layer -1: this model has layers 0 to 1"),
        ({"head": 4}, "head 4: this model has heads 0 to 3"),
        ({"heads": [(0, 0), (2, 1)]}, "layer 2: this model has layers 0 to 1"),
    ],
)
def test_a_layer_or_head_that_is_not_there_is_refused(choice: dict[str, Any], message: str) -> None:
    trace = by_hand(np.ones((1, LAYERS, HEADS, 6)), (2, 3))
    with pytest.raises(ConfigError, match=message):
        trace.select(**choice)


def test_entropy_counts_bits_over_the_patches_alone() -> None:
    weights = np.zeros((3, 1, 1, 10))
    weights[0, 0, 0] = [0.2, *[0.05] * 8, 0.4]
    weights[1, 0, 0] = [0.9, 0, 0, 0.05, 0, 0, 0, 0, 0, 0.05]
    weights[2, 0, 0] = [0.5, 0.2, 0, 0, 0, 0, 0, 0, 0.2, 0.1]
    trace = by_hand(weights, (2, 4), prefix=1)
    np.testing.assert_allclose(trace.entropy, [math.log2(8), 0, 1], atol=1e-6)
    np.testing.assert_allclose(trace.peak, [1 / 8, 1, 1 / 2], atol=1e-6)


def test_attention_on_letterbox_bars_is_told() -> None:
    weights = np.full((1, 1, 1, 16), 1 / 16)
    trace = replace(by_hand(weights, (4, 4)), geometry=Geometry.of(80, 40, size=(32, 32), fit="letterbox"))
    assert trace.padding_mass == pytest.approx([0.5])
    assert by_hand(weights, (4, 4)).padding_mass == pytest.approx([0.0])


def test_words_that_the_photo_made_likelier_need_it() -> None:
    trace = by_hand(np.full((3, 1, 1, 4), 0.25), (2, 2))
    assert trace.needs_photo == (True, True, True)  # not measured
    assert replace(trace, needs=(-3.0, 1.0, 1.1)).needs_photo == (False, False, True)


def test_confidence_is_the_mean_over_words_or_that_of_their_probabilities() -> None:
    trace = replace(by_hand(np.full((2, 1, 1, 4), 0.25), (2, 2)), log_probs=(math.log(0.9), math.log(0.4)))
    assert trace.confidence == pytest.approx(0.6)
    assert replace(trace, confidences=(0.25, 0.75)).confidence == pytest.approx(0.5)
    assert by_hand(np.zeros((0, 1, 1, 4)), (2, 2)).confidence == 1.0


@pytest.mark.parametrize("kind", ["word", "bpe"])
def test_the_next_best_tokens_are_those_of_the_step(kind: str, photo: Image.Image) -> None:
    captioner = tiny(kind=kind)
    tokenizer = captioner.tokenizer
    tokens = [*tokenizer.encode("two men"), tokenizer.eos]
    trace = captioner.inspect(photo, caption="two men")
    geometry = Geometry.of(*photo.size, size=(96, 64), fit="squash")
    pixels = torch.from_numpy(np.array(geometry.apply(photo, "bicubic"))).permute(2, 0, 1)[None]
    with torch.inference_mode():
        logits = captioner.model(pixels, torch.tensor([[tokenizer.bos, *tokens[:-1]]]))
    starts = [word.start for word in tokenizer.words(tokens)]
    for start, found in zip(starts, trace.next_best, strict=True):
        shares = logits[0, start].softmax(0)
        best = shares.argsort(descending=True).tolist()
        expected = [each for each in best if each not in (tokens[start], *tokenizer.suppressed)][:5]
        assert [text for text, _ in found] == [tokenizer.decode([each]).strip() for each in expected]
        assert [share for _, share in found] == pytest.approx(shares[expected].tolist(), abs=1e-5)


def test_a_file_of_an_older_version_is_loaded(captioner: Captioner, photo: Image.Image, tmp_path: Path) -> None:
    trace = captioner.inspect(photo, caption="a brown dog")
    trace.save(tmp_path / "dog.npz")
    with np.load(tmp_path / "dog.npz") as arrays:
        content = dict(arrays)
    about = json.loads(content["about"].tobytes())
    for name in ("confidences", "next_best", "best_heads", "unfamiliarity"):
        del about[name]
    content["about"] = np.frombuffer(json.dumps(about).encode(), np.uint8)
    np.savez(tmp_path / "old.npz", **content)
    old = AttentionTrace.load(tmp_path / "old.npz")
    assert (old.words, old.next_best, old.best_heads, old.confidences) == (trace.words, (), (), ())


@pytest.mark.parametrize("method", METHODS)
def test_a_trace_is_saved_and_loaded(captioner: Captioner, photo: Image.Image, tmp_path: Path, method: Method) -> None:
    trace = captioner.inspect(photo, caption="a brown dog", method=method, region=(0.0, 0.0, 0.5, 1.0))
    trace = replace(trace, confidences=(0.5, 0.25, 1.0), best_heads=((0, 1), (1, 2)), unfamiliarity=1.5)
    trace.save(tmp_path / "dog.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["dog.npz"]
    again = AttentionTrace.load(tmp_path / "dog.npz")
    np.testing.assert_array_equal(again.weights, trace.weights)
    assert trace.visible is not None
    np.testing.assert_array_equal(again.visible, trace.visible)
    assert again._repr_png_() == trace._repr_png_()
    assert again._repr_html_() == trace._repr_html_()
    assert (again.words, again.log_probs, again.geometry) == (trace.words, trace.log_probs, trace.geometry)


def test_an_unknown_method_is_refused(captioner: Captioner, photo: Image.Image) -> None:
    with pytest.raises(ConfigError, match="method rollout: not known; choose from raw, relevance, perturbation"):
        captioner.inspect(photo, method="rollout")  # type: ignore[arg-type]


@pytest.mark.parametrize("encoder", ["test_vit", "test_efficientnet"])
def test_tiles_are_drawn_in_their_places(encoder: str) -> None:
    """A tile's patches have the weights that the tile's own memory gives them, where the tile is."""
    captioner = tiny(encoder=encoder, size=(64, 64))
    photo = Image.fromarray(np.random.default_rng(1).integers(0, 256, (128, 192, 3), dtype=np.uint8))
    trace = captioner.inspect(photo, caption="a dog runs", tiles=(2, 3), method="raw")
    high, wide = captioner.model.encoder.grid
    assert trace.grid == (2 * high, 3 * wide)
    assert trace.prefix == 6 * captioner.model.encoder.prefix
    np.testing.assert_allclose(trace.weights.sum(axis=3), 1, atol=1e-5)
    laid = np.stack([trace.patches(word) for word in range(3)])
    for row in range(2):
        for column in range(3):
            tile = photo.crop((64 * column, 64 * row, 64 * column + 64, 64 * row + 64))
            x, y = column / 3, row / 2
            # Among the patches of one tile the weights are those of a look at this tile alone: in the first layer.
            alone = captioner.inspect(tile, caption="a", method="raw").select(layer=0, head=1).patches(0)
            part = trace.select(layer=0, head=1).patches(0)[row * high : row * high + high, column * wide :][:, :wide]
            np.testing.assert_allclose(part / part.sum(), alone / alone.sum(), atol=1e-4)
            box = trace.geometry.patch_box(row * high, column * wide, trace.grid)
            assert box[:2] == pytest.approx((x, y))
    assert laid.min() > 0


@pytest.mark.parametrize(("encoder", "grid"), [("test_efficientnet", (8, 12)), ("test_vit", (8, 12))])
def test_refined_maps_lie_on_the_grid_of_an_earlier_stage(encoder: str, grid: tuple[int, int]) -> None:
    """A photo of a convolutional network has twice as many rows and columns as its last map; a ViT's are the same."""
    captioner = tiny(encoder=encoder, size=(128, 192))
    photo = Image.fromarray(np.random.default_rng(1).integers(0, 256, (128, 192, 3), dtype=np.uint8))
    plain = captioner.inspect(photo, caption="a dog runs", method="relevance")
    refined = captioner.inspect(photo, caption="a dog runs", method="refined")
    assert (refined.method, plain.method) == ("refined", "relevance")
    assert (refined.map_grid, refined.grid, plain.map_grid) == (grid, captioner.model.encoder.grid, plain.grid)
    for word in range(3):
        assert refined.patches(word).shape == grid
        assert refined.patches(word).sum() == pytest.approx(plain.patches(word).sum(), rel=1e-4)
    np.testing.assert_allclose(refined.weights, plain.weights, atol=1e-6)
    assert refined.evidence is not None
    assert plain.evidence is not None
    np.testing.assert_allclose(refined.evidence, plain.evidence, atol=1e-5)
    assert refined.entropy.max() <= math.log2(grid[0] * grid[1])
    one = refined.select(layer=1)
    assert one.patches(1).sum() == pytest.approx(plain.select(layer=1).patches(1).sum(), rel=1e-4)


def test_refined_maps_leave_out_what_was_hidden(photo: Image.Image) -> None:
    captioner = tiny(encoder="test_efficientnet", size=(128, 128))
    trace = captioner.inspect(photo, caption="a dog runs", region=(0.0, 0.0, 0.5, 1.0), method="refined")
    maps = np.stack([trace.patches(word) for word in range(3)])
    assert maps[:, :, :4].sum() > 0
    assert not maps[:, :, 4:].any()


def test_without_a_stage_and_in_tiles_maps_are_by_relevance(photo: Image.Image) -> None:
    captioner = tiny(encoder="test_efficientnet", size=(128, 128))
    captioner.model.encoder.stage = None
    trace = captioner.inspect(photo, caption="a dog runs")
    assert (trace.method, trace.map_grid) == ("relevance", trace.grid)
    tiled = tiny(encoder="test_efficientnet", size=(64, 64)).inspect(photo, caption="a dog runs", tiles=(2, 1))
    assert (tiled.method, tiled.map_grid) == ("relevance", (4, 2))


def test_the_caption_is_the_same_by_every_method(captioner: Captioner, photo: Image.Image) -> None:
    assert {captioner.inspect(photo, method=method).text for method in METHODS} == {captioner(photo).text}


def test_one_tile_is_the_photo(captioner: Captioner, photo: Image.Image) -> None:
    one = captioner.inspect(photo, caption="a dog", tiles=(1, 1))
    np.testing.assert_array_equal(one.weights, captioner.inspect(photo, caption="a dog").weights)


@pytest.mark.parametrize("tiles", [(0, 1), (9, 9), (61, 1)])
def test_impossible_tiles_are_refused(captioner: Captioner, photo: Image.Image, tiles: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match="tiles"):
        captioner.inspect(photo, caption="a dog", tiles=tiles)
    with pytest.raises(ConfigError, match="choose one"):
        captioner.inspect(photo, caption="a dog", tiles=(2, 2), region=(0, 0, 0.5, 0.5))


def test_a_trace_without_words_is_empty_and_still_a_picture() -> None:
    trace = by_hand(np.zeros((0, LAYERS, HEADS, 6)), (2, 3))
    assert trace.entropy.shape == trace.null_mass.shape == (0,)
    assert Image.open(_png(trace)).size[0] > 100


def test_a_file_and_a_notebook_get_the_same_picture(captioner: Captioner, photo: Image.Image, tmp_path: Path) -> None:
    trace = captioner.inspect(photo, caption="a dog")
    trace.save_png(tmp_path / "dog.png")
    assert (tmp_path / "dog.png").read_bytes() == trace._repr_png_()


def _png(trace: AttentionTrace) -> io.BytesIO:
    return io.BytesIO(trace._repr_png_())
