"""Pointing against loops over words, layers and heads."""

import pytest
import torch

from captioner.data.dataset import Batch
from captioner.training.attention_losses import attention_measures, pointing, pointing_loss

GRID, PATCHES = (2, 3), slice(1, 7)
CORNERS = torch.tensor([-1, 2])


@pytest.fixture
def words():
    """Two images with two captions each, the second in a mosaic; attention has a prefix, 2 x 3 patches, a null."""
    objects = torch.rand(4, 6) < 0.5
    objects[2, 3] = True
    lengths = torch.full((4,), 6)
    tokens = torch.zeros(4, 6, dtype=torch.long)
    batch = Batch(None, None, tokens, lengths, ["a", "b"], CORNERS, objects, predicting=tokens[:2, :0])
    return batch, torch.rand(4, 2, 3, 5, 1 + 6 + 1).softmax(-1)  # (R, L, H, T - 1, N)


def named(batch):
    return [(row, step) for row in (2, 3) for step in range(5) if batch.objects[row, step + 1]]


def test_pointing_is_the_share_on_the_own_corner(words):
    """Only object words of mosaics count, and patches without prefix and null positions."""
    batch, weights = words
    expected = []
    for row, step in named(batch):
        patches = weights[row, :, :, step, 1:7].reshape(2, 3, 2, 3)
        own = patches[:, :, 1, 0] + patches[:, :, 1, 1] / 2  # bottom left
        expected.append(own / patches.sum(dim=(2, 3)))
    found = pointing(weights, batch, GRID, PATCHES)
    torch.testing.assert_close(found, torch.stack(expected))
    torch.testing.assert_close(pointing_loss(found), -torch.stack([each.mean().log() for each in expected]).mean())


def test_a_word_that_does_not_look_at_its_photo_has_a_finite_loss():
    assert pointing_loss(torch.zeros(3, 2, 2)).isfinite()


def test_measures_of_single_heads(words):
    batch, weights = words
    batch = batch._replace(objects=batch.objects & torch.tensor([0, 0, 1, 1], dtype=torch.bool)[:, None])
    found = attention_measures(weights, batch, GRID, PATCHES)
    assert {name: tuple(each.shape) for name, each in found.items()} == dict.fromkeys(
        ("pointing", "entropy", "null_mass"), (len(named(batch)), 2, 3)
    )
    for place, (row, step) in enumerate(named(batch)):
        for layer in range(2):
            for head in range(3):
                attention = weights[row, layer, head, step]
                shares = attention[1:7] / attention[1:7].sum()
                assert found["null_mass"][place, layer, head] == attention[7]
                entropy = -(shares * shares.log2()).sum()
                assert float(found["entropy"][place, layer, head]) == pytest.approx(float(entropy), rel=1e-5)
