"""The loss: grouped captions cost what single ones cost, padding counts for nothing, and collapse is noticed."""

import logging
import math
from dataclasses import replace

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from captioner.caption import caption_memory
from captioner.config import Config, DecoderConfig, EncoderConfig, ModelConfig, TokenizerConfig
from captioner.data.dataset import Batch
from captioner.generation import Greedy
from captioner.metrics import score_captions
from captioner.model.caption_model import CaptionModel
from captioner.pipeline import Captioner
from captioner.tokenizer import Tokenizer
from captioner.training.task import CaptionTask, pointing


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
    alone = torch.full((len(images),), -1)
    objects = torch.zeros_like(tokens, dtype=torch.bool)
    return Batch(images, None, tokens, list(range(len(images))), alone, objects)


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


def test_where_padding_is_the_end_token_the_end_is_learned(task):
    """GPT-2 has one special token for everything."""
    special = Tokenizer.from_str(task.tokenizer.to_str())
    special.pad = special.bos = special.eos
    task.tokenizer = special
    tokens = torch.tensor([[2, 4, 5, 2, 2], [2, 4, 4, 5, 2], [2, 4, 4, 5, 4]])  # the last one was cut off
    lengths = [3, 4, 4]
    images = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    found, count = loss(task, batch(task, ["a"] * 3, images)._replace(tokens=tokens))
    assert count == sum(lengths)
    with torch.no_grad():
        each = task.model(images, tokens[:, :-1]).log_softmax(dim=-1).gather(2, tokens[:, 1:, None])[..., 0]
    expected = -sum(row[:length].sum() for row, length in zip(each, lengths, strict=True)) / sum(lengths)
    torch.testing.assert_close(found, expected)


def test_stored_features_give_the_photos_loss(task):
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    photos = batch(task, ["a red circle", "star"], images)
    with torch.no_grad():
        stored = photos._replace(images=None, features=task.model.encoder(images).half())
        torch.testing.assert_close(loss(task, photos)[0], loss(task, stored)[0], atol=1e-3, rtol=0)


def validate(task, batches):
    """What Lightning's own validation measures and tells."""
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    [measured] = trainer.validate(task, DataLoader(batches, batch_size=None), verbose=False)
    return measured


@pytest.mark.parametrize(("images", "warned"), [(8, True), (4, False)])
def test_the_same_caption_for_every_image_is_noticed(task, caplog, images, warned):
    alike = torch.zeros(images, 3, 64, 64, dtype=torch.uint8)
    task.references = {image: ["a red star"] for image in range(images)}
    with caplog.at_level(logging.INFO, logger="captioner"):
        validate(task, [batch(task, ["star"] * images, alike)])
    assert any("same caption" in record.message for record in caplog.records) == warned
    assert sum(record.message.startswith("epoch 0:") for record in caplog.records) == 5  # four captions and the scores


def test_validation_scores_each_image_once(task):
    """The CIDEr-D that is logged is that of greedy captions of all images, however they come in batches."""
    images = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    texts = ["a red circle", "a blue star above", "a red star"]
    task.references = {0: [texts[0], "circle"], 1: [texts[1]], 2: [texts[2]]}
    whole = validate(task, [batch(task, texts, images)])
    first = batch(task, texts[:2], images[:2])
    again = batch(task, ["circle", texts[2]], images[[0, 2]])._replace(image_ids=[0, 2])
    parts = validate(task, [first, again])
    captioner = Captioner(task.model, task.tokenizer, name="tiny")
    captions = {
        image: caption.text
        for image, [caption] in enumerate(
            caption_memory(task.model.decoder, task.tokenizer, captioner.model.encode(images), Greedy())
        )
    }
    expected = score_captions(captions, task.references)
    for measured in (whole, parts):
        assert measured["val_cider_d"] == pytest.approx(expected["cider_d"], abs=1e-6)
        assert measured["val_bleu_4"] == pytest.approx(expected["bleu_4"], abs=1e-6)


