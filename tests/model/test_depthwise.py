"""Depthwise convolutions under mixed precision."""

import copy
import pickle

import pytest
import timm
import torch
from torch import nn

from captioner.model.depthwise import Float32Conv2d, Float32Conv2dSame, is_depthwise, keep_strided_in_float32


@pytest.fixture(params=["mobilenetv2_050", "tf_efficientnet_lite0"])
def backbone(request):
    torch.manual_seed(0)
    return timm.create_model(request.param, num_classes=0).eval()


def test_only_strided_depthwise_convolutions_are_changed(backbone):
    before = {name: type(part) for name, part in backbone.named_modules()}
    keys = list(backbone.state_dict())
    keep_strided_in_float32(backbone)
    changed = {name for name, part in backbone.named_modules() if type(part) is not before[name]}
    strided = {name for name, part in backbone.named_modules() if is_depthwise(part) and part.stride == (2, 2)}
    assert changed == strided
    assert len(changed) == 4
    assert list(backbone.state_dict()) == keys


def test_values_are_those_of_the_plain_network(backbone):
    x = torch.rand(2, 3, 64, 64)
    plain = copy.deepcopy(backbone)
    keep_strided_in_float32(backbone)
    assert torch.equal(backbone(x), plain(x))
    assert torch.equal(pickle.loads(pickle.dumps(copy.deepcopy(backbone)))(x), plain(x))


@pytest.mark.parametrize("kind", [Float32Conv2d, Float32Conv2dSame])
def test_mixed_precision_computes_in_float32_and_keeps_the_dtype(kind):
    torch.manual_seed(0)
    layer = kind(8, 8, 3, stride=2, groups=8)
    x = torch.rand(1, 8, 9, 9).bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = layer(x)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, layer(x.float()).bfloat16())
    found.sum().backward()
    assert x.grad is not None
    assert layer.weight.grad is not None


def test_what_is_depthwise():
    assert is_depthwise(nn.Conv2d(4, 8, 3, groups=4))
    assert not is_depthwise(nn.Conv2d(4, 4, 3, groups=2))
    assert not is_depthwise(nn.Conv2d(1, 4, 3))
    assert not is_depthwise(nn.Linear(4, 4))
