"""Averages of the weights before and after training."""

import copy
import shutil
from pathlib import Path

import pytest
import torch

from captioner.checkpoint import load_model
from captioner.data.annotations import CaptionedImage
from captioner.data.dataset import CaptionDataset
from captioner.data.formats import load_captions
from captioner.errors import ConfigError
from captioner.training.interpolation import SHARES, between, interpolate, mean_loss
from captioner.training.run import train
from tests.serving.conftest import save_tiny_model
from tests.training.test_run import config  # noqa: F401


@pytest.fixture
def data(shapes, tmp_path):
    model, tokenizer = load_model(Path(save_tiny_model(tmp_path)))
    images: list[CaptionedImage] = load_captions(shapes).images[:4]
    return model, CaptionDataset(images, tokenizer, model.encoder.config, max_length=model.decoder.config.max_length)


def test_the_average_with_the_least_loss_is_taken(data):
    model, images = data
    start = copy.deepcopy(model.eval())
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.mul_(1.5)
    own = copy.deepcopy(model)
    losses = {}
    for share in SHARES:
        average = copy.deepcopy(start)
        average.load_state_dict(between(start.state_dict(), own.state_dict(), share))
        losses[share] = mean_loss(average, images)
    share = interpolate(model, start.state_dict(), images)
    assert losses[share] == min(losses.values()) < max(losses.values())
    assert mean_loss(model, images) == losses[share]
    for one, other in zip(model.parameters(), own.parameters(), strict=True):
        assert one.shape == other.shape
    assert between(start.state_dict(), own.state_dict(), 1.0).keys() == own.state_dict().keys()


def test_a_run_keeps_its_start_for_the_average(config, tmp_path, caplog):  # noqa: F811
    caplog.set_level("INFO", logger="captioner")
    first = train(config("training.epochs=1"), tmp_path / "first")
    settings = ("training.interpolate=true", "optimization.learning_rate=1e-2")
    whole = train(config(*settings, "training.epochs=2"), tmp_path / "whole", init=first)
    weights = [load_model(folder)[0].state_dict() for folder in (first, tmp_path / "whole" / "start")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert caplog.text.count("validation loss by the share of the new weights") == 1
    # A resumed run averages with the same start.
    last = tmp_path / "whole" / "checkpoints" / "last.ckpt"
    before = load_model(whole)[0].state_dict()
    assert train(config(*settings, "training.epochs=2"), tmp_path / "whole", resume=last) == whole
    after = load_model(whole)[0].state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert caplog.text.count("validation loss by the share of the new weights") == 2
    shutil.rmtree(tmp_path / "whole" / "start")
    train(config(*settings, "training.epochs=2"), tmp_path / "whole", resume=last)
    assert "training.interpolate: left out" in caplog.text
    with pytest.raises(ConfigError, match="give --init"):
        train(config(*settings), tmp_path / "other")
    with pytest.raises(ConfigError, match=r"not for training\.objective: language"):
        train(config(*settings, "training.objective=language"), tmp_path / "other", init=first)
