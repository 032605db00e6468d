"""Shards in batches: every sample once an epoch, over nodes and workers, resumed, with what is broken left out."""

import tracemalloc
from collections import Counter
from itertools import chain

import pytest
import torch
from torch.utils.data import DataLoader

from captioner.config import EncoderConfig, TokenizerConfig
from captioner.data.dataset import CaptionDataset
from captioner.data.formats import load_captions
from captioner.data.sampler import BatchPlan, Group
from captioner.data.shards import read_index, write_shards
from captioner.data.streaming import ShardDataset, ShardSampler
from captioner.tokenizer import Tokenizer

ENCODER = EncoderConfig(name="test_convnext", image_size=(64, 64), interpolation="bicubic")
COUNTS = [5, 0, 7, 1, 4]
ALL = {(shard, number) for shard, count in enumerate(COUNTS) for number in range(count)}


def sampler(**options):
    return ShardSampler(COUNTS, **({"batch_images": 2, "seed": 1} | options))


def shown(plans):
    return Counter((place.shard, place.number) for plan in plans if plan.weight for place in plan.samples)


@pytest.mark.parametrize("world", [1, 2, 3, 4, 12])
@pytest.mark.parametrize("images", [1, 2, 5, 30])
def test_every_sample_once_an_epoch(world, images):
    """All ranks yield as many batches, and the weights of a step's batches add up to one."""
    ranks = [list(sampler(batch_images=images, world=world, rank=rank, accumulate=2)) for rank in range(world)]
    assert shown(chain(*ranks)) == dict.fromkeys(ALL, 1)
    [count] = {len(plans) for plans in ranks}
    assert count == len(sampler(batch_images=images, world=world))
    for start in range(0, count, 2):
        assert sum(plan.weight for plans in ranks for plan in plans[start : start + 2]) == pytest.approx(1)


def test_order_depends_on_seed_and_epoch_alone():
    assert list(sampler()) == list(sampler())
    assert list(sampler()) != list(sampler(seed=2))
    later = list(sampler(progress=lambda: (3, 0)))
    assert later != list(sampler())
    assert list(sampler(progress=lambda: (3, 4))) == later[4:]
    assert [sorted(plan.samples) for plan in later] != [plan.samples for plan in later]


def test_memory_does_not_grow_with_the_data_set():
    """A hundred shards and a thousand take as much: those of one window."""

    def peak(shards):
        tracemalloc.start()
        count = sum(len(plan.samples) for plan in ShardSampler([500] * shards, batch_images=100))
        assert count == 500 * shards
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    assert peak(1000) < 1.2 * peak(100)


@pytest.fixture
def tokenizer(shapes):
    texts = [text for image in load_captions(shapes).images for text in image.captions]
    return Tokenizer.train(texts, TokenizerConfig(min_count=1))


@pytest.fixture
def stream(shapes, tokenizer, tmp_path):
    def dataset(**options):
        images = load_captions(shapes).split("train").images
        paths = list(write_shards(images, tmp_path / "shards", max_bytes=20_480))
        return ShardDataset(paths, tokenizer, ENCODER, **({"max_length": 24, "captions_per_image": 5} | options))

    return dataset


def loader(dataset, **options):
    counts = [len(read_index(path).entries) for path in dataset.shards]
    plans = ShardSampler(counts, batch_images=3, seed=1, **options)
    return DataLoader(dataset, batch_size=None, sampler=plans, num_workers=options.get("world", 0) and 2)


@pytest.mark.slow
def test_two_nodes_with_two_workers_each(stream):
    dataset = stream()
    ids = [
        image
        for rank in (0, 1)
        for batch in loader(dataset, world=2, rank=rank)
        if batch.weight
        for image in batch.image_ids
    ]
    assert sorted(ids) == sorted(
        f"{path.name}/{entry.key}" for path in dataset.shards for entry in read_index(path).entries
    )


def test_a_sample_is_that_of_the_folder(stream, shapes, tokenizer):
    """Pixels and captions; rows that an image lacks are empty."""
    dataset = stream()
    images = load_captions(shapes).split("train").images
    folder = CaptionDataset(images, tokenizer, ENCODER, max_length=24)
    by_bytes = {image.path.read_bytes(): number for number, image in enumerate(images)}
    for plan in ShardSampler([len(read_index(path).entries) for path in dataset.shards], batch_images=1):
        [place] = plan.samples
        batch = dataset[plan]
        path = dataset.shards[place.shard]
        entry = read_index(path).entries[place.number]
        number = by_bytes[path.read_bytes()[entry.photo : entry.photo + entry.photo_size]]
        captions = tuple(range(len(images[number].captions)))
        expected = folder[BatchPlan([Group(number, captions, 0)])]
        assert torch.equal(batch.images, expected.images)
        rows = [row[: int(length)].tolist() for row, length in zip(batch.tokens, batch.lengths, strict=True)]
        assert len(rows) == 5
        empty = [[tokenizer.bos]] * (5 - len(captions))
        assert sorted(rows) == sorted(folder.tokens[number] + empty)
        assert int(batch.predicts.sum()) == int(expected.predicts.sum())


def test_what_is_broken_is_left_out_and_counted(stream):
    """Also where nothing of a batch is left: the batch then has no weight."""
    dataset = stream()
    counts = [len(read_index(path).entries) for path in dataset.shards]
    path, entry = dataset.shards[0], read_index(dataset.shards[0]).entries[0]
    data = bytearray(path.read_bytes())
    data[entry.photo : entry.photo + entry.photo_size] = bytes(entry.photo_size)
    path.write_bytes(data)
    batches = [dataset[plan] for plan in ShardSampler(counts, batch_images=3)]
    assert sum(batch.skipped for batch in batches) == 1
    assert sum(len(batch.image_ids) for batch in batches) == sum(counts) - 1
    assert all(batch.weight for batch in batches)
    [plan] = [plan for plan in ShardSampler(counts, batch_images=1) if plan.samples[0][:2] == (0, 0)]
    alone = dataset[plan]
    assert (alone.weight, alone.skipped, alone.images.shape) == (0.0, 1, (1, 3, 64, 64))


def test_captions_and_views_are_drawn(stream):
    """Fewer captions than there are: others in another epoch. Random views with `augmented`."""
    dataset = stream(captions_per_image=1, augmented=True)
    counts = [len(read_index(path).entries) for path in dataset.shards]

    def epoch(number):
        batches = [dataset[plan] for plan in ShardSampler(counts, batch_images=1, progress=lambda: (number, 0))]
        return {batch.image_ids[0]: batch for batch in batches}

    first, again, second = epoch(0), epoch(0), epoch(1)
    assert all(torch.equal(first[name].images, again[name].images) for name in first)
    assert any(not torch.equal(first[name].images, second[name].images) for name in first)
    assert any(first[name].tokens.tolist() != second[name].tokens.tolist() for name in first)
