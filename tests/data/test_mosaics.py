"""Mosaics: each photo in its corner, in the pixels, the patches and the batches."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from captioner.config import DataConfig, EncoderConfig, TokenizerConfig
from captioner.data.datamodule import split_mosaics
from captioner.data.dataset import CaptionDataset, framed, object_places
from captioner.data.formats import load_captions
from captioner.data.mosaics import Mosaics, corner_box, corner_shares, mosaic_pixels
from captioner.data.sampler import BatchPlan, Group, GroupSampler
from captioner.errors import ConfigError
from captioner.extraction import extract_features
from captioner.model.encoder import VisionEncoder
from captioner.tokenizer import Tokenizer

ENCODER = EncoderConfig(name="test_convnext", image_size=(64, 96))


@pytest.mark.parametrize("photos", [4, 5, 100])
def test_each_photo_is_in_four_mosaics_and_none_twice_in_one(photos):
    mosaics = Mosaics.of(photos, seed=3)
    assert len(mosaics.layout) == photos
    assert all(len(set(mosaic)) == 4 for mosaic in mosaics.layout)
    for photo, places in mosaics.places.items():
        assert all(mosaics.layout[number][corner] == photo for number, corner in places)
    if photos == 100:
        assert {photo for photo, places in mosaics.places.items() if len(places) >= 3} > set(range(90))
    assert Mosaics.of(photos, seed=3) == mosaics
    assert Mosaics.of(photos, seed=4) != mosaics


def test_fewer_than_four_photos_make_none(shapes):
    assert Mosaics.of(3, seed=0) is None
    captions = load_captions(shapes)
    with pytest.raises(ConfigError, match="takes four photos"):
        split_mosaics(DataConfig(mosaics=0.5), replace(captions, images=captions.images[:3]), captions, 0)


@pytest.mark.parametrize("size", [(64, 96), (65, 33)])
def test_photos_lie_in_their_corners(size):
    encoder = EncoderConfig(image_size=size, interpolation="bicubic")
    photos = [Image.new("RGB", (50, 40), (50 * number + 50, 0, 0)) for number in range(4)]
    pixels = mosaic_pixels(photos, encoder)
    assert pixels.shape == (3, *size)
    for corner in range(4):
        left, top, right, bottom = corner_box(corner)
        middle = round((top + bottom) / 2 * size[0]), round((left + right) / 2 * size[1])
        assert pixels[0][middle] == 50 * corner + 50
    assert pixels[0].min() == 50  # nothing is left empty


@pytest.mark.parametrize("grid", [(2, 2), (9, 9), (4, 7), (1, 1)])
def test_shares_of_corners(grid):
    shares = corner_shares(grid)
    np.testing.assert_allclose(shares.sum(axis=0), 1)
    np.testing.assert_allclose(shares.sum(axis=1), grid[0] * grid[1] / 4)
    assert shares[0].reshape(grid)[0, 0] == shares[3].reshape(grid)[-1, -1]


def made(shapes, **options):
    captions = load_captions(shapes).split("train")
    tokenizer = Tokenizer.train(
        [text for image in captions.images for text in image.captions], TokenizerConfig(min_count=1)
    )
    network = VisionEncoder(ENCODER)
    mosaics = Mosaics.of(len(captions), seed=0)
    dataset = CaptionDataset(captions.images, tokenizer, network.config, max_length=20, mosaics=mosaics, **options)
    return dataset, captions, network, mosaics


def test_a_batch_says_where_the_photo_is(shapes):
    dataset, _, _, mosaics = made(shapes)
    (number, corner), *_ = mosaics.places[2]
    batch = dataset[BatchPlan([Group(1, (0,), 5), Group(2, (1,), 6, (number, corner))])]
    assert batch.corners.tolist() == [-1, corner]
    alone = dataset.sample(Group(2, (1,), 6)).encoded
    left, top, right, bottom = corner_box(corner)
    part = batch.images[1][:, round(top * 64) : round(bottom * 64), round(left * 96) : round(right * 96)].float()
    small = torch.nn.functional.avg_pool2d(alone.float(), 2)
    assert (part - small).abs().mean() < 8


@pytest.mark.parametrize("kind", ["word", "bpe"])
def test_object_words_are_found_in_either_tokenizer(kind):
    tokenizer = Tokenizer.train(["two dogs chase a skateboard."] * 3, TokenizerConfig(kind=kind, min_count=1))
    tokens = framed(tokenizer, "Two dogs chase a skateboard.", 60)
    named = [tokens[place] for place in object_places(tokenizer, tokens)]
    assert tokenizer.decode(named).replace(".", "").split() == ["dogs", "skateboard"]


def test_object_words_are_flagged_in_mosaics_only(shapes):
    """They cost a look-up of every word, and only words of mosaics are taught to point."""
    dataset, captions, *_ = made(shapes)
    tokenizer = Tokenizer.train(["a dog beside a cat"], TokenizerConfig(min_count=1))
    image = replace(captions.images[0], captions=("a dog beside a cat", "a cat"))
    data = CaptionDataset([image] * 4, tokenizer, dataset.encoder, max_length=20, mosaics=Mosaics(((0, 1, 2, 3),)))
    batch = data[BatchPlan([Group(0, (0, 1), 1), Group(1, (0, 1), 1, (0, 1))])]
    named = [row[flags].tolist() for row, flags in zip(batch.tokens, batch.objects, strict=True)]
    assert [tokenizer.decode(tokens) for tokens in named] == ["", "", "dog cat", "cat"]


def test_stored_mosaics_are_those_of_photos(shapes, tmp_path):
    dataset, captions, network, mosaics = made(shapes)
    store = extract_features(network, captions, tmp_path, mosaics={"train": mosaics})
    stored, *_ = made(shapes, store=store)
    plan = BatchPlan([Group(photo, (0,), 1, mosaics.places[photo][0]) for photo in (0, 3)] + [Group(1, (0,), 1)])
    with torch.inference_mode():
        direct = network.eval()(dataset[plan].images)
    torch.testing.assert_close(stored[plan].features.float(), direct, atol=2e-2, rtol=1e-2)
    assert stored[plan].corners.tolist() == dataset[plan].corners.tolist()
    with pytest.raises(ConfigError, match="other transform"):
        extract_features(network, captions, tmp_path, mosaics={"train": Mosaics.of(len(captions), seed=1)})


def test_the_sampler_takes_a_share_of_mosaics_and_the_rest_stays(shapes):
    lengths, mosaics = [[5, 6, 7]] * 40, Mosaics.of(40, seed=0)

    def groups(share, mosaics=mosaics):
        sampler = GroupSampler(
            lengths, batch_images=8, captions_per_image=3, shuffle=True, mosaics=mosaics, mosaic_share=share
        )
        return [group for plan in sampler for group in plan.groups]

    assert all(group.mosaic is None for group in groups(0.0))
    assert all(group.mosaic in mosaics.places[group.image] for group in groups(1.0))
    assert 8 < sum(group.mosaic is not None for group in groups(0.5)) < 32
    assert groups(0.5) == groups(0.5)
    assert sorted(group.image for group in groups(0.5)) == list(range(40))
