"""The loss: grouped captions cost what single ones cost, padding counts for nothing, and collapse is noticed."""

import logging

import pytest
import torch

from captioner.config import Config, DecoderConfig, EncoderConfig, ModelConfig, TokenizerConfig
from captioner.data.dataset import Batch
from captioner.model.caption_model import CaptionModel
from captioner.tokenizer import Tokenizer
from captioner.training.task import CaptionTask


@pytest.fixture
def task():
    torch.manual_seed(0)
    tokenizer = Tokenizer.train(["a red circle above a blue star"], TokenizerConfig(min_count=1))
    encoder = EncoderConfig(name="test_convnext", image_size=(64, 64))
    decoder = DecoderConfig(width=32, heads=2, layers=2, max_length=16)
    model = CaptionModel(ModelConfig(encoder=encoder, decoder=decoder), vocabulary=len(tokenizer))
    return CaptionTask(model, tokenizer, Config()).eval()


def batch(task, texts, images):
    rows = [[task.tokenizer.bos, *task.tokenizer.encode(text), task.tokenizer.eos] for text in texts]
    tokens = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    for place, row in enumerate(rows):
        tokens[place, : len(row)] = torch.tensor(row)
    return Batch(images=images, features=None, tokens=tokens, image_ids=list(range(len(images))))


def loss(task, batch):
    return task.loss(batch, task.see(batch))


def test_grouped_captions_cost_what_single_ones_cost(task):
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    texts = ["a red circle", "a blue star above a circle", "star", "a a a a a a"]
    grouped, count = loss(task, batch(task, texts, images))
    single = [loss(task, batch(task, [text], images[place // 2][None])) for place, text in enumerate(texts)]
    assert count == sum(tokens for _, tokens in single)
    torch.testing.assert_close(grouped * count, sum(value * tokens for value, tokens in single))


def test_padding_counts_for_nothing(task):
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    plain = batch(task, ["a red circle"], images)
    padded = plain._replace(tokens=torch.nn.functional.pad(plain.tokens, (0, 6)))
    torch.testing.assert_close(loss(task, plain)[0], loss(task, padded)[0])


def test_stored_features_give_the_photos_loss(task):
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    photos = batch(task, ["a red circle", "star"], images)
    with torch.no_grad():
        stored = photos._replace(images=None, features=task.model.encoder(images).half())
        torch.testing.assert_close(loss(task, photos)[0], loss(task, stored)[0], atol=1e-3, rtol=0)


@pytest.mark.parametrize(("images", "warned"), [(8, True), (4, False)])
def test_the_same_caption_for_every_image_is_noticed(task, caplog, images, warned, monkeypatch):
    class Stub:
        is_global_zero = True
        sanity_checking = False
        current_epoch = global_step = 0
        loggers = ()

    task._trainer = Stub()
    alike = torch.zeros(images, 3, 64, 64, dtype=torch.uint8)
    task._shown = task.see(batch(task, ["star"] * images, alike))
    with caplog.at_level(logging.INFO, logger="captioner"):
        task.on_validation_epoch_end()
    assert any("same caption" in record.message for record in caplog.records) == warned
    assert sum(record.message.startswith("epoch 0:") for record in caplog.records) == 4
