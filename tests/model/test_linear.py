"""Products by oneDNN: PyTorch's own numbers, gradients too."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from captioner.model import linear as module
from captioner.model.linear import AVAILABLE, Linear, linear, replace_linear_layers

needs_onednn = pytest.mark.skipif(not AVAILABLE, reason="PyTorch without oneDNN, or no x86")


@pytest.fixture
def products(monkeypatch):
    """The products that oneDNN computed."""
    done = []
    original = module.onednn_product
    monkeypatch.setattr(module, "onednn_product", lambda *given: done.append(given) or original(*given))
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


def test_a_bias_alone_can_be_trained():
    layer = Linear(8, 5)
    layer.weight.requires_grad_(False)
    layer(torch.randn(3, 8)).sum().backward()
    assert layer.bias.grad.tolist() == [3.0] * 5
    assert layer.weight.grad is None


def test_replaced_layers_share_their_parameters(products):
    block = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0).train()
    x, before = torch.randn(2, 5, 16), dict(block.named_parameters())
    expected = block(x)
    assert not products
    replace_linear_layers(block)
    assert type(block.linear1) is type(block.linear2) is Linear
    assert type(block.self_attn.out_proj) is not Linear  # a subclass keeps its own way
    assert all(parameter is before[name] for name, parameter in block.named_parameters())
    found = block(x)
    assert len(products) == (2 if AVAILABLE else 0)
    assert_close(found, expected)
    found.sum().backward()
    assert all(each.grad is not None for each in block.parameters())


@pytest.mark.parametrize("biased", [True, False])
def test_a_replaced_layer_keeps_its_mode_and_hyperparameters(biased):
    block = nn.Sequential(nn.Linear(3, 4, bias=biased).eval())
    replace_linear_layers(block)
    assert repr(block[0]) == f"Linear(in_features=3, out_features=4, bias={biased})"
    assert not block[0].training
    assert_close(block(torch.ones(2, 3)), F.linear(torch.ones(2, 3), block[0].weight, block[0].bias))


def test_an_exported_graph_has_standard_operators():
    exported = torch.export.export(Linear(8, 5), (torch.randn(2, 8),))
    assert "mkldnn" not in str(exported.graph)
