"""The whole network: its forward is decode(encode), and its configuration rebuilds it."""

import pytest
import torch
from torch.testing import assert_close

from captioner.config import DecoderConfig, EncoderConfig, ModelConfig
from captioner.config_files import config_from_dict, to_dict
from captioner.model.caption_model import CaptionModel

V = 9


@pytest.fixture
def model():
    config = ModelConfig(
        encoder=EncoderConfig(name="test_vit", image_size=(32, 48)),
        decoder=DecoderConfig(width=16, layers=2, heads=2, max_length=10),
    )
    return CaptionModel(config, vocabulary=V).eval()


def test_forward_is_decode_of_encode_an_image_for_many_rows(model):
    images, tokens = torch.randint(0, 256, (2, 3, 32, 48), dtype=torch.uint8), torch.randint(V, (6, 5))
    logits = model(images, tokens)
    assert logits.shape == (6, 5, V)
    assert torch.equal(logits, model.decoder(tokens, model.encode(images)).logits)
    copies = model(images.repeat_interleave(3, dim=0), tokens)
    assert_close(logits, copies, atol=1e-5, rtol=1e-5)


def test_memory_holds_prefix_patches_and_null(model):
    memory = model.encode(torch.zeros(1, 3, 32, 48, dtype=torch.uint8))
    assert memory.positions == 1 + 2 * 3 + 1
    assert memory.sources == (*["image"] * 7, "null")


def test_the_resolved_configuration_rebuilds_the_network(model):
    assert model.config.encoder.interpolation is not None
    again = CaptionModel(config_from_dict(ModelConfig, to_dict(model.config), "here"), vocabulary=V).eval()
    assert again.config == model.config
    again.load_state_dict(model.state_dict())
    images, tokens = torch.randint(0, 256, (2, 3, 32, 48), dtype=torch.uint8), torch.randint(V, (2, 5))
    assert torch.equal(again(images, tokens), model(images, tokens))


def test_gradients_reach_the_encoder_where_it_is_trained(model):
    images, tokens = torch.randint(0, 256, (2, 3, 32, 48), dtype=torch.uint8), torch.randint(V, (2, 5))
    model(images, tokens).sum().backward()
    assert all(parameter.grad is None for parameter in model.encoder.parameters())
    model.encoder.freeze("all")
    model(images, tokens).square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.encoder.parameters())
