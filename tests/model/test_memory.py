"""Memory's algebra: concat, select and mask equal what they stand for, in keys and in what the decoder says."""

import pytest
import torch
from torch.testing import assert_close

from captioner.model.attention import attention_weights
from captioner.model.memory import Memory, concat

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
B, C, T, N, E = 2, 3, 5, 7, 6


@pytest.fixture
def tokens():
    return torch.randint(11, (B * C, T))


def test_size_and_sources(build):
    memory = build().project(torch.randn(B, N, E))
    assert (memory.images, memory.positions) == (B, N + 1)
    assert memory.sources == ("image",) * N + ("null",)
    assert build(null_patch=False).project(torch.randn(B, N, E)).sources == ("image",) * N


def test_taken_positions_equal_positions_that_are_not_there(build, tokens):
    decoder, features, kept = build(), torch.randn(B, N, E), torch.tensor([N, 3, 0, 2])
    taken = decoder.project(features).take(kept)
    assert taken.sources == ("null", "image", "image", "image")
    expected = decoder(tokens, decoder.project(features[:, [3, 0, 2]])).logits
    assert_close(decoder(tokens, taken).logits, expected, **CLOSE)
    keep = torch.rand(B, N + 1) < 0.5
    keep[:, N] = True
    assert torch.equal(decoder.project(features).mask(keep).take(kept).layers[1].keep, keep[:, kept])


def test_hidden_positions_equal_positions_that_are_not_there(build, tokens):
    decoder, features = build(), torch.randn(B, N, E)
    kept = torch.tensor([0, 2, 3, 6])
    keep = torch.zeros(B, N + 1, dtype=torch.bool)
    keep[:, [*kept.tolist(), N]] = True  # the null patch stays
    hidden = decoder(tokens, decoder.project(features).mask(keep), return_weights=True)
    removed = decoder(tokens, decoder.project(features[:, kept]), return_weights=True)
    assert_close(hidden.logits, removed.logits, **CLOSE)
    assert_close(hidden.weights[..., [*kept.tolist(), N]], removed.weights, **CLOSE)
    assert (hidden.weights[..., [1, 4, 5]] == 0).all()


