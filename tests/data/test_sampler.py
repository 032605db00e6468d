"""Every caption once an epoch, order from seed and epoch alone, and processes that stay in step."""

from collections import Counter

import pytest

from captioner.data.sampler import GroupSampler, evenly_spaced

LENGTHS = [[5, 9, 12, 7, 6], [8, 8], [20], [4, 15, 6, 10, 11], [9, 9, 9, 9, 9, 9, 9]]


def sampler(**options):
    defaults = {"batch_images": 2, "captions_per_image": 3, "shuffle": True, "seed": 1}
    return GroupSampler(LENGTHS, **(defaults | options))


def captions(plans):
    return Counter((group.image, caption) for plan in plans for group in plan.groups for caption in group.captions)


EVERYTHING = Counter((image, caption) for image, lengths in enumerate(LENGTHS) for caption in range(len(lengths)))


@pytest.mark.parametrize("captions_per_image", [1, 2, 3, 5, 9])
def test_every_caption_once_an_epoch(captions_per_image):
    plans = list(sampler(captions_per_image=captions_per_image))
    assert captions(plans) == EVERYTHING
    assert len(plans) == len(sampler(captions_per_image=captions_per_image))


def test_images_of_a_batch_have_equally_many_captions():
    for plan in sampler():
        assert len({len(group.captions) for group in plan.groups}) == 1
        assert len(plan.groups) <= 2


def test_order_depends_on_seed_and_epoch_alone():
    assert list(sampler()) == list(sampler())
    assert list(sampler()) != list(sampler(seed=2))
    later = sampler(progress=lambda: (3, 0))
    assert list(later) != list(sampler())
    assert list(later) == list(sampler(progress=lambda: (3, 0)))


def test_without_shuffling_epochs_are_alike():
    assert list(sampler(shuffle=False)) == list(sampler(shuffle=False, progress=lambda: (5, 0)))


def test_a_resumed_epoch_starts_after_the_batches_that_are_done():
    assert list(sampler(progress=lambda: (2, 3))) == list(sampler(progress=lambda: (2, 0)))[3:]


def test_captions_of_similar_length_are_trained_together():
    [group] = [group for plan in sampler() for group in plan.groups if group.image == 3 and len(group.captions) == 2]
    assert {LENGTHS[3][caption] for caption in group.captions} in ({4, 6}, {11, 15}, {10, 15}, {10, 11})


@pytest.mark.parametrize("world", range(1, 10))
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("batch_images", [1, 2, 32])
def test_ranks_share_an_epoch_and_see_equally_many_batches(world, shuffle, batch_images):
    """Also where there are fewer batches than ranks; what is repeated has no weight."""
    samplers = [
        sampler(rank=rank, world=world, shuffle=shuffle, batch_images=batch_images, captions_per_image=9)
        for rank in range(world)
    ]
    parts = [list(each) for each in samplers]
    assert [len(part) for part in parts] == [len(each) for each in samplers] == [len(parts[0])] * world
    assert captions(plan for part in parts for plan in part if plan.weight) == EVERYTHING
    whole = list(sampler(shuffle=shuffle, batch_images=batch_images, captions_per_image=9))
    assert all(plan.groups in [each.groups for each in whole] for part in parts for plan in part)


def tokens(plan):
    return sum(LENGTHS[group.image][caption] - 1 for group in plan.groups for caption in group.captions)


@pytest.mark.parametrize(("world", "accumulate", "limit"), [(1, 1, None), (3, 1, None), (2, 3, None), (2, 2, 3)])
def test_weights_are_shares_of_a_steps_tokens(world, accumulate, limit):
    options = {"batch_images": 1, "captions_per_image": 2, "world": world, "accumulate": accumulate, "limit": limit}
    parts = [list(sampler(rank=rank, **options)) for rank in range(world)]
    trained = min(len(parts[0]), limit or len(parts[0]))
    whole = len(list(sampler(batch_images=1, captions_per_image=2)))
    for start in range(0, trained, accumulate):
        step = [
            (index * world + rank < whole, parts[rank][index])
            for index in range(start, min(start + accumulate, trained))
            for rank in range(world)
        ]
        total = sum(tokens(plan) for counts, plan in step if counts)
        for counts, plan in step:
            assert plan.weight == (tokens(plan) / total if counts else 0)
    if (world, accumulate) == (1, 1):
        assert {plan.weight for plan in parts[0]} == {1.0}


def test_evenly_spaced_items_reach_from_the_first_to_the_last():
    assert evenly_spaced("abcdefg", 3) == ["a", "d", "g"]
    assert evenly_spaced("ab", 3) == ["a", "b"]
    assert evenly_spaced("", 3) == []
