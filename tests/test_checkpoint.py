"""Model folders and checkpoints: what is loaded equals what was saved, and everything else is refused in one line."""

import json
import shutil
import zipfile

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from captioner.checkpoint import describe, load_model, load_training_file, save_model
from captioner.config import DecoderConfig, EncoderConfig, ModelConfig, TokenizerConfig
from captioner.errors import CheckpointError
from captioner.model.caption_model import CaptionModel
from captioner.tokenizer import Tokenizer

CAPTIONS = ["a red square above a blue circle", "two green dots on a white ground", "a small dog's ball"]
FILES = {"config.json", "model.safetensors", "tokenizer.json", "README.md"}


def make(kind="word", name="test_efficientnet"):
    tokenizer = Tokenizer.train(CAPTIONS, TokenizerConfig(kind=kind, min_count=1, vocabulary_size=300))
    config = ModelConfig(
        encoder=EncoderConfig(name=name, image_size=(32, 64)),
        decoder=DecoderConfig(width=16, layers=2, heads=2, max_length=12),
    )
    return CaptionModel(config, vocabulary=len(tokenizer)).eval(), tokenizer


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A network, its tokenizer, and the folder and the training checkpoint that hold them."""
    model, tokenizer = make()
    folder = tmp_path_factory.mktemp("saved")
    save_model(folder / "model", model, tokenizer, card="# A model\n")
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    state["criterion.weight"] = torch.ones(1)  # a task may keep more than the network
    torch.save({"state_dict": state, "captioner": describe(model, tokenizer), "epoch": 3}, folder / "last.ckpt")
    return model, tokenizer, folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of the model folder, to be damaged."""
    return shutil.copytree(saved[2] / "model", tmp_path / "model")


def outputs(model):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 3, 32, 64), dtype=torch.uint8, generator=generator)
    tokens = torch.randint(model.decoder.vocabulary, (4, 7), generator=generator)
    with torch.no_grad():
        return model(images, tokens)


@pytest.mark.parametrize(("kind", "name"), [("word", "test_efficientnet"), ("bpe", "test_vit")])
def test_a_loaded_folder_is_the_model_bit_for_bit(tmp_path, kind, name):
    model, tokenizer = make(kind, name)
    save_model(tmp_path / "a" / "b", model, tokenizer, card="card")
    loaded, words = load_model(tmp_path / "a" / "b")
    assert torch.equal(outputs(loaded), outputs(model))
    assert loaded.config == model.config
    assert words.to_str() == tokenizer.to_str()
    assert not loaded.training
    state = loaded.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    save_model(tmp_path / "again", loaded, words, card="card")
    for file in FILES:
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "a" / "b" / file).read_bytes()


def test_the_folder_is_plain_data_and_nothing_else(saved):
    _, _, folder = saved
    assert {path.name for path in (folder / "model").iterdir()} == FILES
    about = json.loads((folder / "model" / "config.json").read_text())
    assert about["format"] == 1
    assert about["model"]["encoder"]["image_size"] == [32, 64]
    assert (folder / "model" / "README.md").read_text() == "# A model\n"


def test_a_folder_that_still_holds_training_settings_loads(folder):
    about = json.loads((folder / "config.json").read_text())
    about["model"]["encoder"] |= {"pretrained": False, "weights": "package:x", "train": 2}
    about["model"]["decoder"] |= {"dropout": 0.2, "init": None, "language": "train"}
    before = outputs(load_model(folder)[0])
    (folder / "config.json").write_text(json.dumps(about))
    model, _ = load_model(folder)
    assert torch.equal(outputs(model), before)
    assert not any(parameter.requires_grad for parameter in model.encoder.parameters())


def test_saving_again_replaces_the_model(folder):
    other, tokenizer = make()
    with torch.no_grad():
        other.decoder.token_embedding.weight.fill_(0.5)
    save_model(folder, other, tokenizer, card="new")
    assert {path.name for path in folder.iterdir()} == FILES
    assert torch.equal(outputs(load_model(folder)[0]), outputs(other))


def test_half_precision_takes_half_the_space_and_nearly_the_same_logits(saved, tmp_path):
    model, tokenizer, folder = saved
    save_model(tmp_path, model, tokenizer, card="", half=True)
    sizes = [(each / "model.safetensors").stat().st_size for each in (tmp_path, folder / "model")]
    assert sizes[0] < 0.6 * sizes[1]
    loaded, _ = load_model(tmp_path)
    assert all(value.dtype != torch.float16 for value in loaded.state_dict().values())
    assert_close(outputs(loaded), outputs(model), atol=5e-3, rtol=0)
    assert not torch.equal(outputs(loaded), outputs(model))


def test_a_training_checkpoint_is_the_model_bit_for_bit(saved):
    model, tokenizer, folder = saved
    loaded, words = load_model(folder / "last.ckpt")
    assert torch.equal(outputs(loaded), outputs(model))
    assert words.to_str() == tokenizer.to_str()
    assert load_training_file(folder / "last.ckpt")["epoch"] == 3


def refusal(source):
    with pytest.raises(CheckpointError) as caught:
        load_model(source)
    message = str(caught.value)
    assert "\n" not in message
    assert str(source) in message
    return message