def test_a_single_validation_image_has_no_cider(task):
    task.references = {0: ["a red circle"]}
    measured = validate(task, [batch(task, ["star"], torch.zeros(1, 3, 64, 64, dtype=torch.uint8))])
    assert math.isnan(measured["val_cider_d"])


def test_pointing_is_the_share_on_the_own_corner(task):
    """Against loops: only object words of mosaics count, patches without prefix and null positions."""
    torch.manual_seed(0)
    tokens = torch.zeros(4, 6, dtype=torch.long)  # two images with two captions each
    objects = torch.rand(4, 6) < 0.5
    objects[2, 3] = True
    seen = Batch(None, None, tokens, ["a", "b"], torch.tensor([-1, 2]), objects)
    weights = torch.rand(4, 2, 3, 5, 1 + 6 + 1).softmax(-1)  # (R, L, H, T, N): prefix, 2 x 3 patches, null
    found = pointing(weights, seen, (2, 3), slice(1, 7))
    expected = []
    for row in (2, 3):
        for step in range(5):
            if objects[row, step + 1]:
                patches = weights[row, :, :, step, 1:7].reshape(2, 3, 2, 3)
                own = patches[:, :, 1, 0] + patches[:, :, 1, 1] / 2  # bottom left
                expected.append(own / patches.sum(dim=(2, 3)))
    torch.testing.assert_close(found, torch.stack(expected))


def test_images_that_are_hidden_are_never_mosaics(task):
    seen = batch(task, ["a star"] * 40, torch.zeros(40))._replace(corners=torch.tensor([-1, 1] * 20))
    task.config = replace(task.config, optimization=replace(task.config.optimization, blind=0.5))
    hidden = task._blind_images(seen)
    assert 4 <= len(hidden) <= 16
    assert (hidden % 2 == 0).all()
    task.config = Config()
    assert not len(task._blind_images(seen))


def test_the_null_patch_learns_the_share_of_a_word_that_needs_no_image(task):
    """Against loops over words: the loss is least where the mass is what both distributions have in common."""
    torch.manual_seed(0)
    seen, blind = torch.randn(2, 6, 32).unbind()
    mass = torch.rand(6)
    expected, shares = [], torch.zeros(6)
    for step in range(6):
        with_image, without = (task.model.decoder.logits(each[step]).softmax(-1).tolist() for each in (seen, blind))
        share = shares[step] = sum(min(pair) for pair in zip(with_image, without, strict=True))
        expected.append(-share * mass[step].log() - (1 - share) * (1 - mass[step]).log())
    torch.testing.assert_close(task._null_loss(mass, seen, blind), torch.stack(expected).mean())
    assert task._null_loss(shares, seen, blind) < task._null_loss(shares * 0.9, seen, blind)
    assert task._null_loss(mass, seen, seen).item() == pytest.approx(float(-mass.log().mean()), rel=1e-4)


def test_captions_learned_without_images_count_like_others(task, monkeypatch):
    """All images hidden, no other losses: the mean of the loss with images and with null patches alone."""
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    seen = batch(task, ["a red circle", "a blue star above a circle"], images)
    options = replace(task.config.optimization, blind=0.999, label_smoothing=0.0)
    task.config = replace(task.config, optimization=options)
    monkeypatch.setattr(task, "log", lambda *args, **options: None)
    memory = task.see(seen)
    with_images, _ = task.loss(seen, memory)
    without, _ = task.loss(seen, task.model.blind(memory))
    torch.testing.assert_close(task.training_step(seen, 0)["loss"], (with_images + without) / 2)


def test_losses_on_attention_grow_to_the_middle_of_the_run(task, monkeypatch):
    task._steps = 100
    grown = []
    for step in (0, 25, 50, 100):
        monkeypatch.setattr(CaptionTask, "global_step", step)
        grown.append(task._grown(0.5))
    assert grown == [0, 0.25, 0.5, 0.5]
