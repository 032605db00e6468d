"""transformers' captioners as model folders: the same logits, the same captions as `generate`, of random weights."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

transformers = pytest.importorskip("transformers", reason="takes the extra `convert`")

from captioner.checkpoint import load_model  # noqa: E402
from captioner.cli import main  # noqa: E402
from captioner.convert import encoder_weights, from_transformers  # noqa: E402
from captioner.errors import CheckpointError  # noqa: E402
from captioner.generation import BeamSearch, Greedy, generate  # noqa: E402
from captioner.pipeline import Captioner  # noqa: E402

VIT = {"hidden_size": 64, "num_hidden_layers": 6, "num_attention_heads": 2, "intermediate_size": 192, "patch_size": 16}


@pytest.fixture(params=["vit", "vit, other width"])
def saved(request, tmp_path):
    """A random captioner as `save_pretrained` writes it, and the model itself."""
    torch.manual_seed(0)
    width = 96 if "other" in request.param else 64
    words = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE({word: place for place, word in enumerate([*words, "<|endoftext|>"])}, []))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|endoftext|>", eos_token="<|endoftext|>"
    )
    end = len(words)
    decoder = transformers.GPT2Config(
        n_embd=width, n_layer=2, n_head=4, n_positions=32, vocab_size=end + 1, bos_token_id=end, eos_token_id=end,
        add_cross_attention=True,
    )  # fmt: skip
    encoder = transformers.ViTConfig(**VIT, image_size=96)
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    model = transformers.VisionEncoderDecoderModel(config).eval()
    for parameter in model.parameters():  # larger than the initialization: the first norms must not hide anything
        parameter.data.add_(torch.randn_like(parameter) * 0.05)
    model.generation_config.decoder_start_token_id = end
    model.generation_config.pad_token_id = end
    model.generation_config.eos_token_id = end
    model.save_pretrained(tmp_path / "theirs")
    tokenizer.save_pretrained(tmp_path / "theirs")
    transformers.ViTImageProcessor(size={"height": 96, "width": 96}, resample=2).save_pretrained(tmp_path / "theirs")
    return tmp_path / "theirs", model


@pytest.fixture
def pixels():
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 3, 96, 96), np.uint8))


def test_the_logits_are_the_same(saved, pixels):
    folder, theirs = saved
    ours, tokenizer = from_transformers(folder)
    tokens = torch.randint(0, tokenizer.eos, (3, 12))
    with torch.inference_mode():
        expected = theirs(pixel_values=(pixels / 255 - 0.5) / 0.5, decoder_input_ids=tokens).logits
        torch.testing.assert_close(ours(pixels, tokens), expected, atol=1e-5, rtol=0)


def test_the_captions_are_the_same(saved, pixels):
    folder, theirs = saved
    ours, tokenizer = from_transformers(folder)
    values = (pixels / 255 - 0.5) / 0.5
    with torch.inference_mode():
        greedy = theirs.generate(values, max_length=16, do_sample=False, num_beams=1)
        beam = theirs.generate(values, max_length=16, num_beams=4, early_stopping=False, length_penalty=1.0)
        memory = ours.encode(pixels)
    options = {"bos": tokenizer.bos, "eos": tokenizer.eos, "pad": tokenizer.pad}
    for strategy, expected in (
        (Greedy(max_length=15), greedy),
        (BeamSearch(width=4, max_length=15, consensus=False), beam),
    ):
        for [found, *_], ids in zip(generate(ours.decoder, memory, strategy, **options), expected, strict=True):
            row = ids.tolist()[1:]
            assert found.tokens == (row[: row.index(tokenizer.eos) + 1] if tokenizer.eos in row else row)


def test_a_converted_model_is_a_model_folder(saved, tmp_path, capsys):
    folder, _ = saved
    assert main(["convert", f"transformers:{folder}", "-o", str(tmp_path / "ours")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'ours'}\n"
    (one, _), (other, _) = from_transformers(folder), load_model(tmp_path / "ours")
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())
    caption = Captioner.from_pretrained(tmp_path / "ours")(Image.new("RGB", (50, 40), (200, 30, 90)))
    assert caption.tokens


@pytest.mark.parametrize(
    ("kind", "name", "options"),
    [
        ("DeiT", "deit_tiny_distilled_patch16_224", {}),
        ("Beit", "beit_base_patch16_224", {"use_relative_position_bias": True, "use_mean_pooling": True}),
        ("Beit", "beit_base_patch16_224", {"use_relative_position_bias": True, "layer_scale_init_value": 0.1}),
    ],
)
def test_other_encoders(kind, name, options, pixels):
    """Two layers of each: the features before the last norm."""
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 256}
    config = getattr(transformers, f"{kind}Config")(**shape, image_size=96, **options)
    theirs = getattr(transformers, f"{kind}Model")(config).eval()
    for parameter in theirs.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    ours = timm.create_model(name, depth=2, embed_dim=64, num_heads=2, img_size=96, num_classes=0).eval()
    missing, unexpected = ours.load_state_dict(encoder_weights(theirs.state_dict()), strict=False)
    assert not unexpected
    assert not [each for each in missing if not each.startswith(("norm", "fc_norm")) and "index" not in each]
    for module in ours.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = config.layer_norm_eps
    images = (pixels / 255 - 0.5) / 0.5
    with torch.inference_mode():
        [(patches, prefix)] = ours.forward_intermediates(
            images, indices=1, norm=False, output_fmt="NLC", intermediates_only=True, return_prefix_tokens=True
        )
        expected = theirs(images, output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(torch.cat([prefix, patches], dim=1), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda theirs: setattr(theirs.config.encoder, "hidden_act", "relu"), "encoder activation relu"),
        (lambda theirs: setattr(theirs.config.decoder, "activation_function", "relu"), "function relu, not gelu_new"),
        (lambda theirs: setattr(theirs.config.decoder, "layer_norm_epsilon", 1e-6), "epsilon 1e-06, not 1e-05"),
        (lambda theirs: setattr(theirs.generation_config, "decoder_start_token_id", 3), "start token 3"),
    ],
)
def test_models_that_differ_are_refused(saved, change, message):
    folder, theirs = saved
    change(theirs)
    theirs.save_pretrained(folder)
    with pytest.raises(CheckpointError, match=message):
        from_transformers(folder)


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (("transformers:nowhere", "-o", "new"), 4, "nowhere: not a complete transformers captioner"),
        (("nowhere", "-o", "new"), 2, "name the source as transformers:DIR"),
        (("transformers:nowhere", "-o", "."), 2, "-o .: exists; name another folder"),
    ],
)
def test_errors_are_one_line(tmp_path, monkeypatch, capsys, flags, code, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "something").touch()
    assert main(["convert", *flags]) == code
    assert message in capsys.readouterr().err


def test_images_that_are_cropped_are_refused(saved):
    folder, _ = saved
    processor = transformers.ViTImageProcessor(size={"height": 128, "width": 128}, resample=2)
    processor.save_pretrained(folder)
    with pytest.raises(CheckpointError, match="resized to another size"):
        from_transformers(folder)
