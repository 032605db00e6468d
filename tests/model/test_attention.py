"""Attention: the formula by loops, fused equal to explicit, rows folded equal to an image copied for each of them."""

import math

import pytest
import torch
from torch.testing import assert_close

from captioner.model.attention import CrossAttention, KeyValues, SelfAttention, attention_weights, fused_attention

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
B, C, T, N, D, H = 2, 3, 4, 5, 12, 3


@pytest.fixture
def cross(randomize):
    attention = CrossAttention(width=D, heads=H, dropout=0.0, null_patch=True)
    randomize(attention, 0)
    return attention.eval()


def by_loops(queries, keys, allowed=None):
    """softmax(Q Kᵀ / √d) of one head, word by word and patch by patch."""
    weights = torch.zeros(len(queries), len(keys))
    for i, query in enumerate(queries.tolist()):
        seen = [j for j in range(len(keys)) if allowed is None or allowed[i, j]]
        scores = {
            j: sum(q * k for q, k in zip(query, keys[j].tolist(), strict=True)) / math.sqrt(len(query)) for j in seen
        }
        total = sum(math.exp(score) for score in scores.values())
        for j, score in scores.items():
            weights[i, j] = math.exp(score) / total
    return weights


def test_weights_are_the_formula():
    queries, keys = torch.randn(T, 4), torch.randn(N, 4)
    allowed = torch.rand(T, N) < 0.6
    allowed[:, 0] = True
    assert_close(attention_weights(queries, keys), by_loops(queries, keys), **CLOSE)
    masked = attention_weights(queries, keys, allowed)
    assert_close(masked, by_loops(queries, keys, allowed), **CLOSE)
    assert (masked[~allowed] == 0).all()
    assert_close(masked.sum(-1), torch.ones(T))


def test_weights_of_many_heads_are_those_of_each():
    queries, keys = torch.randn(B, H, T, 4), torch.randn(B, H, N, 4)
    weights = attention_weights(queries, keys)
    for b in range(B):
        for h in range(H):
            assert_close(weights[b, h], by_loops(queries[b, h], keys[b, h]), **CLOSE)


def test_large_scores_do_not_overflow():
    weights = attention_weights(torch.full((1, 4), 1e4), torch.tensor([[1e4] * 4, [-1e4] * 4]))
    assert weights.tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize("masked", [False, True])
def test_fused_equals_explicit_gradients_too(cross, masked):
    features, x = torch.randn(B, N, D), torch.randn(B * C, T, D)
    keep = torch.rand(B * C, N + 1) < 0.7
    keep[:, 0] = True
    results = []
    for return_weights in (False, True):
        cross.zero_grad()
        inputs = x.clone().requires_grad_(), features.clone().requires_grad_()
        memory = cross.project(inputs[1])._replace(keep=keep if masked else None)
        attended, weights = cross(inputs[0], memory, return_weights)
        assert (weights is not None) == return_weights
        attended.square().sum().backward()
        results.append([attended, *(each.grad for each in inputs), *(p.grad.clone() for p in cross.parameters())])
    for fused, explicit in zip(*results, strict=True):
        assert_close(fused, explicit, atol=1e-4, rtol=1e-4)
    assert_close(weights.sum(-1), torch.ones(B * C, H, T))
    if masked:
        assert (weights.transpose(1, 3)[~keep] == 0).all()


