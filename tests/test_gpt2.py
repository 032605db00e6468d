"""Decoders initialized from GPT-2: the same logits, and training that freezes or updates the language model."""

import json

import pytest
import torch
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

transformers = pytest.importorskip("transformers", reason="takes the extra `convert`")

from captioner.checkpoint import load_model  # noqa: E402
from captioner.config import DecoderConfig  # noqa: E402
from captioner.config_files import load_config  # noqa: E402
from captioner.errors import CheckpointError, ConfigError  # noqa: E402
from captioner.gpt2 import language_decoder  # noqa: E402
from captioner.model.decoder import READS_THE_IMAGE, TextDecoder  # noqa: E402
from captioner.model_files import model_folder  # noqa: E402
from captioner.training.run import train  # noqa: E402

WIDTH, LAYERS, HEADS = 32, 2, 4


@pytest.fixture
def language(tmp_path):
    """A random GPT-2 of bytes, as `save_pretrained` writes it, and the model itself."""
    torch.manual_seed(0)
    words = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE({word: place for place, word in enumerate([*words, "<|endoftext|>"])}, []))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    end = len(words)
    shape = {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_positions": 80}
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(**shape, vocab_size=end + 1, bos_token_id=end, eos_token_id=end)
    ).eval()
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.05)
    folder = tmp_path / "gpt2"
    model.save_pretrained(folder)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|endoftext|>", eos_token="<|endoftext|>"
    ).save_pretrained(folder)
    return folder, model


def test_without_cross_attention_it_is_the_language_model(language):
    folder, theirs = language
    config, weights, tokenizer = language_decoder(DecoderConfig(max_length=40, null_patch=False), folder)
    assert (config.width, config.layers, config.heads, config.max_length) == (WIDTH, LAYERS, HEADS, 40)
    decoder = TextDecoder(config, vocabulary=len(tokenizer), encoder_width=24).eval()
    missing, unexpected = decoder.load_state_dict(weights, strict=False)
    assert not unexpected
    assert all(any(part in name for part in READS_THE_IMAGE) for name in missing)
    for block in decoder.blocks:
        block.cross_attention.output.weight.data.zero_()
    tokens = torch.randint(0, len(tokenizer), (3, 40))
    with torch.inference_mode():
        memory = decoder.project(torch.randn(3, 5, 24))
        torch.testing.assert_close(decoder(tokens, memory).logits, theirs(tokens).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("way", ["train", "freeze"])
def test_training_from_it(language, shapes, tmp_path, way):
    folder, _ = language
    settings = ["training.epochs=1", "decoder.max_length=80", f"decoder.init={folder}", f"decoder.language={way}"]
    config = load_config("shapes", [f"data.root={shapes}", *settings])
    model, tokenizer = load_model(train(config, tmp_path / "run"))
    _, before, _ = language_decoder(config.decoder, folder)
    after = model.decoder.state_dict()
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed == (set() if way == "freeze" else set(before))
    assert float(model.decoder.blocks[0].cross_attention.query.bias.detach().abs().max()) > 0  # begins at zero
    assert tokenizer.pad == tokenizer.eos
    assert f"init: {folder}" in (tmp_path / "run" / "config.yaml").read_text()
    assert f"Started from `{folder}`" in (tmp_path / "run" / "model" / "README.md").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llama"}, "decoder llama, not gpt2"),
        ({"activation_function": "relu"}, "activation_function relu, not gelu_new"),
        ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon 1e-06, not 1e-05"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings False, not True"),
        ({"n_inner": 48}, "n_inner 48, not a multiple of n_embd"),
        ({"n_layer": 3}, r"blocks\.2\.self_norm\.weight is missing"),
        ({"n_embd": 64}, r"token_embedding\.weight is of shape \(257, 32\), not \(257, 64\)"),
    ],
)
def test_other_language_models_are_refused(language, change, message):
    folder, _ = language
    about = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(about))
    with pytest.raises(CheckpointError, match=message):
        language_decoder(DecoderConfig(), folder)


def test_a_frozen_language_model_gets_no_new_words(shapes, tmp_path):
    settings = ["training.epochs=1", "encoder.train=none", "decoder.language=freeze"]
    config = load_config("shapes", [f"data.root={shapes}", *settings])
    _, known = load_model(model_folder("bundled"))
    _, tokenizer = load_model(train(config, tmp_path / "run", init=model_folder("bundled")))
    assert len(tokenizer) == len(known)


def test_an_incomplete_folder(language, tmp_path):
    folder, _ = language
    with pytest.raises(CheckpointError, match="not a complete GPT-2"):
        language_decoder(DecoderConfig(), tmp_path / "nowhere")
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="not a complete GPT-2"):
        language_decoder(DecoderConfig(), folder)


@pytest.mark.parametrize(
    ("settings", "init", "message"),
    [(["decoder.init=there"], "bundled", "choose one"), (["decoder.language=freeze"], None, "needs a language")],
)
def test_contradictory_settings(shapes, tmp_path, settings, init, message):
    config = load_config("shapes", [f"data.root={shapes}", *settings])
    with pytest.raises(ConfigError, match=message):
        train(config, tmp_path / "run", init=init)
