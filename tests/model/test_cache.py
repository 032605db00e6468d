"""The cache: what it returns is what was put in, whatever rows are kept, repeated or dropped in between."""

import pytest
import torch
from torch.testing import assert_close

from captioner.model.cache import CaptionCache, LayerCache

ROWS = {
    "the same": [0, 1, 2],
    "reordered": [2, 0, 1],
    "fewer": [1],
    "more": [0, 0, 1, 1, 2, 2],
    "repeated": [2, 2, 0],
    "none": [],
}


def chunk(rows, tokens):
    return torch.randn(rows, 2, tokens, 4)


@pytest.mark.parametrize("lengths", [(1, 1, 1), (3, 1), (1, 4), (2, 3)])
def test_appended_chunks_come_back_in_order(lengths):
    cache = LayerCache(capacity=8)
    keys, values = [], []
    for length in lengths:
        keys.append(chunk(3, length))
        values.append(chunk(3, length))
        all_keys, all_values = cache.append(keys[-1], values[-1])
        assert_close(all_keys, torch.cat(keys, dim=2))
        assert_close(all_values, torch.cat(values, dim=2))
    assert cache.length == sum(lengths)


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("length", [1, 3, 7])
def test_select_keeps_rows_in_order(rows, length):
    cache, chosen = LayerCache(capacity=8), torch.tensor(rows, dtype=torch.long)
    keys, values = chunk(3, length), chunk(3, length)
    cache.append(keys, values)
    cache.select(chosen)
    assert cache.length == length
    more_keys, more_values = chunk(len(rows), 1), chunk(len(rows), 1)
    all_keys, all_values = cache.append(more_keys, more_values)
    assert_close(all_keys, torch.cat([keys[chosen], more_keys], dim=2))
    assert_close(all_values, torch.cat([values[chosen], more_values], dim=2))


def test_many_selections_equal_indexing():
    generator = torch.Generator().manual_seed(0)
    cache = LayerCache(capacity=12)
    keys = values = None
    for count in (2, 5, 5, 1, 3, 7, 7, 2, 6):
        rows = 2 if keys is None else len(keys)
        new = torch.randn(2, rows, 2, 1, 4, generator=generator)
        keys = new[0] if keys is None else torch.cat([keys, new[0]], dim=2)
        values = new[1] if values is None else torch.cat([values, new[1]], dim=2)
        cached = cache.append(*new)
        assert_close(cached, (keys, values))
        chosen = torch.randint(rows, (count,), generator=generator)
        cache.select(chosen)
        keys, values = keys[chosen], values[chosen]


def test_selecting_from_an_empty_cache_changes_nothing():
    cache = LayerCache(capacity=4)
    cache.select(torch.tensor([0, 0]))
    assert cache.length == 0
    keys = chunk(2, 1)
    assert_close(cache.append(keys, keys)[0], keys)


def test_a_full_cache_takes_no_more():
    cache = LayerCache(capacity=2)
    cache.append(chunk(1, 2), chunk(1, 2))
    for tokens in (1, 2):
        with pytest.raises(ValueError, match="room for 2 tokens"):
            cache.append(chunk(1, tokens), chunk(1, tokens))
    assert cache.length == 2


def test_the_layers_of_a_caption_go_together():
    cache = CaptionCache(layers=3, capacity=4)
    assert cache.length == 0
    keys = [chunk(3, 2) for _ in range(3)]
    for layer in range(3):
        cache.layers[layer].append(keys[layer], -keys[layer])
    assert cache.length == 2
    cache.select(torch.tensor([2, 0], dtype=torch.int32))
    new = chunk(2, 1)
    for layer in range(3):
        all_keys, all_values = cache.layers[layer].append(new, -new)
        assert_close(all_keys[:, :, :2], keys[layer][[2, 0]])
        assert_close(all_values, -all_keys)