def test_a_mask_by_row_equals_each_row_masked_alone(build, tokens):
    decoder, features = build(), torch.randn(B, N, E)
    keep = torch.rand(B * C, N + 1) < 0.5
    keep[:, N] = True
    together = decoder(tokens, decoder.project(features).mask(keep)).logits
    for row in range(B * C):
        own = decoder.project(features[row // C : row // C + 1]).mask(keep[row : row + 1])
        assert_close(together[row : row + 1], decoder(tokens[row : row + 1], own).logits, **CLOSE)


def test_masks_add_up_the_finer_one_decides_the_rows(build):
    memory = build().project(torch.randn(B, N, E))
    by_image, by_row = torch.rand(B, N + 1) < 0.7, torch.rand(B * C, N + 1) < 0.7
    by_image[:, N] = by_row[:, N] = True
    expected = by_image.repeat_interleave(C, dim=0) & by_row
    for first, second in ((by_image, by_row), (by_row, by_image)):
        twice = memory.mask(first).mask(second)
        assert all(torch.equal(layer.keep, expected) for layer in twice.layers)
    assert memory.layers[0].keep is None


def test_a_mask_that_hides_everything_is_refused(build):
    memory = build().project(torch.randn(B, N, E))
    keep = torch.ones(B, N + 1, dtype=torch.bool)
    keep[1] = False
    with pytest.raises(ValueError, match="hides every memory position"):
        memory.mask(keep)
    half = torch.arange(N + 1) < 4
    with pytest.raises(ValueError, match="hides every memory position"):
        memory.mask(half.expand(B, -1)).mask(~half.expand(B, -1))


def test_permuted_patches_permute_the_weights_and_nothing_else(build, tokens):
    decoder, features = build(), torch.randn(B, N, E)
    order = torch.randperm(N)
    plain = decoder(tokens, decoder.project(features), return_weights=True)
    permuted = decoder(tokens, decoder.project(features[:, order]), return_weights=True)
    assert_close(permuted.logits, plain.logits, **CLOSE)
    assert_close(permuted.weights[..., :N], plain.weights[..., order], **CLOSE)
    assert_close(permuted.weights[..., N], plain.weights[..., N], **CLOSE)


@pytest.mark.parametrize("images", [[1], [1, 0], [0, 0, 1]])
@pytest.mark.parametrize("mask_rows", [0, B, B * C])
def test_select_equals_projecting_those_images(build, images, mask_rows):
    decoder, features = build(), torch.randn(B, N, E)
    memory, chosen = decoder.project(features), torch.tensor(images)
    expected = decoder.project(features[chosen])
    if mask_rows:
        keep = torch.rand(mask_rows, N + 1) < 0.6
        keep[:, N] = True
        memory = memory.mask(keep)
        expected = expected.mask(keep.view(B, -1, N + 1)[chosen].flatten(0, 1))
    tokens = torch.randint(11, (len(images) * C, T))
    selected = memory.select(chosen)
    assert_close(decoder(tokens, selected).logits, decoder(tokens, expected).logits, **CLOSE)
    assert selected.sources == memory.sources


def test_concat_equals_projecting_both_at_once(build, tokens):
    decoder, one, other = build(null_patch=False), torch.randn(B, 3, E), torch.randn(B, 4, E)
    both = concat([decoder.project(one), decoder.project(other)])
    at_once = decoder.project(torch.cat([one, other], dim=1))
    assert_close(decoder(tokens, both).logits, decoder(tokens, at_once).logits, **CLOSE)
    assert (both.positions, both.sources) == (7, at_once.sources)


def test_concat_equals_the_log_sum_exp_merge_of_both(build):
    decoder = build()
    parts = [decoder.project(torch.randn(B, n, E)) for n in (3, 4)]
    both = concat(parts)
    assert both.sources == (*["image"] * 3, "null", *["image"] * 4, "null")
    cross = decoder.blocks[0].cross_attention
    x = torch.randn(B * C, T, 16)
    queries = cross.query(x).view(B, C * T, 4, 4).transpose(1, 2)
    attended, masses = [], []
    for part in parts:
        keys, values, _ = part.layers[0]
        attended.append(attention_weights(queries, keys) @ values)
        masses.append((queries @ keys.transpose(-2, -1) / 2).logsumexp(dim=-1))  # √d is 2
    shares = torch.stack(masses).softmax(dim=0)  # (2, B, H, C·T)
    merged = sum(share[..., None] * each for share, each in zip(shares, attended, strict=True))
    expected = cross.output(merged.transpose(1, 2).reshape(B * C, T, 16))
    found, weights = cross(x, both.layers[0], return_weights=True)
    assert_close(found, expected, **CLOSE)
    mass = weights[..., :4].sum(-1)  # (R, H, T) of the first part
    assert_close(mass.view(B, C, 4, T).transpose(1, 2).flatten(2), shares[0], **CLOSE)


def test_concat_keeps_the_masks_of_its_parts(build, tokens):
    decoder = build()
    one, other = (decoder.project(torch.randn(B, n, E)) for n in (3, 4))
    keep = torch.rand(B * C, 5) < 0.5
    keep[:, 4] = True
    plain = torch.ones(B, 4, dtype=torch.bool)
    plain[:, 0] = False
    both = concat([one.mask(plain), other.mask(keep)])
    expected = concat([one, other]).mask(torch.cat([plain.repeat_interleave(C, 0), keep], dim=1))
    assert torch.equal(both.layers[1].keep, expected.layers[1].keep)
    assert_close(decoder(tokens, both).logits, decoder(tokens, expected).logits, **CLOSE)
    half = concat([one, other.mask(keep)])
    assert half.layers[0].keep[:, :4].all()


def test_concat_refuses_decoders_of_other_depth(build):
    features = torch.randn(B, N, E)
    with pytest.raises(ValueError, match="zip"):
        concat([build().project(features), build(layers=1).project(features)])


def test_memory_is_immutable(build):
    memory = build().project(torch.randn(B, N, E))
    with pytest.raises(AttributeError):
        memory.sources = ()
    assert isinstance(memory, Memory)
