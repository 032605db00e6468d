"""Dropout: as many zeros as asked for, the same mean, the same draws from the same seed."""

import pytest
import torch
from torch.testing import assert_close

from captioner.model.dropout import Dropout


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5, 0.9])
def test_it_drops_as_many_as_asked_for(rate):
    torch.manual_seed(0)
    found = Dropout(rate)(torch.ones(1000, 1000))
    assert float((found == 0).float().mean()) == pytest.approx(rate, abs=0.004)
    assert float(found.mean()) == pytest.approx(1.0, abs=0.01)
    assert len(found.unique()) == 2
    # Neighbors of a draw, rows and columns do not know each other.
    stays = (found != 0).float() - (found != 0).float().mean()
    for shift in (1, 8, 1000):
        assert abs(float((stays.flatten()[shift:] * stays.flatten()[:-shift]).mean())) < 0.002


@pytest.mark.parametrize("shape", [(), (7,), (3, 5), (0, 4)])
def test_shapes(shape):
    x = torch.randn(shape, requires_grad=True)
    torch.manual_seed(1)
    found = Dropout(0.5)(x)
    assert found.shape == x.shape
    found.sum().backward()
    assert_close(found, x * x.grad)


def test_the_same_seed_draws_the_same():
    x, drop = torch.randn(50, 3), Dropout(0.4)
    torch.manual_seed(3)
    first = drop(x)
    assert not torch.equal(first, drop(x))
    torch.manual_seed(3)
    assert torch.equal(first, drop(x))


def test_the_draws_are_its_own():
    x = torch.ones(100)
    torch.manual_seed(0)
    found = Dropout(0.5)(x)
    torch.manual_seed(0)
    assert not torch.equal(found, torch.nn.Dropout(0.5)(x))


def test_nothing_is_dropped_where_nothing_is_to_be():
    x = torch.randn(4, 4)
    assert torch.equal(Dropout(0.5).eval()(x), x)
    assert torch.equal(Dropout(0.0)(x), x)
    assert torch.equal(Dropout(1.0)(x), torch.zeros(4, 4))
    assert Dropout(0.5)(x.bfloat16()).dtype == torch.bfloat16
