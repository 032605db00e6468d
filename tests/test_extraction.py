"""The feature store: what is stored is what the encoder says, and a store answers to its own key only."""

import copy
import dataclasses
import json
import pickle
import shutil
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from captioner.config import EncoderConfig
from captioner.data.dataset import view_pixels
from captioner.data.formats import load_captions
from captioner.errors import AnnotationError, ConfigError
from captioner.extraction import extract_features
from captioner.images import open_image
from captioner.model.encoder import VisionEncoder


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return VisionEncoder(EncoderConfig(name="test_vit", image_size=(64, 96))).eval()


def encoded(encoder, image, seed=None):
    pixels = view_pixels(open_image(image.path).image, encoder.config, image, seed)
    with torch.inference_mode():
        return encoder(torch.from_numpy(pixels)[None])[0].half()


def test_stored_features_are_the_encoders(shapes, encoder, tmp_path):
    captions = load_captions(shapes)
    done = []
    store = extract_features(
        encoder,
        captions,
        tmp_path,
        views=lambda image: 3 if image.split == "train" else 1,
        batch_size=7,
        advance=done.append,
    )
    assert sum(done) == sum(3 if image.split == "train" else 1 for image in captions.images)
    assert store.shape == (1 + 4 * 6, encoder.width)
    for image in captions.images[:6]:
        name = str(image.image_id)
        assert store.views(name) == (3 if image.split == "train" else 1)
        for view in range(store.views(name)):
            torch.testing.assert_close(
                store.read(name, view), encoded(encoder, image, view or None), atol=2e-3, rtol=1e-2
            )


def test_a_second_call_reads_what_the_first_computed(shapes, encoder, tmp_path):
    captions = load_captions(shapes)
    extract_features(encoder, captions, tmp_path)
    again = []
    extract_features(encoder, captions, tmp_path, advance=again.append)
    assert again == []


def test_a_copied_data_set_keeps_its_features(shapes, encoder, tmp_path):
    extract_features(encoder, load_captions(shapes), tmp_path / "store")
    shutil.copytree(shapes, tmp_path / "copy")
    again = []
    extract_features(encoder, load_captions(tmp_path / "copy"), tmp_path / "store", advance=again.append)
    assert again == []


@pytest.mark.parametrize("change", ["weights", "encoder", "files", "transform"])
def test_a_stale_store_is_refused(shapes, encoder, tmp_path, change):
    captions = load_captions(shapes)
    extract_features(encoder, captions, tmp_path)
    views = 1
    if change == "weights":
        torch.manual_seed(1)
        encoder = VisionEncoder(EncoderConfig(name="test_vit", image_size=(64, 96)))
    elif change == "encoder":
        encoder = VisionEncoder(EncoderConfig(name="test_vit", image_size=(64, 64)))
    elif change == "files":
        captions = dataclasses.replace(captions, images=captions.images[1:])
    else:
        views = 2
    with pytest.raises(ConfigError, match=change):
        extract_features(encoder, captions, tmp_path, views=lambda image: views)


@pytest.mark.parametrize(("name", "content"), [("index.json", b"{"), ("index.json", b"[]"), ("features.f16", b"short")])
def test_a_damaged_store_is_refused(shapes, encoder, tmp_path, name, content):
    extract_features(encoder, load_captions(shapes), tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match="damaged"):
        extract_features(encoder, load_captions(shapes), tmp_path)


@pytest.mark.parametrize("value", [0.0, float("nan"), 1.0])
def test_features_that_changed_since_they_were_written_are_refused(shapes, encoder, tmp_path, value):
    store = extract_features(encoder, load_captions(shapes), tmp_path)
    names = [str(image.image_id) for image in load_captions(shapes).images]
    array = np.memmap(tmp_path / "features.f16", dtype=np.float16, mode="r+").reshape(len(names), -1)
    array[2, 5 : 5 + (array.shape[1] - 5 if value == 0 else 1)] = value
    array.flush()
    with pytest.raises(ConfigError, match=f"the features of {names[2]} are damaged"):
        store.read(names[2])
    assert store.read(names[1]).isfinite().all()


def test_a_worker_is_sent_the_place_and_not_the_features(shapes, encoder, tmp_path):
    captions = load_captions(shapes)
    store = extract_features(encoder, captions, tmp_path)
    sent = pickle.dumps(store)
    assert len(sent) < 4096
    name = str(captions.images[0].image_id)
    assert torch.equal(pickle.loads(sent).read(name), store.read(name))


def test_an_unreadable_photo_is_named(shapes, encoder, tmp_path):
    shutil.copytree(shapes, tmp_path / "copy")
    captions = load_captions(tmp_path / "copy")
    captions.images[3].path.write_bytes(b"not a photo")
    with pytest.raises(AnnotationError, match=captions.images[3].path.name):
        extract_features(encoder, captions, tmp_path / "store")
    assert not (tmp_path / "store" / "index.json").exists()


