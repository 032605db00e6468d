"""The scripts that only pass on to the library or the command line."""

import json
from importlib import import_module

import pytest
import torch

from captioner.checkpoint import load_model, save_model
from captioner.config import DecoderConfig, EncoderConfig, ModelConfig, TokenizerConfig
from captioner.model.caption_model import CaptionModel
from captioner.tokenizer import Tokenizer


@pytest.mark.parametrize("name", ["train", "caption", "evaluate", "inspect_attention"])
def test_a_script_is_its_verb(name, capsys):
    assert import_module(f"scripts.{name}").main(["--help"]) == 0
    assert f"usage: captioner {name.partition('_')[0]}" in capsys.readouterr().out


def test_a_bundled_model_is_half_as_large_and_keeps_its_card(tmp_path):
    torch.manual_seed(0)
    tokenizer = Tokenizer.train(["a dog runs"], TokenizerConfig(min_count=1))
    network = ModelConfig(
        encoder=EncoderConfig(name="test_convnext", image_size=(64, 64)),
        decoder=DecoderConfig(width=32, heads=2, layers=1),
    )
    save_model(tmp_path / "model", CaptionModel(network, vocabulary=len(tokenizer)), tokenizer, card="its own")
    bundled = tmp_path / "bundled"
    bundled.mkdir()
    (bundled / "README.md").write_text("the bundled card")
    assert import_module("scripts.bundle_model").main([str(tmp_path / "model"), "--output", str(bundled)]) == 0
    assert (bundled / "README.md").read_text() == "the bundled card"
    assert json.loads((bundled / "config.json").read_text()) == json.loads((tmp_path / "model/config.json").read_text())
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (bundled, tmp_path / "model")]
    assert sizes[0] < 0.65 * sizes[1]
    (one, _), (other, _) = load_model(bundled), load_model(tmp_path / "model")
    for name, weight in one.state_dict().items():
        assert weight.dtype == other.state_dict()[name].dtype
        torch.testing.assert_close(weight, other.state_dict()[name], atol=1e-3, rtol=1e-3)
