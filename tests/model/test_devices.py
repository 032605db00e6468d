"""The network on an accelerator: everything stays on its device, in the dtype of its precision.

On the `meta` device and with fake tensors on CUDA, where an operation that mixes devices raises an error.
"""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from captioner.config import DecoderConfig, EncoderConfig, ModelConfig
from captioner.model.caption_model import CaptionModel
from tests.fake_cuda import FakeCuda, autocast, to_fake_cuda

B, R, T, V, WIDTH, HEADS, LAYERS = 2, 4, 7, 11, 32, 2, 2


@pytest.fixture(params=[("test_vit", True), ("test_convnext", False)], ids=["vit", "convnext without null patch"])
def network(request):
    name, null_patch = request.param
    decoder = DecoderConfig(width=WIDTH, heads=HEADS, layers=LAYERS, max_length=16, null_patch=null_patch)
    config = ModelConfig(encoder=EncoderConfig(name=name, image_size=(64, 64)), decoder=decoder)
    model = CaptionModel(config, vocabulary=V, dropout=0.1)
    model.encoder.freeze("all")
    return model


@pytest.fixture(params=[("meta", None), ("cuda", None), ("cuda", torch.bfloat16), ("cuda", torch.float16)], ids=str)
def place(request, network):
    """A device on which tensors have no values, with the network on it, and the dtype of its mixed precision."""
    device, lower = request.param
    mode = FakeCuda() if device == "cuda" else nullcontext()
    with mode:
        network.to("meta") if device == "meta" else to_fake_cuda(network)
        yield device, lower
    assert getattr(mode, "waits", []) == []


def described(tensor):
    return tensor.device.type, tensor.dtype, tuple(tensor.shape)


def test_images_are_encoded_on_their_device(network, place):
    device, lower = place
    network.eval()
    for memory_format in (torch.contiguous_format, torch.channels_last):
        with torch.no_grad(), autocast(lower):
            pixels = torch.zeros(B, 3, 64, 64, dtype=torch.uint8, device=device).contiguous(memory_format=memory_format)
            normalized = network.encoder._normalize(pixels)
            features = network.encoder(pixels)
            memory = network.decoder.project(features)
        assert normalized.is_contiguous(memory_format=torch.channels_last)
        positions, depth = network.encoder.patches.stop, network.encoder.width
        assert described(features) in [(device, dtype, (B, positions, depth)) for dtype in (lower, torch.float32)]
        for layer in memory.layers:
            for part in layer[:2]:
                expected = device, lower or torch.float32, (B, HEADS, memory.positions, WIDTH // HEADS)
                assert described(part) == expected


def test_the_decoder_steps_on_its_device(network, place):
    device, lower = place
    network.eval()
    dtype = lower or torch.float32
    tokens = torch.zeros(R, T, dtype=torch.long, device=device)
    with torch.no_grad(), autocast(lower):
        shown = network.encode(torch.zeros(B, 3, 64, 64, dtype=torch.uint8, device=device))
        keep = torch.ones(R, shown.positions, dtype=torch.bool, device=device)
        masked = replace(shown, layers=tuple(each._replace(keep=keep) for each in shown.layers))
        for memory in (shown, masked):
            whole, weights = network.decoder(tokens, memory, return_weights=True)
            cache = network.decoder.new_cache()
            parts = [network.decoder(part, memory, cache).logits for part in tokens.split([3, 1, 2, 1], dim=1)]
            cache.select(torch.arange(2, device=device))
            assert described(whole) == (device, dtype, (R, T, V))
            assert described(weights)[::2] == (device, (R, LAYERS, HEADS, T, memory.positions))
            assert [described(part) for part in parts] == [(device, dtype, (R, size, V)) for size in (3, 1, 2, 1)]
            for layer in cache.layers:
                assert described(layer._stored) == (device, dtype, (16, 2, 2, HEADS, WIDTH // HEADS))


def test_the_loss_is_on_its_device(network, place):
    device, lower = place
    network.train()
    tokens = torch.zeros(R, T, dtype=torch.long, device=device)
    with autocast(lower):
        logits = network(torch.zeros(B, 3, 64, 64, dtype=torch.uint8, device=device), tokens[:, :-1])
    loss = F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())
    assert described(logits) == (device, lower or torch.float32, (R, T - 1, V))
    assert described(loss) == (device, torch.float32, ())
    if device == "cuda":  # autograd asks the driver for the GPU that fake tensors are said to be on
        return
    loss.backward()
    for weight in network.parameters():
        assert described(weight.grad) == (device, torch.float32, tuple(weight.shape))
