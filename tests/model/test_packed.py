"""A packed decoder says what its decoder says, or nearly so in 8 bits."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from captioner.model import packed as module
from captioner.model.linear import AVAILABLE, Linear
from captioner.model.packed import Int8Linear, PackedLinear, pack

needs_onednn = pytest.mark.skipif(not AVAILABLE, reason="PyTorch without oneDNN, or no x86")
CLOSE = {"atol": 1e-5, "rtol": 1e-5}
SHAPES = [(), (1,), (1, 1), (2, 3), (40,)]


@pytest.fixture(params=[True, False], ids=["few rows plain", "all packed"], autouse=True)
def few_rows_plain(request, monkeypatch):
    """Both ways to multiply a few rows, whichever this processor would choose."""
    monkeypatch.setattr(module, "plain_is_faster", lambda single: request.param)
    return request.param


@pytest.fixture
def read():
    """The features of two images and three captions of each."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 5, 6, generator=generator), torch.randint(11, (6, 8), generator=generator)


@pytest.mark.parametrize("null_patch", [True, False])
def test_a_packed_decoder_gives_the_same_logits_and_weights(build, read, null_patch):
    decoder, (features, tokens) = build(null_patch=null_patch), read
    packed = pack(decoder)
    with torch.inference_mode():
        expected = decoder(tokens, decoder.project(features), return_weights=True)
        found = packed(tokens, packed.project(features), return_weights=True)
        assert_close(found, expected, **CLOSE)
        cache = packed.new_cache()
        memory = packed.project(features[:1])
        steps = [packed(tokens[:1, t : t + 1], memory, cache).logits for t in range(8)]
        assert_close(torch.cat(steps, dim=1), expected.logits[:1], **CLOSE)


def test_it_shares_what_is_not_packed_and_is_in_evaluation_mode(build):
    decoder = build().train()
    packed = pack(decoder)
    assert not any(each.training for each in packed.modules())
    assert all(each.training for each in decoder.modules())
    for name, parameter in decoder.named_parameters():
        assert packed.get_parameter(name).data_ptr() == parameter.data_ptr()
    assert not any(parameter.requires_grad for parameter in packed.parameters())
    assert all(parameter.requires_grad for parameter in decoder.parameters())
    assert packed.config == decoder.config
    assert pack(packed) is packed


@needs_onednn
@pytest.mark.parametrize(("int8", "kind"), [(False, PackedLinear), (True, Int8Linear)])
def test_what_is_packed(build, int8, kind):
    packed = pack(build(), int8=int8)
    found = {name for name, each in packed.named_modules() if type(each) is kind}
    layers = ("self_attention.query_key_value", "self_attention.output", "cross_attention.query")
    layers += ("cross_attention.output", "feed_forward.0", "feed_forward.2")
    assert found == {f"blocks.{block}.{layer}" for block in range(2) for layer in layers} | {"_head"}


def test_packing_leaves_the_random_numbers_alone(build):
    decoder, state = build(), torch.get_rng_state()
    pack(decoder)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_decoder_packed_anew_follows_its_weights(build, read):
    """Also where autograd does not know of the change: averages of weights are swapped in this way."""
    decoder, other, (features, tokens) = build(), build(seed=1), read
    pack(decoder)
    for weight, new in zip(decoder.parameters(), other.parameters(), strict=True):
        weight.data.copy_(new.data)
    with torch.inference_mode():
        found, expected = (each(tokens, each.project(features)).logits for each in (pack(decoder), other))
    assert_close(found, expected, **CLOSE)


@pytest.mark.parametrize("int8", [False, True])
def test_gradients_reach_the_states_and_no_weight(build, read, int8):
    decoder, (features, tokens) = build(), read
    gradients = []
    for each in (decoder, pack(decoder, int8=int8)):
        x = each.embed(tokens).detach().requires_grad_()
        for block, memory in zip(each.blocks, decoder.project(features).layers, strict=True):
            x2, _ = block(x, memory)
            x2.square().sum().backward()
            break
        gradients.append(x.grad)
        assert all(parameter.grad is None for parameter in pack(decoder).parameters())
    assert_close(*gradients, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shape", [*SHAPES, (0,), (3, 0, 2)], ids=str)
@pytest.mark.parametrize("biased", [True, False])
def test_a_packed_layer_is_the_product(shape, biased):
    layer, x = Linear(24, 40, bias=biased), torch.randn(*shape, 24)
    with torch.inference_mode():
        assert_close(PackedLinear(layer.weight, layer.bias)(x), F.linear(x, layer.weight, layer.bias))


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float64])
def test_other_numbers_are_not_packed(build, read, kind):
    decoder, (features, tokens) = build().to(kind), read
    with torch.inference_mode():
        expected = decoder(tokens, decoder.project(features.to(kind))).logits
        packed = pack(decoder)
        assert torch.equal(packed(tokens, packed.project(features.to(kind))).logits, expected)
    assert not any(isinstance(each, PackedLinear) for each in packed.modules())


def test_mixed_precision_takes_the_matrix_itself():
    layer = Linear(8, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
        assert PackedLinear(layer.weight, layer.bias)(torch.randn(2, 8)).dtype == torch.bfloat16


@needs_onednn
@pytest.mark.parametrize("shape", [(1,), (40,), (2, 3)], ids=str)
def test_matrices_of_8_bits(shape):
    layer, x = Linear(24, 40), torch.randn(*shape, 24)
    layer.weight.data[3] = 0  # a row without a scale
    x[..., 0, :] *= 1000
    with torch.inference_mode():
        found = Int8Linear(layer.weight, layer.bias)(x)
    steps = [each.abs().amax(dim=-1, keepdim=True).clamp(min=1e-30) / 127 for each in (x, layer.weight)]
    rounded = [(each / step).round() * step for each, step in zip((x, layer.weight), steps, strict=True)]
    assert_close(found, F.linear(*rounded, layer.bias), rtol=1e-5, atol=1e-4)
    error = (found - layer(x)).norm(dim=-1) / layer(x).norm(dim=-1)
    assert 0 < error.max() < 0.02


@needs_onednn
def test_in_8_bits_no_row_depends_on_the_others():
    layer, x = Linear(512, 40), torch.randn(7, 3, 512)
    packed = Int8Linear(layer.weight, layer.bias)
    with torch.inference_mode():
        together = packed(x)
        x[3:] *= 50
        assert torch.equal(packed(x)[:3], together[:3])
        assert torch.equal(packed(x[1:2]), together[1:2])


@needs_onednn
def test_each_way_multiplies_the_rows_that_it_is_for(few_rows_plain, monkeypatch):
    taken = []
    for name in ("plain_product", "onednn_product"):
        original = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *given, n=name, f=original: taken.append(n) or f(*given))
    small, large = PackedLinear(torch.randn(40, 24), None), PackedLinear(torch.randn(1024, 512), None)
    with torch.inference_mode():
        for layer in (small, large):
            for rows in (1, 2, 8, 9):
                layer(torch.randn(1, rows, layer.in_features))
    few = "plain_product" if few_rows_plain else "onednn_product"
    assert taken == [few, few, few, "onednn_product", few, *["onednn_product"] * 3]
