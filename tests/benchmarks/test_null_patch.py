import numpy as np
import pytest
import torch

from benchmarks.null_patch import Words, read_words, summarize
from captioner.data.dataset import read_photo, view_pixels
from captioner.data.formats import load_captions
from tests.inspection.conftest import network


def test_words_are_read_with_what_is_known_without_the_image(shapes):
    """The share of the distribution that both have, against a loop; the words of a caption, in order."""
    images = load_captions(shapes).split("train").images[:2]
    captions = [image.captions[0] for image in images]
    model, tokenizer = network(captions)
    table = read_words(model, tokenizer, images, captions)
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
    assert table.words[: len(words)] == [word.text for word in words]
    assert len(table.words) == len(words) + len(captions[1].split())


def test_the_summary_compares_function_words_with_objects():
    words = ["dog"] * 4 + ["a", "of"]
    null_mass = np.array([0.1, 0.1, 0.3, 0.1, 0.9, 0.8], np.float32)
    table = Words(words, np.array(words) == "dog", 1 - null_mass, null_mass, null_mass[::-1])
    found = summarize(table)
    assert found["words"] == 6
    assert found["objects"] == pytest.approx(0.15)
    assert found["function words"] == pytest.approx(0.85)
    assert found["auc function words above objects"] == 1
    assert found["spearman with visual need"] == pytest.approx(1)
    assert found["spearman of the share with visual need"] == pytest.approx(found["spearman with the share"])
    assert summarize(table._replace(null_mass=0 * null_mass)) == {}
