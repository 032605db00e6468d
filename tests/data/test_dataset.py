"""Batches: every caption once, images of a batch with equally many captions, order from seed and epoch alone."""

from collections import Counter

import numpy as np
import torch

from captioner.config import EncoderConfig, TokenizerConfig
from captioner.data.augmentation import augment, may_flip
from captioner.data.dataset import CaptionDataset, GroupSampler
from captioner.data.formats import load_captions
from captioner.geometry import Geometry, to_pixels
from captioner.images import open_image
from captioner.tokenizer import Tokenizer

LENGTHS = [[5, 9, 12, 7, 6], [8, 8], [20], [4, 15, 6, 10, 11], [9, 9, 9, 9, 9, 9, 9]]


def sampler(**options):
    defaults = {"batch_images": 2, "captions_per_image": 3, "shuffle": True, "seed": 1}
    return GroupSampler(LENGTHS, **(defaults | options))


def seen(batches):
    return Counter((group.image, caption) for batch in batches for group in batch for caption in group.captions)


def test_every_caption_once_an_epoch():
    everything = Counter((image, caption) for image, lengths in enumerate(LENGTHS) for caption in range(len(lengths)))
    for captions_per_image in (1, 2, 3, 5, 9):
        batches = list(sampler(captions_per_image=captions_per_image))
        assert seen(batches) == everything
        assert len(batches) == len(sampler(captions_per_image=captions_per_image))


def test_images_of_a_batch_have_equally_many_captions():
    for batch in sampler():
        assert len({len(group.captions) for group in batch}) == 1
        assert len(batch) <= 2


def test_order_depends_on_seed_and_epoch_alone():
    one, same, other = sampler(), sampler(), sampler(seed=2)
    assert list(one) == list(same)
    assert list(one) != list(other)
    later = sampler(progress=lambda: (3, 0))
    assert list(later) != list(one)
    assert list(later) == list(sampler(progress=lambda: (3, 0)))


def test_without_shuffling_epochs_are_alike():
    assert list(sampler(shuffle=False)) == list(sampler(shuffle=False, progress=lambda: (5, 0)))


def test_captions_of_similar_length_are_trained_together():
    [group] = [
        group
        for batch in sampler(captions_per_image=3)
        for group in batch
        if group.image == 3 and len(group.captions) == 2
    ]
    assert {LENGTHS[3][caption] for caption in group.captions} in ({4, 6}, {11, 15}, {10, 15}, {10, 11})


def test_ranks_share_an_epoch_and_see_equally_many_batches():
    whole = seen(sampler())
    parts = [list(sampler(rank=rank, world=2)) for rank in range(2)]
    assert len(parts[0]) == len(parts[1])
    assert set(whole) == set(seen(parts[0] + parts[1]))


def dataset(shapes, **options):
    captions = load_captions(shapes)
    texts = [text for image in captions.images for text in image.captions]
    tokenizer = Tokenizer.train(texts, TokenizerConfig(min_count=1))
    encoder = EncoderConfig(image_size=(48, 64), interpolation="bicubic")
    return CaptionDataset(captions.images, tokenizer, encoder, max_length=30, **options), tokenizer


def test_a_batch_is_what_its_groups_say(shapes):
    data, tokenizer = dataset(shapes)
    batches = GroupSampler(data.lengths, batch_images=3, captions_per_image=2, shuffle=True, seed=0)
    groups = next(groups for groups in batches if len(groups) == 3 and len(groups[0].captions) == 2)
    batch = data[groups]
    assert batch.features is None
    assert batch.images.shape == (3, 3, 48, 64)
    assert batch.tokens.shape[0] == 6
    assert batch.images.dtype == torch.uint8
    texts = [data.images[group.image].captions[caption] for group in groups for caption in group.captions]
    for row, text in zip(batch.tokens.tolist(), texts, strict=True):
        expected = [tokenizer.bos, *tokenizer.encode(text), tokenizer.eos]
        assert row == expected + [tokenizer.pad] * (len(row) - len(expected))
    assert batch.image_ids == [data.images[group.image].image_id for group in groups]
    photo = open_image(data.images[groups[0].image].path).image
    plain = to_pixels(photo, Geometry.of(*photo.size, size=(48, 64), fit="squash"), "bicubic")
    assert np.array_equal(batch.images[0].numpy(), plain)


def test_augmented_views_come_from_the_groups_seed(shapes):
    data, _ = dataset(shapes, augmented=True)
    [groups, *_] = GroupSampler(data.lengths, batch_images=2, captions_per_image=2, shuffle=True, seed=0)
    first, again = data[groups].images, data[groups].images
    assert torch.equal(first, again)
    other = data[[group._replace(seed=group.seed + 1) for group in groups]].images
    assert not torch.equal(first, other)


def test_a_caption_too_long_is_cut_without_an_end(shapes):
    captions = load_captions(shapes)
    tokenizer = Tokenizer.train(["a red circle"], TokenizerConfig(min_count=1))
    data = CaptionDataset(captions.images, tokenizer, EncoderConfig(), max_length=4)
    assert all(len(tokens) <= 4 for image in data.tokens for tokens in image)
    assert all(tokens[-1] != tokenizer.eos for image in data.tokens for tokens in image if len(tokens) == 4)


def test_flips_only_where_no_caption_names_a_side():
    assert may_flip(["a dog runs", "a leftover pizza, bright colors"])
    assert not may_flip(["a dog runs", "the leftmost dog"])
    assert not may_flip(["turned to the RIGHT"])


def test_augmentation_keeps_the_mode_and_flips_half_of_the_time(shapes):
    photo = open_image(load_captions(shapes).images[0].path).image
    views = [augment(photo, np.random.default_rng(seed), flip=False) for seed in range(20)]
    assert all(view.mode == "RGB" for view in views)
    areas = [view.size[0] * view.size[1] / (photo.size[0] * photo.size[1]) for view in views]
    assert min(areas) > 0.4
    flipped = [augment(photo, np.random.default_rng(seed), flip=True) for seed in range(20)]
    changed = sum(one.tobytes() != other.tobytes() for one, other in zip(views, flipped, strict=True))
    assert changed > 0
