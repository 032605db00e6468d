"""Products by oneDNN: PyTorch's own numbers, gradients too."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from captioner.model import linear as module
from captioner.model.linear import (
    AVAILABLE,
    Int8Weights,
    Linear,
    LinearMode,
    OrderedWeights,
    linear,
    ordered_weights,
    plain_products,
)

needs_onednn = pytest.mark.skipif(not AVAILABLE, reason="PyTorch without oneDNN, or no x86")


@pytest.fixture
def products(monkeypatch):
    """The products that were oneDNN's, which gets those of few rows too."""
    monkeypatch.setattr(module, "BY_MKL", 0)
    done = []
    original = module._onednn
    monkeypatch.setattr(module, "_onednn", lambda *given: done.append(given) or original(*given))
    return done


SHAPES = [(), (1,), (1, 1), (2, 3), (40,), (0,), (3, 0, 2)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("biased", [True, False])
def test_it_is_the_product(shape, biased):
    layer = Linear(24, 40, bias=biased)
    x = torch.randn(*shape, 24)
    expected = F.linear(x, layer.weight, layer.bias)
    with torch.inference_mode():
        assert_close(layer(x), expected)
    assert_close(layer(x), expected)


@pytest.mark.parametrize("shape", [*SHAPES, "permuted"], ids=str)
@pytest.mark.parametrize("biased", [True, False])
def test_its_gradients_are_the_products(shape, biased):
    found, expected = Linear(24, 40, bias=biased), nn.Linear(24, 40, bias=biased)
    expected.load_state_dict(found.state_dict())
    x = torch.randn(24, 3, 2).permute(1, 2, 0) if shape == "permuted" else torch.randn(*shape, 24)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    towards = torch.randn(*x.shape[:-1], 40)
    for layer, each in zip((found, expected), inputs, strict=True):
        layer(each).backward(towards)
    assert_close(inputs[0].grad, inputs[1].grad)
    for one, other in zip(found.parameters(), expected.parameters(), strict=True):
        assert_close(one.grad, other.grad)


def test_what_needs_no_gradient_gets_none():
    weight = torch.randn(5, 4)
    x = torch.randn(2, 4, requires_grad=True)
    linear(x, weight).sum().backward()
    assert_close(x.grad, weight.sum(dim=0).expand(2, -1))
    weight.requires_grad_()
    linear(x.detach(), weight).sum().backward()
    assert_close(weight.grad, x.detach().sum(dim=0).expand(5, -1))


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float64])
def test_other_numbers_go_pytorchs_way(kind):
    x, weight = torch.randn(3, 8, dtype=kind), torch.randn(5, 8, dtype=kind)
    assert torch.equal(linear(x, weight), F.linear(x, weight))


