"""The embeddings of new words are fitted before training."""

import copy
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from captioner.config import DecoderConfig, EncoderConfig, ModelConfig, TokenizerConfig
from captioner.data.dataset import CaptionDataset, collate
from captioner.data.formats import load_captions
from captioner.data.sampler import Group
from captioner.model.caption_model import CaptionModel
from captioner.tokenizer import Tokenizer
from captioner.training import new_words
from captioner.training.new_words import fit_new_words

NEW = ("red", "circle")


@pytest.fixture
def start(shapes):
    """A model that has grown by two words, data with these words, and their range."""
    images = load_captions(shapes).images
    texts = [text for image in images for text in image.captions]
    old = Tokenizer.train([" ".join(w for w in t.split() if w not in NEW) for t in texts], TokenizerConfig(min_count=1))
    tokenizer = old.extend(texts, 1)
    torch.manual_seed(0)
    config = ModelConfig(
        encoder=EncoderConfig(name="test_vit", image_size=(64, 64)),
        decoder=DecoderConfig(width=16, layers=1, heads=2, max_length=24),
    )
    model = CaptionModel(config, vocabulary=len(old), dropout=0.5).train()
    model.decoder.grow(len(tokenizer))
    words = range(len(old), len(tokenizer))
    assert [tokenizer.decode([each]) for each in words] == sorted(NEW, key=lambda w: tokenizer.encode(w))
    return model, CaptionDataset(images, tokenizer, model.encoder.config, max_length=24), words


def objective(model, data, words, embeddings):
    """The cross-entropy of all captions, with these embeddings of new words in the output alone, and the prior."""
    decoder = copy.deepcopy(model.decoder).eval()
    known = decoder.token_embedding.weight[: words.start]
    total = (embeddings - known.mean(dim=0)).square().sum() / (2 * new_words.SPREAD**2 * known.var(dim=0).mean())
    for place, captions in enumerate(data.tokens):
        batch = collate([data.sample(Group(place, tuple(range(len(captions))), 0))], data.tokenizer.pad)
        states, _ = decoder.states(batch.tokens[:, :-1], model.encode(batch.images))
        rows, places = batch.predicting
        logits = states[rows, places] @ torch.cat([known, embeddings]).T
        total = total + cross_entropy(logits, batch.tokens[rows, places + 1], reduction="sum")
    return total


def test_new_embeddings_are_optimal_and_all_else_stays(start):
    model, data, words = start
    before = copy.deepcopy(model).eval()
    fit_new_words(model, data, words)
    states = model.state_dict()
    for name, value in before.state_dict().items():
        kept = slice(words.start) if name == "decoder.token_embedding.weight" else slice(None)
        torch.testing.assert_close(
            states[name][kept] if value.ndim else states[name], value[kept] if value.ndim else value
        )
    fitted = states["decoder.token_embedding.weight"][words.start :].clone().requires_grad_()
    initial = before.decoder.token_embedding.weight[words.start :].detach().clone().requires_grad_()
    slopes = [torch.autograd.grad(objective(before, data, words, each), each)[0].norm() for each in (fitted, initial)]
    assert slopes[0] < 3e-3 * slopes[1]


def test_words_of_no_image_are_left_alone(start):
    model, data, words = start
    before = model.decoder.token_embedding.weight.detach().clone()
    images = [replace(image, captions=("a",)) for image in data.images]
    fit_new_words(model, replace(data, images=images), words)
    assert torch.equal(model.decoder.token_embedding.weight, before)


def test_words_that_are_not_read_keep_their_embeddings(start, monkeypatch):
    model, data, words = start
    before = model.decoder.token_embedding.weight.detach().clone()
    monkeypatch.setattr(new_words, "MAX_LOGITS", 1)  # one image
    fit_new_words(model, data, words)
    fit_new_words(model, data, range(words.stop, words.stop))
    changed = (model.decoder.token_embedding.weight != before).any(dim=1).nonzero().flatten().tolist()
    first = next(place for place, image in enumerate(data.tokens) if any(t in words for c in image for t in c))
    assert changed == sorted({token for caption in data.tokens[first] for token in caption if token in words})