@pytest.mark.parametrize("kind", ["plain", "causal", "masked"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_training_in_16_bits_is_close_to_float64(dtype, kind):
    """Where another computation than PyTorch's kernel is used: outputs and gradients."""
    inputs = [torch.randn(B, H, T, 8) for _ in range(3)]
    keep = torch.rand(B, 1, T, T) < 0.7
    keep[..., 0] = True
    allowed = {"plain": None, "causal": torch.ones(T, T, dtype=torch.bool).tril(), "masked": keep}[kind]
    results = []
    for precision in (dtype, torch.float64):
        queries, keys, values = (each.to(dtype).to(precision).requires_grad_() for each in inputs)
        if precision == dtype:
            mask = allowed if kind == "masked" else None
            attended = fused_attention(queries, keys, values, mask, is_causal=kind == "causal")
        else:
            attended = attention_weights(queries, keys, allowed) @ values
        attended.square().sum().backward()
        results.append([attended, queries.grad, keys.grad, values.grad])
    for found, exact in zip(*results, strict=True):
        assert (found - exact).norm() < 0.01 * exact.norm()


@pytest.mark.parametrize("return_weights", [False, True])
@pytest.mark.parametrize("mask", ["none", "by image", "by row"])
def test_folded_rows_equal_copied_images_gradients_too(cross, return_weights, mask):
    features, x = torch.randn(B, N, D), torch.randn(B * C, T, D)
    keep = torch.rand(B if mask == "by image" else B * C, N + 1) < 0.7
    keep[:, 1] = True
    results = []
    for copied in (False, True):
        cross.zero_grad()
        inputs = x.clone().requires_grad_(), features.clone().requires_grad_()
        memory = cross.project(inputs[1])
        rows = keep
        if copied:
            memory = KeyValues(memory.keys.repeat_interleave(C, 0), memory.values.repeat_interleave(C, 0))
            rows = keep.repeat_interleave(B * C // len(keep), 0)
        attended, weights = cross(inputs[0], memory._replace(keep=None if mask == "none" else rows), return_weights)
        attended.pow(3).sum().backward()
        results.append([attended, *(each.grad for each in inputs), *(p.grad.clone() for p in cross.parameters())])
        if return_weights:
            results[-1].append(weights)
    for folded, copies in zip(*results, strict=True):
        assert_close(folded, copies, atol=1e-4, rtol=1e-4)


def test_nothing_of_an_image_is_copied_for_its_rows(cross):
    memory = cross.project(torch.randn(1, N, D))
    one, _ = cross(torch.randn(1, T, D), memory)
    many, _ = cross(torch.randn(100, T, D), memory)
    assert memory.keys.shape == (1, H, N + 1, D // H)
    assert (len(one), len(many)) == (1, 100)


def test_the_null_patch_is_the_last_position_and_learned(cross, randomize):
    memory = cross.project(torch.randn(B, N, D))
    for b in range(B):
        assert_close(memory.keys[b, :, -1:], cross.null[0])
        assert_close(memory.values[b, :, -1:], cross.null[1])
    cross(torch.randn(B, T, D), memory)[0].sum().backward()
    assert cross.null.grad.abs().min() > 0

    without = CrossAttention(width=D, heads=H, dropout=0.0, null_patch=False)
    assert without.null is None
    assert without.project(torch.randn(B, N, D)).keys.shape[2] == N


def test_dropout_acts_on_what_is_added_in_training_only():
    attention = CrossAttention(width=D, heads=H, dropout=0.5, null_patch=False)
    x, memory = torch.randn(B, T, D), attention.project(torch.randn(B, N, D))
    zeros = (attention(x, memory)[0] == 0).float().mean()
    assert 0.2 < zeros < 0.8
    assert (attention.eval()(x, memory)[0] != 0).all()


def test_self_attention_is_causal_softmax_by_loops(randomize):
    attention = SelfAttention(width=D, heads=H, dropout=0.0)
    randomize(attention, 1)
    x = torch.randn(B, T, D)
    query, key, value = attention.query_key_value(x).split(D, dim=-1)
    earlier = torch.ones(T, T, dtype=torch.bool).tril()
    parts = []
    for h in range(H):
        head = slice(h * D // H, (h + 1) * D // H)
        parts.append(
            torch.stack([by_loops(query[b, :, head], key[b, :, head], earlier) @ value[b, :, head] for b in range(B)])
        )
    assert_close(attention(x), attention.output(torch.cat(parts, dim=-1)), **CLOSE)
