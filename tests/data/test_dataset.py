"""Samples and batches: what they hold, and where its pixels come from."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from captioner.config import EncoderConfig, TokenizerConfig
from captioner.data.augmentation import augment, may_flip
from captioner.data.dataset import LENGTHS, CaptionDataset, Sample, collate
from captioner.data.formats import load_captions
from captioner.data.sampler import BatchPlan, Group, GroupSampler
from captioner.errors import AnnotationError
from captioner.geometry import Geometry, to_pixels
from captioner.images import open_image
from captioner.tokenizer import Tokenizer


def dataset(shapes, **options):
    captions = load_captions(shapes)
    texts = [text for image in captions.images for text in image.captions]
    tokenizer = Tokenizer.train(texts, TokenizerConfig(min_count=1))
    encoder = EncoderConfig(image_size=(48, 64), interpolation="bicubic")
    return CaptionDataset(captions.images, tokenizer, encoder, max_length=30, **options), tokenizer


def test_a_batch_is_what_its_groups_say(shapes):
    data, tokenizer = dataset(shapes)
    batches = GroupSampler(data.lengths, batch_images=3, captions_per_image=2, shuffle=True, seed=0)
    plan = next(plan for plan in batches if len(plan.groups) == 3 and len(plan.groups[0].captions) == 2)
    groups, batch = plan.groups, data[plan._replace(weight=0.25)]
    assert batch.weight == 0.25
    assert batch.features is None
    assert batch.images.shape == (3, 3, 48, 64)
    assert batch.tokens.shape[0] == 6
    assert batch.images.dtype == torch.uint8
    texts = [data.images[group.image].captions[caption] for group in groups for caption in group.captions]
    for row, text in zip(batch.tokens.tolist(), texts, strict=True):
        expected = [tokenizer.bos, *tokenizer.encode(text), tokenizer.eos]
        assert row == expected + [tokenizer.pad] * (len(row) - len(expected))
    assert batch.lengths.tolist() == [len(tokenizer.encode(text)) + 2 for text in texts]
    assert batch.image_ids == [data.images[group.image].image_id for group in groups]
    photo = open_image(data.images[groups[0].image].path).image
    plain = to_pixels(photo, Geometry.of(*photo.size, size=(48, 64), fit="squash"), "bicubic")
    assert np.array_equal(batch.images[0].numpy(), plain)


def styled(shapes, **options):
    """The drawn data set, each second caption in the style `loud`, and its tokenizer with control tokens."""
    data, tokenizer = dataset(shapes, **options)
    tokenizer = tokenizer.with_controls("style", ["loud"]).with_controls("length", LENGTHS)
    images = [
        replace(image, styles=tuple("loud" if place % 2 else None for place in range(len(image.captions))))
        for image in data.images
    ]
    return CaptionDataset(images, tokenizer, data.encoder, max_length=30, **options), tokenizer


def test_control_tokens_are_read_and_not_predicted(shapes):
    data, tokenizer = styled(shapes, control_kinds=("style", "length"))
    plain, _ = styled(shapes)
    names = {place: name for kind in ("style", "length") for name, place in tokenizer.controls(kind).items()}
    sampler = GroupSampler(data.lengths, batch_images=3, captions_per_image=2, shuffle=True, seed=0)
    assert data.lengths == plain.lengths
    seen = []
    for plan in sampler:
        batch, same = data[plan], plain[plan]
        assert same.controls is None
        assert torch.equal(same.predicts, torch.arange(1, same.tokens.shape[1]) < same.lengths[:, None])
        assert torch.equal(batch.predicting.T, batch.predicts.nonzero())
        assert torch.equal(batch.predicts.sum(dim=1), same.predicts.sum(dim=1))
        assert torch.equal(batch.tokens[:, 1:][batch.predicts], same.tokens[:, 1:][same.predicts])
        for row, count in zip(batch.tokens.tolist(), batch.controls.tolist(), strict=True):
            seen.append([names[token] for token in row[1 : 1 + count]])
            assert not names.keys() & set(row[1 + count :])
    captions = sum(map(len, data.lengths))
    assert len(seen) == captions
    loud = sum(image.styles.count("loud") for image in data.images)
    assert 0.5 < sum("loud" in each for each in seen) / loud < 0.9
    assert 0.55 < sum(bool(set(LENGTHS) & set(each)) for each in seen) / captions < 0.85


def test_lengths_are_thirds_of_the_captions(shapes):
    data, tokenizer = styled(shapes, control_kinds=("length",))
    names = {place: name for name, place in tokenizer.controls("length").items()}
    by_name = {name: [] for name in LENGTHS}
    for controls, lengths in zip(data.controls, data.lengths, strict=True):
        for (token,), length in zip(controls, lengths, strict=True):
            by_name[names[token]].append(length)
    assert max(by_name["short"]) < min(by_name["medium"]) <= max(by_name["medium"]) < min(by_name["long"])


def test_a_caption_leaves_room_for_its_control_tokens(shapes):
    data = replace(styled(shapes, control_kinds=("style", "length"))[0], max_length=5)
    rows = [row for image in range(len(data.images)) for row in data.sample(Group(image, (0, 1), image)).captions]
    assert {len(row) for row in rows} == {3, 4, 5}


def test_augmented_views_come_from_the_groups_seed(shapes):
    data, _ = dataset(shapes, augmented=True)
    group = Group(3, (0,), seed=7)
    first = data.sample(group).encoded
    assert torch.equal(first, data.sample(group).encoded)
    assert not torch.equal(first, data.sample(group._replace(seed=8)).encoded)
    assert not torch.equal(first, dataset(shapes)[0].sample(group).encoded)


@pytest.mark.parametrize("fit", ["squash", "crop", "letterbox"])
def test_photos_are_fitted_as_the_encoder_asks(shapes, fit):
    data, _ = dataset(shapes)
    data.encoder = replace(data.encoder, image_size=(48, 96), fit=fit)
    photo = open_image(data.images[4].path).image
    expected = to_pixels(photo, Geometry.of(*photo.size, size=(48, 96), fit=fit), "bicubic")
    assert np.array_equal(data.sample(Group(4, (0,), 1)).encoded.numpy(), expected)


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


def test_augmentation_keeps_the_mode_and_most_of_the_photo(shapes):
    photo = open_image(load_captions(shapes).images[0].path).image
    views = [augment(photo, np.random.default_rng(seed), flip=False) for seed in range(20)]
    assert all(view.mode == "RGB" for view in views)
    areas = [view.size[0] * view.size[1] / (photo.size[0] * photo.size[1]) for view in views]
    assert 0.4 < min(areas) < 0.7 < 0.8 < max(areas) <= 1


def test_augmentation_flips_half_of_the_time_and_only_where_it_may():
    """Seen from the side on which a photo is bright."""
    photo = Image.fromarray(np.repeat(np.array([[[0] * 3] * 32 + [[255] * 3] * 32], dtype=np.uint8), 64, axis=0))

    def bright_sides(flip):
        views = [np.asarray(augment(photo, np.random.default_rng(seed), flip=flip)) for seed in range(40)]
        return ["right" if view[:, -1].mean() > view[:, 0].mean() else "left" for view in views]

    assert set(bright_sides(flip=False)) == {"right"}
    assert 12 <= bright_sides(flip=True).count("left") <= 28


def test_augmentation_changes_colors():
    gray = Image.new("RGB", (64, 64), (100, 120, 140))
    views = {augment(gray, np.random.default_rng(seed), flip=False).getpixel((5, 5)) for seed in range(10)}
    assert len(views) == 10


def test_samples_are_padded_and_put_together():
    """By hand: two images with two captions each, one of them in a mosaic."""
    features = torch.rand(2, 3, 4).half()
    alone = Sample("a", features[0], ([1, 5, 2], [1, 2]))
    mosaic = Sample(7, features[1], ([1, 6, 7, 2], [1, 8, 2]), corner=3, objects=([2], []))
    batch = collate([alone, mosaic], pad=9, weight=0.5)
    assert batch.tokens.tolist() == [[1, 5, 2, 9], [1, 2, 9, 9], [1, 6, 7, 2], [1, 8, 2, 9]]
    assert batch.lengths.tolist() == [3, 2, 4, 3]
    assert batch.predicts.int().tolist() == [[1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 1, 0]]
    assert batch.predicting.tolist() == [[0, 0, 1, 2, 2, 2, 3, 3], [0, 1, 0, 0, 1, 2, 0, 1]]
    assert batch.objects.nonzero().tolist() == [[2, 2]]
    assert batch.corners.tolist() == [-1, 3]
    assert (batch.image_ids, batch.weight, batch.images) == (["a", 7], 0.5, None)
    assert torch.equal(batch.features, features)


def test_a_photo_may_be_given_as_bytes(shapes):
    captions = load_captions(shapes)
    files = captions.images[:3]
    held = [replace(image, source=image.path.read_bytes()) for image in files]
    tokenizer = Tokenizer.train(["a red circle"], TokenizerConfig(min_count=1))
    encoder = EncoderConfig(image_size=(48, 64), interpolation="bicubic")
    plan = BatchPlan([Group(place, (0,), 1) for place in range(3)])
    one, same = (CaptionDataset(images, tokenizer, encoder, max_length=9)[plan].images for images in (files, held))
    assert torch.equal(one, same)
    broken = CaptionDataset([replace(files[0], source=b"no photo")], tokenizer, encoder, max_length=9)
    with pytest.raises(AnnotationError, match=f"image {files[0].image_id}: "):
        broken.sample(Group(0, (0,), 1))
