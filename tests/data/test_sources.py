"""Several data sets in one run."""

import json
import shutil
from collections import Counter
from dataclasses import replace

import pytest
import torch

from captioner.config import DataConfig, EncoderConfig, SourceConfig, TokenizerConfig
from captioner.data.annotations import CaptionSet
from captioner.data.datamodule import CaptionDataModule
from captioner.data.formats import load_captions
from captioner.data.sources import load_splits, load_texts, styles_of
from captioner.errors import AnnotationError, ConfigError, InputError
from captioner.extraction import extract_features
from captioner.model.encoder import VisionEncoder
from captioner.tokenizer import Tokenizer

ENCODER = EncoderConfig(name="test_convnext", image_size=(64, 64), interpolation="bicubic")


@pytest.fixture
def halves(shapes, tmp_path):
    """The drawn data set as two: its first images and the others, with ids that repeat and other split names."""
    whole = json.loads((shapes / "captions.json").read_text())
    places = {image["id"]: place for place, image in enumerate(whole["images"])}
    half = len(places) // 2
    for part, name in enumerate(("first", "second")):
        images = [
            image | {"id": place % half} for image in whole["images"] if (place := places[image["id"]]) // half == part
        ]
        captions = [
            each | {"image_id": place % half}
            for each in whole["annotations"]
            if (place := places[each["image_id"]]) // half == part
        ]
        for image in images:
            image["split"] = image["split"] if part == 0 else {"train": "learn", "val": "check"}.get(image["split"])
        folder = tmp_path / name
        folder.mkdir()
        shutil.copytree(shapes / "images", folder / "images")
        (folder / "captions.json").write_text(json.dumps({"images": images, "annotations": captions}))
    return tmp_path


def sources(halves, **weights):
    return (
        SourceConfig(name="first", root=str(halves / "first"), weight=weights.get("first", 1)),
        SourceConfig(
            name="second",
            root=str(halves / "second"),
            train_split="learn",
            val_split="check",
            weight=weights.get("second", 1),
        ),
    )


def batches(config, store=None):
    splits = load_splits(config)
    tokenizer = Tokenizer.train(["a red circle above a blue star"], TokenizerConfig(min_count=1))
    module = CaptionDataModule(config, *splits, tokenizer, ENCODER, max_length=9, seed=0, store=store)
    return [module.train_set[plan] for plan in module._sampler(module.train_set, shuffle=True)]


def test_two_sources_train_as_their_union_does(shapes, halves):
    """The same pixels and captions in the same batches; only ids say where an image comes from."""
    whole = batches(DataConfig(root=str(shapes), batch_images=4))
    parts = batches(DataConfig(sources=sources(halves), batch_images=4))
    assert len(whole) == len(parts)
    for one, other in zip(whole, parts, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.tokens, other.tokens)
    assert {name.split("/")[0] for batch in parts for name in batch.image_ids} == {"first", "second"}


def test_a_weight_says_how_often_an_epoch_shows_an_image(halves):
    config = DataConfig(sources=sources(halves, first=0.5, second=2), batch_images=4)
    train, _ = load_splits(config)
    tokenizer = Tokenizer.train(["a"], TokenizerConfig(min_count=1))
    module = CaptionDataModule(config, train, train, tokenizer, ENCODER, max_length=9, seed=0)
    shown = Counter()
    epochs = []
    for epoch in range(4):
        sampler = module._sampler(module.train_set, shuffle=True)
        object.__setattr__(sampler, "progress", lambda epoch=epoch: (epoch, 0))
        plans = list(sampler)
        assert len(plans) == len(sampler)
        epochs.append({group.image for plan in plans for group in plan.groups})
        shown.update(group.image for plan in plans for group in plan.groups)
    for place, image in enumerate(train.images):
        if image.dataset == "second":
            assert shown[place] == 4 * 2
    first = [place for place, image in enumerate(train.images) if image.dataset == "first"]
    assert sum(shown[place] for place in first) == pytest.approx(4 * 0.5 * len(first), abs=4)
    assert len({frozenset(epoch & set(first)) for epoch in epochs}) > 1


def test_sources_share_a_feature_store(halves, tmp_path):
    config = DataConfig(sources=sources(halves), batch_images=4)
    train, val = load_splits(config)
    torch.manual_seed(0)
    encoder = VisionEncoder(ENCODER)
    store = extract_features(encoder, train, tmp_path / "store")
    for image in train.images:
        assert store.views(str(image.image_id)) == 1
    with pytest.raises(ConfigError, match="files"):
        extract_features(encoder, val, tmp_path / "store")


def test_keys_that_contradict_each_other_are_refused(halves):
    both = sources(halves)
    with pytest.raises(ConfigError, match=r"data\.root: .* its own root"):
        load_splits(DataConfig(sources=both, root=str(halves / "first")))
    with pytest.raises(ConfigError, match="two sources are called first"):
        load_splits(DataConfig(sources=(both[0], both[0])))
    with pytest.raises(AnnotationError, match="no split 'train'"):
        load_splits(DataConfig(sources=(both[0], SourceConfig(name="second", root=str(halves / "second")))))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("captions.txt", "a red circle\n\n  a   blue\tstar \n"),
        (
            "captions.json",
            '{"annotations": [{"caption": "a red circle"}, {"caption": ""}, {"caption": "a blue star"}]}',
        ),
    ],
)
def test_captions_without_pictures(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    texts = load_texts(DataConfig(text=str(tmp_path / name)))
    assert [image.captions for image in texts] == [("a red circle",), ("a blue star",)]
    assert load_texts(DataConfig()) == ()


@pytest.mark.parametrize("content", ["", " \n", "{", '{"annotations": 3}', '{"annotations": [{"caption": 3}]}'])
def test_files_without_captions_are_refused(tmp_path, content):
    (tmp_path / "captions").write_text(content)
    with pytest.raises(AnnotationError, match=r"data\.text: "):
        load_texts(DataConfig(text=str(tmp_path / "captions")))
    with pytest.raises(InputError, match="missing"):
        load_texts(DataConfig(text=str(tmp_path / "missing")))


def test_the_names_of_sources_may_be_styles(halves):
    config = DataConfig(sources=sources(halves), control="source")
    train, _ = load_splits(config)
    assert styles_of(config, train) == ["first", "second"]
    assert all(image.styles == (image.dataset,) * len(image.captions) for image in train.images)
    plain, _ = load_splits(DataConfig(sources=sources(halves)))
    assert all(image.styles == () for image in plain.images)


def test_a_column_of_too_many_styles_is_refused(shapes):
    captions = load_captions(shapes)
    config = DataConfig(root=str(shapes), control="caption")
    images = tuple(
        replace(image, styles=tuple(f"{text} {image.image_id}" for text in image.captions)) for image in captions.images
    )
    with pytest.raises(
        ConfigError, match=rf"caption has {sum(map(len, (each.captions for each in images)))} different values"
    ):
        styles_of(config, CaptionSet(images, captions.root))
