"""Training the decoder on captions alone."""

import csv

import pytest
import torch

from captioner.checkpoint import load_model
from captioner.config_files import load_config
from captioner.pipeline import Captioner
from captioner.training.run import train

TINY = """
data: {batch_images: 16, captions_per_image: 5}
encoder: {name: test_convnext, image_size: [64, 64]}
decoder: {width: 32, layers: 1, heads: 2, max_length: 24, dropout: 0}
tokenizer: {min_count: 1}
optimization: {learning_rate: 3.0e-3, warmup_steps: 2}
training: {epochs: 3, trainer: {enable_progress_bar: false, accelerator: cpu}}
"""


@pytest.fixture
def configure(tmp_path, shapes):
    (tmp_path / "tiny.yaml").write_text(TINY)
    (tmp_path / "texts.txt").write_text("a purple zebra beside a lake\n" * 20)
    return lambda *overrides: load_config(tmp_path / "tiny.yaml", [f"data.root={shapes}", *overrides])


def test_a_language_model_prepares_a_captioner(configure, shapes, tmp_path):
    """It learns words of captions without pictures, opens no picture, and a captioner starts from it."""
    text = f"data.text={tmp_path / 'texts.txt'}"
    empty = tmp_path / "pictures"
    (empty / "images").mkdir(parents=True)
    for picture in (shapes / "images").iterdir():
        (empty / "images" / picture.name).touch()
    settings = ("training.objective=language", text, f"data.images={empty / 'images'}")
    language = train(configure(*settings), tmp_path / "language")
    rows = list(csv.DictReader((tmp_path / "language" / "metrics.csv").read_text().splitlines()))
    losses = [float(row["val_loss"]) for row in rows if row.get("val_loss")]
    assert losses[-1] < losses[0]
    assert not any(name.startswith("val_cider") for name in rows[0])
    model, tokenizer = load_model(language)
    assert tokenizer.unk not in tokenizer.encode("purple zebra")

    folder = train(configure("training.epochs=1", text), tmp_path / "captioner", init=language)
    assert Captioner.from_pretrained(folder)(next((shapes / "images").iterdir())).text
    started = load_model(folder)[0].decoder.state_dict()
    cross = [name for name in started if "cross_attention.query" in name]
    assert cross
    assert not any(torch.equal(started[name], model.decoder.state_dict()[name]) for name in cross)