def test_the_index_says_what_it_was_made_from(shapes, encoder, tmp_path):
    extract_features(encoder, load_captions(shapes), tmp_path)
    key = json.loads((tmp_path / "index.json").read_text())["key"]
    assert key["encoder"] == {"name": "test_vit", "image_size": [64, 96], "fit": "squash", "interpolation": "bicubic"}


def test_what_an_interrupted_extraction_has_done_is_not_done_again(shapes, encoder, tmp_path, monkeypatch):
    monkeypatch.setattr("captioner.data.features.KEPT_EVERY", 8)
    captions = load_captions(shapes)
    whole = extract_features(encoder, captions, tmp_path / "whole", batch_size=4)

    def interrupt(views):
        if sum(done := [*told, views]) > 10:
            raise KeyboardInterrupt
        told[:] = done

    told = []
    with pytest.raises(KeyboardInterrupt):
        extract_features(encoder, captions, tmp_path / "cut", batch_size=4, advance=interrupt)
    assert not (tmp_path / "cut" / "index.json").exists()
    told = []
    cut = extract_features(encoder, captions, tmp_path / "cut", batch_size=4, advance=told.append)
    assert told[0] == 8
    assert sum(told) == len(captions.images)
    for image in captions.images:
        name = str(image.image_id)
        assert torch.equal(whole.read(name), cut.read(name))
    assert sorted(path.name for path in (tmp_path / "cut").iterdir()) == ["features.f16", "index.json"]


@pytest.mark.parametrize("norm_eps", [None, 1e-3])
def test_an_encoder_that_computes_otherwise_has_another_store(shapes, tmp_path, norm_eps):
    """Every option of the network that changes features is in the key."""
    captions = load_captions(shapes)
    torch.manual_seed(0)
    plain = VisionEncoder(EncoderConfig(name="test_vit", image_size=(64, 64)))
    extract_features(plain, captions, tmp_path)
    torch.manual_seed(0)
    other = VisionEncoder(EncoderConfig(name="test_vit", image_size=(64, 64), norm_eps=norm_eps))
    if norm_eps is None:
        extract_features(other, captions, tmp_path, advance=pytest.fail)
    else:
        with pytest.raises(ConfigError, match="other encoder"):
            extract_features(other, captions, tmp_path)


def test_features_beyond_float16_name_their_photo(shapes, tmp_path):
    """They would be stored as infinities, and training would fail far from the cause."""
    torch.manual_seed(0)
    encoder = VisionEncoder(EncoderConfig(name="test_convnext", image_size=(64, 64)))
    captions = load_captions(shapes)
    pixels = np.stack([view_pixels(open_image(image.path).image, encoder.config, image) for image in captions.images])
    with torch.inference_mode():
        largest = encoder.eval()(torch.from_numpy(pixels)).abs().flatten(1).amax(dim=1)
    name = captions.images[int(largest.argmax())].image_id
    encoder.register_forward_hook(lambda module, given, features: features * (66000 / float(largest.max())))
    with pytest.raises(ConfigError, match=rf"image {name} has features .*data\.features to null"):
        extract_features(encoder, captions, tmp_path, batch_size=5)


def test_features_are_computed_on_the_device_that_is_named(shapes, encoder, tmp_path):
    """Where there is no accelerator, on the meta device: it computes shapes alone, so the first photo is not stored."""
    devices = []
    handle = encoder.register_forward_pre_hook(lambda module, given: devices.append(given[0].device.type))
    device = torch.device("cuda" if torch.cuda.is_available() else "meta")
    moved = copy.deepcopy(encoder)
    handle.remove()
    with pytest.raises(NotImplementedError) if device.type == "meta" else nullcontext():
        extract_features(moved, load_captions(shapes), tmp_path, device=device)
    assert set(devices) == {device.type}


def test_photos_given_as_bytes_have_the_features_of_their_files(shapes, encoder, tmp_path):
    captions = load_captions(shapes)
    held = [dataclasses.replace(image, source=image.path.read_bytes()) for image in captions.images]
    one = extract_features(encoder, captions, tmp_path / "files")
    same = extract_features(encoder, dataclasses.replace(captions, images=tuple(held)), tmp_path / "bytes")
    for image in held:
        assert torch.equal(one.read(str(image.image_id)), same.read(str(image.image_id)))


def test_an_extraction_of_something_else_begins_anew(shapes, encoder, tmp_path, monkeypatch):
    monkeypatch.setattr("captioner.data.features.KEPT_EVERY", 4)

    def interrupt(views):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract_features(encoder, load_captions(shapes), tmp_path, batch_size=4, advance=interrupt)
    assert (tmp_path / "progress.json").exists()
    told = []
    extract_features(encoder, load_captions(shapes), tmp_path, views=lambda image: 2, batch_size=4, advance=told.append)
    assert told[0] == 4
    assert sum(told) == 2 * len(load_captions(shapes).images)