def test_mixed_precision_goes_pytorchs_way():
    layer = Linear(8, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(torch.randn(2, 8)).dtype == torch.bfloat16


@needs_onednn
def test_it_is_onednn_that_multiplies(products):
    layer, x = Linear(8, 5), torch.randn(3, 8, requires_grad=True)
    layer(x).sum().backward()
    assert len(products) == 3  # forward, and backward to the input and the weight
    with torch.inference_mode():
        layer(x)
    assert len(products) == 4
    with plain_products():
        layer(x).sum().backward()
    assert len(products) == 4


@needs_onednn
@pytest.mark.parametrize("rows", [1, 2, 5, 40])
def test_weights_in_onednns_order_multiply_the_same(rows, products):
    layer, x = Linear(24, 40), torch.randn(rows, 24)
    expected = F.linear(x, layer.weight, layer.bias)
    with torch.inference_mode(), ordered_weights(layer):
        assert_close(layer(x), expected)
        assert_close(linear(x, layer.weight.clone()), expected - layer.bias)  # another weight, as it is
    assert [given[1].layout == torch._mkldnn for given in products] == [True, False]


@pytest.mark.parametrize("rows", [1, 8, 9])
def test_few_rows_may_go_pytorchs_way(rows, products, monkeypatch):
    monkeypatch.setattr(module, "BY_MKL", 8)
    layer, x = Linear(24, 40), torch.randn(1, rows, 24)
    with torch.inference_mode(), ordered_weights(layer):
        assert_close(layer(x), F.linear(x, layer.weight, layer.bias))
    assert len(products) == (rows > 8 and AVAILABLE)


@needs_onednn
def test_kept_copies_follow_the_weights(products):
    layer, x = Linear(8, 5), torch.randn(3, 8)
    ordered = OrderedWeights(layer)
    used = []
    changes = (
        lambda: None,
        lambda: layer.weight.detach().mul_(2),
        lambda: setattr(layer.weight, "data", torch.randn(5, 8)),
        lambda: setattr(layer, "weight", nn.Parameter(torch.randn(5, 8))),
    )
    for change in changes:
        change()
        with torch.inference_mode(), ordered.used():
            assert_close(layer(x), F.linear(x, layer.weight, layer.bias))
        used.append(products[-1][1])
    with torch.inference_mode(), ordered.used(), ordered_weights(layer):
        layer(x)
    assert products[-1][1] is used[-1]  # kept, and taken where copies are asked for within
    assert len({id(each) for each in used}) == len(changes)


@needs_onednn
@pytest.mark.parametrize("shape", [(1,), (40,), (2, 3)], ids=str)
def test_weights_of_8_bits(shape):
    layer, x = Linear(24, 40), torch.randn(*shape, 24)
    layer.weight.data[3] = 0  # a row without a scale
    x[..., 0, :] *= 1000
    with torch.inference_mode(), Int8Weights(layer).used():
        found = layer(x)
    steps = [each.abs().amax(dim=-1, keepdim=True).clamp(min=1e-30) / 127 for each in (x, layer.weight)]
    rounded = [(each / step).round() * step for each, step in zip((x, layer.weight), steps, strict=True)]
    assert_close(found, F.linear(*rounded, layer.bias), rtol=1e-5, atol=1e-4)
    error = (found - layer(x)).norm(dim=-1) / layer(x).norm(dim=-1)
    assert 0 < error.max() < 0.02


@needs_onednn
def test_with_8_bits_no_row_depends_on_the_others():
    layer, x = Linear(512, 40), torch.randn(7, 3, 512)
    with torch.inference_mode(), Int8Weights(layer).used():
        together = layer(x)
        x[3:] *= 50
        assert torch.equal(layer(x)[:3], together[:3])
        assert torch.equal(layer(x[1:2]), together[1:2])


@needs_onednn
def test_copies_that_nobody_keeps_are_new_each_time():
    """Averages of weights are swapped in behind autograd's back (pytorch_lightning's WeightAveraging)."""
    layer, x = Linear(8, 5), torch.randn(3, 8)
    for _ in range(2):
        with torch.inference_mode(), ordered_weights(layer):
            assert_close(layer(x), F.linear(x, layer.weight, layer.bias))
        layer.weight.data.copy_(torch.randn(5, 8))
    other = Linear(8, 5)
    with torch.inference_mode(), ordered_weights(layer), ordered_weights(other):
        assert_close(other(x), F.linear(x, other.weight, other.bias))


@needs_onednn
def test_gradients_and_what_comes_after_take_the_weights_themselves(products):
    layer, x = Linear(8, 5), torch.randn(3, 8)
    with ordered_weights(layer):
        layer(x).sum().backward()
    with torch.inference_mode():
        layer(x)
    assert layer.weight.grad is not None
    assert all(given[1].layout == torch.strided for given in products)


def test_a_bias_alone_can_be_trained():
    layer = Linear(8, 5)
    layer.weight.requires_grad_(False)
    layer(torch.randn(3, 8)).sum().backward()
    assert layer.bias.grad.tolist() == [3.0] * 5
    assert layer.weight.grad is None


def test_other_modules_within_the_mode(products):
    module = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0).train()
    x = torch.randn(2, 5, 16)
    expected = module(x)
    assert not products
    with LinearMode():
        found = module(x)
    assert len(products) == (2 if AVAILABLE else 0)  # the feed-forward; attention is one function to PyTorch
    assert_close(found, expected)
    found.sum().backward()
    assert all(each.grad is not None for each in module.parameters())


def test_an_exported_graph_has_standard_operators():
    exported = torch.export.export(Linear(8, 5), (torch.randn(2, 8),))
    assert "mkldnn" not in str(exported.graph)