def test_nothing_there(tmp_path):
    assert "no such model" in refusal(tmp_path / "nothing")


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file(folder, file):
    (folder / file).unlink()
    assert f"{file} is missing" in refusal(folder)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_file_cut_short(folder, file, share):
    content = (folder / file).read_bytes()
    (folder / file).write_bytes(content[: int(share * (len(content) - 2))])
    assert file in refusal(folder)


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe\0",
        b"[1, 2]",
        b"null",
        b"{}",
        b'{"format": "one", "model": {}}',
        b'{"format": 1}',
        b'{"format": 1, "model": []}',
    ],
)
def test_a_configuration_of_something_else(folder, content):
    (folder / "config.json").write_bytes(content)
    assert "not" in refusal(folder)


def change(folder, **changes):
    about = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**about, **changes}))
    return about


def test_a_newer_format(folder):
    change(folder, format=2, captioner="9.9")
    (folder / "tokenizer.json").write_text("in a newer format")
    message = refusal(folder)
    assert "captioner 9.9 in format 2, this one reads up to 1" in message
    assert "upgrade" in message


def test_a_configuration_that_does_not_fit_the_weights(folder):
    model = json.loads((folder / "config.json").read_text())["model"]
    change(folder, model={**model, "decoder": {**model["decoder"], "width": 32}})
    assert "do not fit" in refusal(folder)
    change(folder, model={**model, "encoder": {**model["encoder"], "name": "test_vit"}})
    assert "do not fit" in refusal(folder)
    change(folder, model={**model, "decoder": {**model["decoder"], "depth": 3}})
    assert "unknown key decoder.depth" in refusal(folder)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [("decoder", "width", 16_384), ("decoder", "layers", 100_000), ("encoder", "name", "eva_giant_patch14_224")],
)
def test_a_large_network_is_not_built_for_weights_of_a_small_one(folder, section, key, value):
    resource = pytest.importorskip("resource")
    about = json.loads((folder / "config.json").read_text())
    about["model"][section][key] = value
    (folder / "config.json").write_text(json.dumps(about))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match="do not fit"):
        load_model(folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 1024  # KiB


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(folder, value):
    state = load_file(folder / "model.safetensors")
    state["decoder.token_embedding.weight"][1, 2] = value
    save_file(state, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"not finite: decoder\.token_embedding\.weight"):
        load_model(folder)


def test_the_tokenizer_of_another_model(folder):
    other = Tokenizer.train(["other words"], TokenizerConfig(min_count=1))
    (folder / "tokenizer.json").write_text(other.to_str(), encoding="utf-8")
    assert "do not fit" in refusal(folder)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no archive", b"\x80\x02."])
def test_a_file_that_is_no_checkpoint(tmp_path, content):
    (tmp_path / "a.ckpt").write_bytes(content)
    assert "not a complete checkpoint" in refusal(tmp_path / "a.ckpt")


def test_a_checkpoint_cut_short(saved, tmp_path):
    content = (saved[2] / "last.ckpt").read_bytes()
    (tmp_path / "a.ckpt").write_bytes(content[: len(content) // 2])
    assert "not a complete checkpoint" in refusal(tmp_path / "a.ckpt")


@pytest.mark.parametrize("place", [0.2, 0.5, 0.9])
def test_a_checkpoint_with_other_bytes_than_were_written(saved, tmp_path, place):
    content = bytearray((saved[2] / "last.ckpt").read_bytes())
    start = int(place * len(content))
    for each in range(start, start + 2000):
        content[each] ^= 1
    (tmp_path / "a.ckpt").write_bytes(content)
    assert "not a complete checkpoint" in refusal(tmp_path / "a.ckpt")


def test_a_compressed_checkpoint_is_not_unpacked(saved, tmp_path):
    torch.save({"captioner": {}, "state_dict": {"zeros": torch.zeros(2**20)}}, tmp_path / "whole.ckpt")
    with (
        zipfile.ZipFile(tmp_path / "whole.ckpt") as whole,
        zipfile.ZipFile(tmp_path / "a.ckpt", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for part in whole.infolist():
            bomb.writestr(part.filename, whole.read(part))
    assert "a compressed archive" in refusal(tmp_path / "a.ckpt")


def test_a_checkpoint_that_holds_code(tmp_path):
    torch.save({"captioner": {}, "state_dict": {}, "hook": torch.nn.Linear(1, 1)}, tmp_path / "a.ckpt")
    assert "not a complete checkpoint of plain data" in refusal(tmp_path / "a.ckpt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "not a checkpoint of this program"),
        ({"state_dict": {}}, "not a checkpoint of this program"),
        ({"captioner": {}}, "not a checkpoint of this program"),
        ({"captioner": None, "state_dict": {}}, "not a model of this program"),
        ({"captioner": {"format": 1, "model": {}}, "state_dict": {}}, "not a tokenizer file"),
        ({"captioner": {"format": 7, "model": {}}, "state_dict": {}}, "in format 7"),
    ],
)
def test_a_checkpoint_of_something_else(tmp_path, content, message):
    torch.save(content, tmp_path / "a.ckpt")
    assert message in refusal(tmp_path / "a.ckpt")


def test_a_checkpoint_without_its_weights(saved, tmp_path):
    _, _, folder = saved
    checkpoint = load_training_file(folder / "last.ckpt")
    name = next(name for name in checkpoint["state_dict"] if "token_embedding" in name)
    del checkpoint["state_dict"][name]
    torch.save(checkpoint, tmp_path / "a.ckpt")
    assert "do not fit" in refusal(tmp_path / "a.ckpt")
    checkpoint["state_dict"][name] = "no tensor"
    torch.save(checkpoint, tmp_path / "a.ckpt")
    assert "do not fit" in refusal(tmp_path / "a.ckpt")
