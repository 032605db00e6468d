"""Validation: every image is scored once, whichever batches and processes it comes in; collapse is noticed."""

import logging
import math

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from captioner.data.annotations import CaptionedImage
from captioner.generation import Greedy
from captioner.metrics import score_captions
from captioner.pipeline import caption_memory
from captioner.training.validation import CaptionValidation, Found

TEXTS = ["a red circle", "a blue star above", "a red star"]
REFERENCES = {0: [TEXTS[0], "circle"], 1: [TEXTS[1]], 2: [TEXTS[2]]}


def validate(task, batches):
    """What Lightning's own validation measures and logs."""
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    [measured] = trainer.validate(task, DataLoader(batches, batch_size=None), verbose=False)
    return measured


@pytest.mark.parametrize(("images", "warned"), [(8, True), (7, False)])
def test_the_same_caption_for_every_image_is_noticed(task, make_batch, caplog, images, warned):
    alike = torch.zeros(images, 3, 64, 64, dtype=torch.uint8)
    task.validation.references = {"": {image: ["a red star"] for image in range(images)}}
    with caplog.at_level(logging.INFO, logger="captioner"):
        validate(task, [make_batch(["star"] * images, alike)])
    assert any("same caption" in record.message for record in caplog.records) == warned
    assert sum(record.message.startswith("epoch 0:") for record in caplog.records) == 6  # loss, scores, four captions


def test_each_image_is_scored_once(task, make_batch):
    """The CIDEr-D that is logged is that of greedy captions of all images, however they come in batches."""
    images = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    task.validation.references = {"": REFERENCES}
    whole = validate(task, [make_batch(TEXTS, images)])
    first = make_batch(TEXTS[:2], images[:2])
    again = make_batch(["circle", TEXTS[2]], images[[0, 2]])._replace(image_ids=[0, 2])
    repeated = first._replace(weight=0.0, image_ids=[2, 1])  # fills up the epoch of a process: would be wrong captions
    parts = validate(task, [repeated, first, again])
    memory = task.model.encode(images)
    captions = {
        image: best.text
        for image, [best] in enumerate(caption_memory(task.model.decoder, task.tokenizer, memory, Greedy()))
    }
    expected = score_captions(captions, REFERENCES)
    for measured in (whole, parts):
        assert measured["val_cider_d"] == pytest.approx(expected["cider_d"], abs=1e-6)
        assert measured["val_bleu_4"] == pytest.approx(expected["bleu_4"], abs=1e-6)


def test_captions_have_the_style_of_their_references(task, make_batch):
    """None where they differ, and in a style that no training caption has."""
    tokenizer = task.tokenizer.with_controls("style", ["plain", "poetic"])
    task.model.decoder.grow(len(tokenizer))
    styles = [("plain",), ("poetic", "poetic"), ("plain", "poetic"), ("unknown",), ("plain",)]
    listed = [
        CaptionedImage(place, b"", ("circle",) * len(names), "val", styles=names) for place, names in enumerate(styles)
    ]
    validation = CaptionValidation(tokenizer, listed, task.config.training)
    images = torch.randint(0, 256, (5, 3, 64, 64), dtype=torch.uint8)
    memory = task.model.encode(images)
    with torch.inference_mode():
        validation.add_images(task.model, make_batch(["circle"] * 5, images), memory)
    ids = tokenizer.controls("style")
    for place, style in enumerate(["plain", "poetic", None, None, "plain"]):
        control, rows = [ids[style]] if style else [], torch.tensor([place])
        [[best]] = caption_memory(task.model.decoder, tokenizer, memory.select(rows), Greedy(), control=control)
        assert validation._found.captions[place].log_prob == pytest.approx(best.log_prob, abs=1e-4)
        assert validation._found.captions[place].text == best.text


def test_the_loss_is_a_mean_over_tokens(task, make_batch):
    """Over batches of unequal length, without those that are repeated."""
    images = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    task.validation.references = {"": REFERENCES}
    whole = validate(task, [make_batch(TEXTS, images)])["val_loss"]
    parts = [make_batch([text], images[place][None])._replace(image_ids=[place]) for place, text in enumerate(TEXTS)]
    parts.insert(1, parts[0]._replace(weight=0.0))
    assert validate(task, parts)["val_loss"] == pytest.approx(whole, abs=1e-6)


def test_the_next_epoch_begins_with_nothing(task, make_batch):
    images = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    task.validation.references = {"": REFERENCES}
    batch, other = make_batch(TEXTS, images), make_batch(["star", "a red red red star", "circle"], images.flip(0))
    alone = validate(task, [other])
    assert validate(task, [batch])["val_loss"] != alone["val_loss"]
    assert validate(task, [other]) == alone


def test_a_single_validation_image_has_no_cider(task, make_batch):
    task.validation.references = {"": {0: ["a red circle"]}}
    measured = validate(task, [make_batch(["star"], torch.zeros(1, 3, 64, 64, dtype=torch.uint8))])
    assert math.isnan(measured["val_cider_d"])


def test_parts_of_processes_add_up():
    """One process may have no object words, or no batch at all."""
    weights = torch.tensor([[1.0, 2.0]])
    whole = Found()
    for part in (
        Found(),
        Found(loss=6.0, tokens=2, attention={"pointing": weights}, words=2),
        Found(loss=2.0, tokens=2, attention={"pointing": 0 * weights}, words=0),
        Found(tokens=4, attention={"pointing": weights}, words=2),
    ):
        whole.add(part)
    assert whole.means() == {
        "val_loss": 1.0,
        "val_pointing": 0.75,
        "heads/pointing_0.0": 0.5,
        "heads/pointing_0.1": 1.0,
    }
    assert Found(loss=1.0, tokens=1, attention={"pointing": 0 * weights}).means() == {"val_loss": 1.0}


def test_data_sets_are_scored_apart_and_their_mean_decides(task, make_batch):
    images = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    batch = make_batch(TEXTS, images)
    alone = []
    for wanted in ({0: REFERENCES[0], 1: REFERENCES[1]}, {2: REFERENCES[2]}):
        task.validation.references = {"": wanted}
        alone.append(validate(task, [batch]))
    task.validation.references = {"one": {0: REFERENCES[0], 1: REFERENCES[1]}, "two": {2: REFERENCES[2]}}
    together = validate(task, [batch])
    assert together["val_one_bleu_4"] == alone[0]["val_bleu_4"]
    assert together["val_two_bleu_4"] == alone[1]["val_bleu_4"]
    assert together["val_bleu_4"] == pytest.approx((alone[0]["val_bleu_4"] + alone[1]["val_bleu_4"]) / 2)
    assert together["val_one_cider_d"] == alone[0]["val_cider_d"]
