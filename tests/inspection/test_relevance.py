"""Relevance is compared with a numerical derivative, perturbation with differences."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from captioner.config import DecoderConfig
from captioner.inspection.maps import force_caption
from captioner.inspection.relevance import (
    MemoryGradients,
    memory_gradients,
    perturbation,
    refine,
    relevance,
    resize,
    stage_contributions,
)
from captioner.model.attention import KeyValues
from captioner.model.cache import CaptionCache, LayerCache
from captioner.model.decoder import TextDecoder

GRID, PREFIX = (3, 4), 2
PATCHES = slice(PREFIX, PREFIX + 12)
WORDS = [(0, 1), (1, 3), (3, 4)]


@pytest.fixture
def seen():
    torch.manual_seed(0)
    config = DecoderConfig(width=16, heads=2, layers=2, max_length=8)
    decoder = TextDecoder(config, vocabulary=20, encoder_width=8).double().eval()
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.mul_(5)
    memory = decoder.project(torch.randn(1, PREFIX + 12, 8, dtype=torch.float64))
    return decoder, memory, torch.tensor([[1, 5, 7, 3, 9]])


def log_probs(decoder, memory, tokens):
    logits = decoder(tokens[:, :-1], memory).logits
    return logits.log_softmax(-1).gather(2, tokens[:, 1:, None])[..., 0]


class Held(LayerCache):
    """What the words read of each other in a first pass, whatever comes later."""

    def append(self, keys, values):
        self.held = getattr(self, "held", None) or (keys, values)
        return self.held


def test_relevance_is_what_moving_a_patch_to_the_mean_patch_costs_at_the_step_itself(seen):
    decoder, memory, tokens = seen
    found = relevance(decoder, memory, tokens, WORDS, PATCHES)
    assert found.shape == (3, 2, 2, PREFIX + 12 + 1)
    step = 1e-6
    cache = CaptionCache(layers=2, capacity=8, layer=Held)
    decoder(tokens[:, :-1], memory, cache)

    def odds(memory, cache):
        logits = decoder(tokens[:, :-1], memory, cache).logits
        each = logits.log_softmax(-1).gather(2, tokens[:, 1:, None])[0, :, 0]
        each = each - (-each.expm1()).log()
        return torch.stack([each[start:stop].sum() for start, stop in WORDS]).detach()

    through_others = []
    for layer, head, position in ((0, 1, 3), (0, 0, 7), (1, 0, 13), (1, 1, 0), (0, 0, 14)):
        values = memory.layers[layer].values.clone()
        mean = values[0, head, PATCHES].mean(dim=0)
        values[0, head, position] += step * (mean - values[0, head, position])
        layers = list(memory.layers)
        layers[layer] = layers[layer]._replace(values=values)
        moved = replace(memory, layers=tuple(layers))
        slope = (odds(memory, cache) - odds(moved, cache)) / step
        torch.testing.assert_close(found[:, layer, head, position], slope, atol=1e-4, rtol=1e-4)
        through_others.append((odds(memory, None) - odds(moved, None)) / step - slope)
    assert torch.stack(through_others).abs().max() > 1e-3  # what earlier words read is left out, and is there


def test_a_later_word_needs_nothing_of_an_earlier_one(seen):
    decoder, memory, tokens = seen
    longer = torch.cat([tokens, torch.tensor([[4, 4]])], dim=1)
    shorter = relevance(decoder, memory, tokens, WORDS, PATCHES)
    torch.testing.assert_close(relevance(decoder, memory, longer, WORDS, PATCHES), shorter)


def test_it_works_on_what_inference_made_and_leaves_no_gradient(seen):
    decoder, _, tokens = seen
    with torch.inference_mode():
        memory = decoder.project(torch.randn(1, PREFIX + 12, 8, dtype=torch.float64))
    assert relevance(decoder, memory, tokens, WORDS, PATCHES).isfinite().all()
    assert all(parameter.grad is None for parameter in decoder.parameters())
    assert relevance(decoder, memory, tokens, [], PATCHES).shape == (0, 2, 2, PREFIX + 13)


def test_hidden_positions_have_no_relevance(seen):
    decoder, memory, tokens = seen
    keep = torch.ones(1, memory.positions, dtype=torch.bool)
    keep[0, 4:9] = False
    masked = relevance(decoder, memory.mask(keep), tokens, WORDS, PATCHES)
    kept = torch.tensor([position for position in range(memory.positions) if keep[0, position]])
    assert not masked[..., 4:9].any()
    removed = relevance(decoder, memory.take(kept), tokens, WORDS, slice(PREFIX, PREFIX + 7))
    torch.testing.assert_close(masked[..., kept], removed)


def test_perturbation_hides_squares(seen):
    decoder, memory, tokens = seen
    with torch.no_grad():
        found = perturbation(decoder, memory, tokens, WORDS, GRID, PATCHES)
        whole = log_probs(decoder, memory, tokens)[0]
        expected = torch.zeros(3, memory.positions, dtype=torch.float64)
        count = torch.zeros(12)
        for row in range(3):
            for column in range(4):
                keep = torch.ones(1, memory.positions, dtype=torch.bool)
                square = [
                    4 * y + x
                    for y in range(max(0, row - 1), min(3, row + 2))
                    for x in range(max(0, column - 1), min(4, column + 2))
                ]
                keep[0, [PREFIX + patch for patch in square]] = False
                lost = whole - log_probs(decoder, memory.mask(keep), tokens)[0]
                for patch in square:
                    count[patch] += 1
                    expected[:, PREFIX + patch] += torch.stack([lost[start:stop].sum() for start, stop in WORDS])
    expected[:, PATCHES] /= count
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)


def test_a_square_that_hides_everything_is_passed_over():
    torch.manual_seed(0)
    config = DecoderConfig(width=16, heads=2, layers=1, max_length=8, null_patch=False)
    decoder = TextDecoder(config, vocabulary=20, encoder_width=8).eval()
    memory = decoder.project(torch.randn(1, 1, 8))
    found = perturbation(decoder, memory, torch.tensor([[1, 5, 7]]), [(0, 1)], (1, 1), slice(0, 1))
    assert found.tolist() == [[0.0]]


def test_words_that_are_certain_have_finite_relevance(seen):
    decoder, memory, _ = seen
    with torch.no_grad():
        decoder.token_embedding.weight.mul_(1000)
        certain = decoder(torch.tensor([[1]]), memory).logits.argmax().item()
        tokens = torch.tensor([[1, certain]])
        assert log_probs(decoder, memory, tokens) == 0
    assert relevance(decoder, memory, tokens, [(0, 1)], PATCHES).isfinite().all()


def test_words_without_a_pass_of_their_own_have_the_sum_of_those_with_one(trained):
    model, tokenizer = trained
    pixels = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    forced = force_caption(model, tokenizer, pixels, "a dog and a red circle")
    gradients = memory_gradients(forced.decoder, forced.memory, forced.tokens, forced.spans)
    each, two = (stage_contributions(forced, gradients, passes) for passes in (9, 2))
    own = np.argsort(-forced.visual_need)[:2]
    for word in range(len(forced.words)):
        expected = each[word] if word in own else each[own[0]] + each[own[1]]
        torch.testing.assert_close(two[word], expected)
    assert each.shape == (len(forced.words), 4, 4)
    assert (each[0] - each[1]).abs().max() > 0
    nothing = replace(forced, words=(), spans=(), log_probs=forced.log_probs[:0], visual_need=None)
    none = [MemoryGradients(*(part[:0] for part in each)) for each in gradients]
    assert stage_contributions(nothing, none).shape == (0, 4, 4)


def test_memory_gradients_are_those_of_the_log_odds_with_earlier_words_held(seen):
    decoder, memory, tokens = seen
    cache = CaptionCache(layers=2, capacity=8, layer=Held)
    decoder(tokens[:, :-1], memory, cache)
    parts = [part.clone().requires_grad_() for layer in memory.layers for part in (layer.keys, layer.values)]
    leaves = [MemoryGradients(*parts[:2]), MemoryGradients(*parts[2:])]
    moved = replace(memory, layers=tuple(KeyValues(keys, values) for keys, values in leaves))
    logits = decoder(tokens[:, :-1], moved, cache).logits
    each = logits.log_softmax(-1).gather(2, tokens[:, 1:, None])[0, :, 0]
    odds = each - (-each.expm1()).log()
    found = [part for layer in memory_gradients(decoder, memory, tokens, WORDS) for part in layer]
    for word, (start, stop) in enumerate(WORDS):
        expected = torch.autograd.grad(odds[start:stop].sum(), parts, retain_graph=True)
        for part, right in zip(found, expected, strict=True):
            assert right.abs().max() > 1e-4
            torch.testing.assert_close(part[word], right[0], rtol=1e-4, atol=1e-8)


def test_contributions_are_the_slope_of_log_odds_in_what_the_stage_gives(trained):
    """With earlier words held: keys and values move along with a channel of a cell, and the odds with them."""
    model, tokenizer = trained
    pixels = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    forced = force_caption(model, tokenizer, pixels, "a dog and a red circle")
    gradients = memory_gradients(forced.decoder, forced.memory, forced.tokens, forced.spans)
    found = stage_contributions(forced, gradients, 9)
    outputs = [part for layer in forced.memory.layers for part in (layer.keys, layer.values)]
    for word in range(2):
        flow = [part[word, None] for each in gradients for part in each]
        slope = torch.autograd.grad(outputs, forced.stage.values, flow, retain_graph=True)[0][0]
        activation = forced.stage.values[0].detach()
        by_channel = slope * (activation - activation.mean(dim=(1, 2), keepdim=True))
        assert by_channel.min() < 0
        expected = by_channel.clamp(min=0).sum(dim=0)
        torch.testing.assert_close(found[word], expected, rtol=1e-3, atol=1e-6)


def test_a_refined_map_keeps_its_sum_and_lies_where_the_stage_contributes():
    maps = np.zeros((3, 2, 2), np.float32)
    maps[0] = [[1, 1], [1, 1]]
    maps[1] = [[0, 4], [0, 0]]
    cells = np.zeros((3, 4, 4), np.float32)
    cells[0, 0, 0], cells[0, 3, 2] = 3, 1
    cells[1, :, 0] = 1  # where the map is empty
    cells[2] = 1
    found = refine(maps, cells)
    assert found[0, 0, 0] == pytest.approx(4 * 27 / 28)
    assert found[0, 3, 2] == pytest.approx(4 / 28)
    assert np.count_nonzero(found[0]) == 2
    np.testing.assert_allclose(found[1], resize(maps[1:2], (4, 4))[0] * 4 / resize(maps[1:2], (4, 4)).sum(), rtol=1e-5)
    assert not found[2].any()
    assert refine(maps[:0], cells[:0]).shape == (0, 4, 4)
