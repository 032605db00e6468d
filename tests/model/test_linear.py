"""Matrix products by two ways: the same numbers, whatever the number of rows."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from captioner.model.linear import FEW_ROWS, Linear, linear


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (2, 3), (FEW_ROWS,), (FEW_ROWS + 1,), (0,), (3, 0, 2)])
@pytest.mark.parametrize("biased", [True, False])
def test_both_ways_give_the_same_product(shape, biased):
    layer = Linear(24, 40, bias=biased)
    x = torch.randn(*shape, 24)
    expected = F.linear(x, layer.weight, layer.bias)
    with torch.inference_mode():
        found = layer(x)
    assert found.shape == expected.shape
    assert found.is_contiguous()
    assert_close(found, expected)


def test_rows_that_are_not_in_one_piece():
    weight, x = torch.randn(5, 6), torch.randn(6, 3, 2).permute(1, 2, 0)
    with torch.inference_mode():
        assert_close(linear(x, weight), F.linear(x, weight))


def test_gradients_flow():
    layer, x = Linear(4, 5), torch.randn(2, 4, requires_grad=True)
    layer(x).sum().backward()
    assert_close(x.grad, layer.weight.sum(dim=0).expand(2, -1))
    assert layer.bias.grad.tolist() == [2.0] * 5
