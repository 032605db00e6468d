"""Captioner: the same caption for a photo whatever it comes as, whatever comes with it, and the attention behind it."""

import copy
import io
import itertools
import math
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import captioner as package
from captioner.caption import Caption, CaptionWord, log_odds
from captioner.config import DecoderConfig, EncoderConfig, ModelConfig, TokenizerConfig
from captioner.errors import CheckpointError, ConfigError, ImageError, ResourceError
from captioner.generation import BeamSearch, Greedy, Sampling, generate
from captioner.geometry import Geometry, to_pixels
from captioner.images import open_image
from captioner.model.caption_model import CaptionModel
from captioner.model.familiarity import Familiarity
from captioner.model.linear import AVAILABLE
from captioner.model_files import model_folder
from captioner.pipeline import Captioner
from captioner.prefetch import BATCHES
from captioner.tokenizer import Tokenizer

WORDS = "red green blue square circle dot above below small large a two"
LOG_PROB = 1e-4
POSITIONS = 10


def make(**encoder):
    tokenizer = Tokenizer.train([WORDS], TokenizerConfig(min_count=1))
    config = ModelConfig(
        encoder=EncoderConfig(**{"name": "test_vit", "image_size": (64, 96), **encoder}),
        decoder=DecoderConfig(width=16, layers=2, heads=2, max_length=POSITIONS),
    )
    torch.manual_seed(0)
    model = CaptionModel(config, vocabulary=len(tokenizer))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():  # so that captions differ from photo to photo
        for name, parameter in model.decoder.named_parameters():
            if "norm" not in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.35)
    return Captioner(model, tokenizer, name="tiny")


@pytest.fixture(scope="module")
def captioner():
    return make()


def photo(seed, width=90, height=50):
    colors = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), np.uint8)
    return Image.fromarray(colors).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Seven files, all different."""
    folder = tmp_path_factory.mktemp("photos")
    for seed in range(7):
        photo(seed, 60 + 9 * seed, 80 - 7 * seed).save(folder / f"{seed}.png")
    return sorted(folder.iterdir())


def opened(path):
    with Image.open(path) as image:
        return image.copy()


def same(one, other):
    alternatives = zip(one.alternatives, other.alternatives, strict=True)
    return (
        (one.text, one.tokens) == (other.text, other.tokens)
        and one.log_prob == pytest.approx(other.log_prob, abs=LOG_PROB)
        and [word.text for word in one.words] == [word.text for word in other.words]
        and all(itertools.starmap(same, alternatives))
    )


# One photo


def test_a_caption_holds_what_the_search_found(captioner, photos):
    search = BeamSearch(width=4, captions=3, max_length=8, no_repeat_ngram=2)
    caption = captioner(photos[0], search=search)
    assert isinstance(caption, Caption)
    image = opened(photos[0])
    geometry = Geometry.of(*image.size, size=(64, 96), fit="squash")
    pixels = torch.from_numpy(to_pixels(image, geometry, "bicubic"))[None]
    words = captioner.tokenizer
    special = {"bos": words.bos, "eos": words.eos, "pad": words.pad, "suppressed": words.suppressed}
    with torch.no_grad():
        [found] = generate(captioner.model.decoder, captioner.model.encode(pixels), search, **special)
    assert [list(each.tokens) for each in (caption, *caption.alternatives)] == [each.tokens for each in found]
    assert caption.log_prob == pytest.approx(found[0].log_prob, abs=LOG_PROB)
    assert caption.text == words.decode(found[0].tokens)
    assert caption.confidence == pytest.approx(math.exp(found[0].log_prob / len(found[0].tokens)), abs=1e-5)


def test_a_calibrated_model_says_how_confident_it_is_and_how_unfamiliar_each_photo_is(captioner, photos):
    plain = captioner(photos)
    assert all(not each.unfamiliar and each.unfamiliarity is None for each in plain)
    calibrated = copy.deepcopy(captioner)
    model = calibrated.model
    pixels = torch.from_numpy(np.stack([captioner.prepare(photo).pixels for photo in photos]))
    with torch.no_grad():
        model.familiarity = Familiarity.fit(torch.randn(200, model.encoder.width))
        distances = model.familiarity(model.encoder(pixels))
    limit = float(distances.median())
    model.config = replace(model.config, confidence=((0.5, 0.0, -1.0, 0.1),) * 2, familiar_distance=limit)
    for found, before, distance in zip(calibrated(photos), plain, distances.tolist(), strict=True):
        assert found.unfamiliarity == pytest.approx(distance / limit, rel=1e-4)
        assert found.unfamiliar == (found.unfamiliarity > 1)
        assert same(found, before)
        assert found.words[0].confidence == pytest.approx(
            1 / (1 + math.exp(math.log(distance / limit) - 0.5 * log_odds(found.words[0].log_prob) - 0.1)), rel=1e-3
        )
        assert found.confidence == pytest.approx(np.mean([word.confidence for word in found.words]))


def test_confidence_is_a_regression_on_the_log_odds_of_words_and_of_object_words():
    words = (CaptionWord("a", math.log(0.9)), CaptionWord("Dog.", math.log(0.2)), CaptionWord("sits", 0.0))
    caption = Caption("a Dog. sits", -1.7, words, (3, 4, 5))
    assert [word.confidence for word in caption.words] == [None] * 3
    assert caption.calibrated(()) == caption
    assert caption.confidence == pytest.approx(math.exp(-1.7 / 3))
    a, dog, sits = (word.confidence for word in caption.calibrated([(1.0, 0, 0, 0), (2.0, 6.0, 5.0, 1.0)]).words)
    assert (a, dog) == pytest.approx((0.9, 1 / (1 + math.exp(-2 * math.log(0.25) - 6 / 3 - 1))))
    assert 0.999 < sits < 1
    assert replace(caption, unfamiliarity=1e6).calibrated([(0, 0, -1e3, 0)] * 2).confidence == pytest.approx(0)
    far = replace(caption, unfamiliarity=2.0).calibrated([(0, 0, 1.0, 0)] * 2)
    assert [word.confidence for word in far.words] == pytest.approx([2 / 3] * 3)
    assert far.confidence == pytest.approx(2 / 3)


@pytest.mark.skipif(not AVAILABLE, reason="PyTorch without oneDNN, or no x86")
def test_with_8_bits_captions_are_nearly_as_probable_and_do_not_depend_on_their_batch(captioner, photos):
    rounded = Captioner(captioner.model, captioner.tokenizer, name="tiny", int8=True)
    search = BeamSearch(no_repeat_ngram=0)
    alone = [rounded(photo, search=search) for photo in photos]
    for size in (1, 3, len(photos)):
        together = [each.caption for each in rounded.stream(list(map(str, photos)), search=search, batch_size=size)]
        assert all(map(same, alone, together))
    whole = captioner(photos, search=search)
    assert [each.log_prob for each in alone] != [each.log_prob for each in whole]
    assert np.mean([each.log_prob for each in alone]) == pytest.approx(np.mean([e.log_prob for e in whole]), abs=0.1)


def test_8_bits_are_refused_where_they_are_of_no_use(captioner, monkeypatch):
    monkeypatch.setattr("captioner.pipeline.AVAILABLE", False)
    with pytest.raises(ResourceError, match="int8: is for x86 processors, and the device is cpu"):
        Captioner(captioner.model, captioner.tokenizer, name="tiny", int8=True)


def test_words_tell_the_caption_and_the_end_token_has_the_rest(captioner, photos):
    for caption in captioner(photos, search=Greedy()):
        assert " ".join(word.text for word in caption.words) == caption.text
        spoken = math.fsum(word.log_prob for word in caption.words)
        if caption.tokens[-1] == captioner.tokenizer.eos:
            assert spoken > caption.log_prob
        else:
            assert spoken == pytest.approx(caption.log_prob)


def test_a_path_bytes_a_pil_image_and_an_array_have_one_caption(captioner, photos):
    image = opened(photos[1])
    sources = [photos[1], str(photos[1]), photos[1].read_bytes(), image, np.asarray(image)]
    first, *others = captioner(sources)
    assert all(same(first, other) for other in others)


def test_file_objects_and_tensors_have_the_caption_of_their_file(captioner, photos):
    with photos[0].open("rb") as file:
        forms = [
            file,
            io.BytesIO(photos[0].read_bytes()),
            torch.from_numpy(np.array(opened(photos[0]))).movedim(-1, 0),
        ]
        found = captioner(forms)
    assert all(same(each, captioner(photos[0])) for each in found)
    assert captioner.inspect(forms[2]).text == captioner.inspect(photos[0]).text
    with pytest.raises(ImageError, match="an array of float32"):
        captioner(torch.zeros(3, 8, 8))


def test_several_captions_and_a_prefix_by_keyword(captioner, photos):
    several = captioner(photos[0], num_captions=7)
    assert same(several, captioner(photos[0], search=BeamSearch(width=7, captions=7)))
    assert len(several.alternatives) == 6
    sampled = captioner(photos[0], num_captions=2, search=Sampling(seed=1), prefix="two")
    assert [each.text.split()[0] for each in (sampled, *sampled.alternatives)] == ["two", "two"]
    with pytest.raises(ConfigError, match="num_captions 2: greedy search finds one"):
        captioner(photos[0], num_captions=2, search=Greedy())


def test_unusable_photos_of_a_list_can_be_skipped_and_progress_is_reported(captioner, photos):
    done = []
    found = captioner([photos[0], b"no picture", photos[1]], on_error="skip", progress=done.append)
    assert found[1] is None
    assert same(found[0], captioner(photos[0]))
    assert same(found[2], captioner(photos[1]))
    assert done == [1, 2, 3]
    for images, mode, error in (([b"x"], "raise", ImageError), (b"x", "skip", ImageError), ([], "ignore", ConfigError)):
        with pytest.raises(error):
            captioner(images, on_error=mode)


def test_captions_differ_from_photo_to_photo(captioner, photos):
    assert len({caption.text for caption in captioner(photos)}) > 3


# Many photos


def test_a_list_equals_its_photos_one_by_one(captioner, photos):
    together = captioner(photos)
    assert isinstance(together, list)
    assert all(same(captioner(path), caption) for path, caption in zip(photos, together, strict=True))
    assert captioner([]) == []
    assert same(captioner(photos[:1])[0], together[0])


@pytest.mark.parametrize(
    "search",
    [BeamSearch(captions=2), Greedy(), Sampling(samples=2, seed=3, temperature=1.5)],
    ids=lambda s: type(s).__name__,
)
def test_records_do_not_depend_on_batches_workers_or_order(captioner, photos, search):
    expected = dict(zip(photos, captioner.stream(photos, search=search, batch_size=1, workers=1), strict=True))
    backwards = photos[::-1]
    for sources, batch_size, workers in (
        (photos, 3, 4),
        (backwards, 2, 1),
        (photos + backwards, 5, 2),
        (photos, 100, 0),
    ):
        stream = captioner.stream(sources, search=search, batch_size=batch_size, workers=workers)
        for path, found in zip(sources, stream, strict=True):
            assert same(found.caption, expected[path].caption)
            assert replace(found, caption=expected[path].caption) == expected[path]


def test_a_record_tells_size_hash_and_notes(captioner, photos, tmp_path):
    frames = [photo(seed) for seed in (1, 2)]
    frames[0].save(tmp_path / "two.gif", save_all=True, append_images=frames[1:])
    clear = photo(3).convert("RGBA")
    clear.putalpha(100)
    turned = photo(4, width=40, height=30)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    plain, animated, blended, upright = captioner.stream(
        [photos[0], tmp_path / "two.gif", clear, tmp_path / "turned.jpg"]
    )
    assert (plain.width, plain.height) == opened(photos[0]).size
    assert plain.notes == ()
    assert len(plain.sha256) == 64
    assert animated.notes == ("first_frame_only",)
    assert (blended.notes, blended.sha256) == (("alpha_on_white",), None)
    assert (upright.width, upright.height) == (30, 40)


def test_an_unusable_photo_takes_its_place_among_the_others(captioner, photos, tmp_path):
    (tmp_path / "empty.jpg").touch()
    sources = [photos[0], tmp_path / "empty.jpg", photos[1], b"no image", tmp_path / "missing.png"]
    for batch_size in (1, 2, 16):
        found = list(captioner.stream(sources, batch_size=batch_size))
        codes = [each.code if isinstance(each, ImageError) else None for each in found]
        assert codes == [None, "empty", None, "not_an_image", "unreadable"]
        assert same(found[2].caption, captioner(photos[1]))
    with pytest.raises(ImageError, match=r"empty\.jpg"):
        captioner(sources)
    with pytest.raises(ImageError, match="not an image"):
        captioner(b"no image")


def test_truncated_photos_on_request(captioner):
    buffer = io.BytesIO()
    photo(0, 400, 300).save(buffer, "JPEG")
    half = buffer.getvalue()[: len(buffer.getvalue()) // 2]
    [refused] = captioner.stream([half])
    assert refused.code == "truncated"
    [taken] = captioner.stream([half], allow_truncated=True)
    assert taken.notes == ("truncated",)
    assert taken.caption.text


def test_a_slow_source_gets_its_caption_before_the_next_photo(captioner, photos):
    captioned = threading.Semaphore(1)

    def sources():
        for path in photos[:3]:
            assert captioned.acquire(timeout=10), "no caption of the photo before"
            yield path

    for path, found in zip(photos[:3], captioner.stream(sources()), strict=True):
        assert same(found.caption, captioner(path))
        captioned.release()


def test_photos_are_read_a_few_batches_ahead_and_no_further(captioner):
    read = []

    def sources():
        for number in range(50):
            read.append(number)
            yield photo(number % 5)

    stream = captioner.stream(sources(), search=Greedy(max_length=3), batch_size=4)
    next(stream)
    assert len(read) <= 4 * BATCHES + 1
    assert sum(1 for _ in stream) == 49
    assert read == list(range(50))


# Searches


def test_a_search_is_cut_to_the_models_positions(captioner, photos):
    long = captioner(photos[0], search=BeamSearch(max_length=200, min_length=150, width=2))
    assert len(long.tokens) == POSITIONS - 1


def test_the_first_words_can_be_given(captioner, photos):
    for search in (Greedy(), BeamSearch(captions=2), Sampling(samples=2)):
        for found in captioner.stream(photos, search=search, prefix="a Red square"):
            for caption in (found.caption, *found.caption.alternatives):
                assert caption.text.startswith("a red square")
                assert len(caption.words) >= 3
    [plain], [empty] = (list(captioner.stream(photos[:1], prefix=text)) for text in ("", "  "))
    assert plain == empty


def test_first_words_that_the_model_does_not_know(captioner, photos):
    with pytest.raises(ConfigError, match="does not know zebra, unicorn; use words"):
        list(captioner.stream(photos, prefix="a zebra ... red unicorn"))
    with pytest.raises(ConfigError, match="prefix"):
        list(captioner.stream(photos, prefix="a red square " * 4))


def test_sampling_depends_on_the_photo_and_the_seed_alone(captioner, photos):
    search = Sampling(samples=3, temperature=3.0, seed=1)
    first, second, again = captioner([photos[0], photos[1], photos[0]], search=search)
    assert same(first, again)
    assert not same(first, second)
    assert same(captioner(photos[0], search=search), first)
    assert not same(captioner(photos[0], search=replace(search, seed=2)), first)
    image, other = photo(0), photo(1)
    one, _, two = captioner([image, other, image], search=search)
    assert same(one, two)
    trace = captioner.inspect(image, search=search)
    assert trace.text == one.text


# Regions


@pytest.mark.parametrize("fit", ["squash", "letterbox"])
def test_a_region_hides_what_lies_outside_it(fit):
    captioner, image, region = make(fit=fit), photo(0), (0.0, 0.0, 0.5, 0.5)
    trace = captioner.inspect(image, region=region, method="raw")
    inside = trace.geometry.patches_in(region, trace.grid)
    assert 0 < inside.sum() < inside.size
    assert trace.prefix == 1
    assert (trace.weights[..., 0] == 0).all()  # the class token has seen everything
    for word in range(len(trace.words)):
        assert (trace.patches(word)[~inside] == 0).all()
        assert (trace.patches(word)[inside] > 0).all()
    assert trace.null_mass.min() > 0
    [found] = captioner.stream([image], region=region)
    assert found.caption.text == trace.text


def test_a_region_equals_a_mask_photo_by_photo(captioner, photos):
    region = (0.4, 0.0, 0.6, 0.7)
    together = list(captioner.stream(photos, region=region, batch_size=7))
    for path, found in zip(photos, together, strict=True):
        [alone] = captioner.stream([path], region=region)
        assert same(alone.caption, found.caption)
    plain = captioner(photos)
    assert any(not same(found.caption, caption) for found, caption in zip(together, plain, strict=True))


def test_what_is_hidden_is_the_rest_of_a_region(captioner, photos):
    left, right = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 0.5, 1.0)
    [shown] = captioner.stream([photos[0]], region=left)
    [rest] = captioner.stream([photos[0]], hide=right)
    assert same(shown.caption, rest.caption)
    trace = captioner.inspect(photos[0], hide=right, method="raw")
    assert not trace.weights[..., : trace.prefix].any()
    assert all(not trace.patches(word)[:, trace.grid[1] // 2 :].any() for word in range(len(trace.words)))
    with pytest.raises(ConfigError, match="no patch of the photo is left"):
        list(captioner.stream([photos[0]], region=left, hide=left))


def test_a_photo_of_which_a_crop_shows_nothing_in_the_region_is_one_error(photos):
    captioner, left = make(fit="crop"), (0.0, 0.0, 0.1, 1.0)
    sources = [photo(0, 60, 90), photo(1, 900, 90), b"no image", photo(2, 60, 90)]
    for batch_size in (1, 4):
        found = list(captioner.stream(sources, region=left, batch_size=batch_size))
        codes = [each.code if isinstance(each, ImageError) else None for each in found]
        assert codes == [None, "out_of_view", "not_an_image", None]
        for place in (0, 3):
            [alone] = captioner.stream([sources[place]], region=left)
            assert same(found[place].caption, alone.caption)
    assert str(found[1]) == "<Image>: fit crop leaves no patch of region 0,0,0.1,1; choose a larger one"
    with pytest.raises(ImageError, match="region"):
        captioner.inspect(sources[1], region=left)


@pytest.mark.parametrize("region", [(0.5, 0.5, 0.6, 0.2), (-0.1, 0, 1, 1), (0, 0, 0, 1), (0, 0, math.nan, 1)])
def test_regions_beyond_the_photo(captioner, photos, region):
    with pytest.raises(ConfigError, match="region"):
        list(captioner.stream(photos, region=region))
    with pytest.raises(ConfigError, match="region"):
        captioner.inspect(photos[0], region=region)


# Inspection


def test_inspecting_reads_the_models_own_caption(captioner, photos):
    for search in (BeamSearch(), Greedy(), Sampling(temperature=2.0)):
        caption, trace = captioner(photos[2], search=search), captioner.inspect(photos[2], search=search)
        assert trace.text == caption.text
        assert list(trace.words) == [word.text for word in caption.words]
        assert trace.log_probs == pytest.approx([word.log_prob for word in caption.words], abs=LOG_PROB)
        assert trace.weights.shape == (len(trace.words), 2, 2, 1 + 4 * 6 + 1)
        assert trace.weights.sum(-1) == pytest.approx(1.0, abs=1e-5)
        assert trace.photo.size == opened(photos[2]).size


def test_the_runners_up_are_alternatives(captioner, photos):
    search = BeamSearch(captions=3)
    caption, trace = captioner(photos[2], search=search), captioner.inspect(photos[2], search=search)
    assert [each.text for each in trace.alternatives] == [each.text for each in caption.alternatives]
    for other in trace.alternatives:
        alone = captioner.inspect(photos[2], caption=other.text)
        assert other.log_probs == pytest.approx(alone.log_probs, abs=LOG_PROB)
        np.testing.assert_allclose(other.evidence, alone.evidence, atol=1e-4)
    assert captioner.inspect(photos[2]).alternatives == ()


def test_inspecting_any_caption(captioner, photos):
    trace = captioner.inspect(photos[0], caption="Two red dot above")
    assert trace.words == ("two", "red", "dot", "above")
    assert all(value < 0 for value in trace.log_probs)
    own = captioner(photos[0])
    again = captioner.inspect(photos[0], caption=own.text)
    assert again.log_probs == pytest.approx([word.log_prob for word in own.words], abs=LOG_PROB)


def test_captions_that_cannot_be_inspected(captioner, photos):
    with pytest.raises(ConfigError, match="no words in it"):
        captioner.inspect(photos[0], caption=" !? ")
    assert len(captioner.inspect(photos[0], caption="a " * (POSITIONS - 1)).words) == POSITIONS - 1
    with pytest.raises(ConfigError, match=f"{POSITIONS} tokens, this model takes {POSITIONS - 1}; shorten it"):
        captioner.inspect(photos[0], caption="a " * POSITIONS)
    with pytest.raises(ImageError):
        captioner.inspect(b"no image")


# Models


def test_a_saved_captioner_comes_back(captioner, photos, tmp_path):
    captioner.save(tmp_path / "model")
    loaded = Captioner.from_pretrained(tmp_path / "model", device="cpu")
    assert loaded(photos) == captioner(photos)
    assert loaded.name == str(tmp_path / "model")
    assert (tmp_path / "model" / "README.md").read_text().startswith("# model\n")
    captioner.save_pretrained(tmp_path / "model", card="my own words\n")
    assert (tmp_path / "model" / "README.md").read_text() == "my own words\n"


def test_automatic_device_is_one_that_works(captioner, photos, tmp_path):
    captioner.save_pretrained(tmp_path)
    loaded = Captioner.from_pretrained(tmp_path)
    assert loaded.device.type == next(loaded.model.parameters()).device.type
    assert same(loaded(photos[0]), captioner(photos[0]))


@pytest.mark.parametrize("device", ["cuda:99", "gpu"])
def test_a_device_that_is_not_there(captioner, tmp_path, device):
    captioner.save_pretrained(tmp_path)
    with pytest.raises(ResourceError, match=f"device '{device}': not available here"):
        Captioner.from_pretrained(tmp_path, device=device)


def test_a_model_that_is_not_there(tmp_path):
    with pytest.raises(CheckpointError, match="no such model"):
        Captioner.from_pretrained(tmp_path / "nothing")


def test_the_bundled_model_is_part_of_the_package(tmp_path, monkeypatch):
    assert model_folder("other") == Path("other")
    monkeypatch.chdir(tmp_path)
    assert model_folder("bundled") == Path(package.__file__).parent / "bundled"
    (tmp_path / "bundled").mkdir()
    assert model_folder("bundled") == Path("bundled")


def caption_remotely(captioner, path):
    """In a spawned process."""
    return captioner(path, search=Greedy())


def test_weights_that_change_after_captioning_are_used(photos):
    captioner, other = make(), make()
    before = captioner(photos)
    with torch.no_grad():
        for each in (captioner, other):
            each.model.decoder.token_embedding.weight.mul_(-1)
    assert [caption.text for caption in captioner(photos)] == [caption.text for caption in other(photos)]
    assert captioner(photos) != before


@pytest.mark.parametrize("int8", [False, pytest.param(True, marks=pytest.mark.skipif(not AVAILABLE, reason="no x86"))])
def test_a_captioner_that_has_captioned_can_be_copied_and_pickled(photos, int8):
    tiny = make()
    original = Captioner(tiny.model, tiny.tokenizer, name="tiny", int8=int8)
    expected = original(photos[0])
    for other in (copy.copy(original), copy.deepcopy(original), pickle.loads(pickle.dumps(original))):
        assert other(photos[0]) == expected
        assert other.int8 == int8
    assert original(photos[0]) == expected


@pytest.mark.slow
def test_a_captioner_that_has_captioned_can_be_sent_to_a_spawned_process(captioner, photos):
    expected = captioner(photos[0], search=Greedy())
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert same(pool.submit(caption_remotely, captioner, photos[0]).result(), expected)


def test_batches_are_halved_until_memory_suffices(captioner, photos, caplog):
    expected = captioner(photos)
    sizes = []

    def allocate(encoder, arguments):
        """As an encoder that needs a petabyte for more than two photos."""
        sizes.append(len(arguments[0]))
        torch.empty(2**50 if sizes[-1] > 2 else 1, dtype=torch.uint8)

    hook = captioner.model.encoder.register_forward_pre_hook(allocate)
    try:
        found = [each.caption for each in captioner.stream(photos, batch_size=7)]
    finally:
        hook.remove()
    assert all(map(same, found, expected))
    # On a busy machine, the first batch goes before all photos are read.
    assert sum(size for size in sizes if size <= 2) == len(photos)
    assert sizes[0] > 2
    for size, following in itertools.pairwise(sizes):
        assert following == size // 2 if size > 2 else following <= 2
    assert f"out of memory for {sizes[0]} images at once; continuing with {sizes[0] // 2}" in caplog.text


LITTLE_MEMORY = """
import io, logging, resource, sys
import numpy as np
import torch
from captioner.errors import ResourceError
from captioner.generation import Greedy
from captioner.pipeline import Captioner

log = io.StringIO()
logging.basicConfig(level=logging.WARNING, stream=log)
torch.set_num_threads(1)
captioner = Captioner.from_pretrained()
images = list(np.random.default_rng(0).integers(0, 256, (16, 40, 50, 3), np.uint8))
expected = [each.caption.text for each in captioner.stream(images, search=Greedy(), batch_size=1)]
for mebibytes in (128, 96, 64, 48, 32, 24, 16):
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + mebibytes * 2**20, resource.RLIM_INFINITY))
    try:
        found = [each.caption.text for each in captioner.stream(images, search=Greedy(), batch_size=16)]
    except ResourceError:
        sys.exit("out of memory for one")
    assert found == expected
    if log.getvalue():
        break
print(log.getvalue())
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits a process's memory")
def test_where_memory_is_short_batches_are_halved():
    """In a process of its own, whose memory may grow by ever less, until 16 images no longer fit at once.

    How much 16 images and one image need depends on the machine's libraries. glibc gives memory back at once, so that
    what was free before the limit does not count.
    """
    command, environment = [sys.executable, "-c", LITTLE_MEMORY], {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    assert "out of memory for 16 images at once" in done.stdout


def test_a_fault_that_is_no_lack_of_memory_is_told(monkeypatch):
    captioner = Captioner.from_pretrained()
    image = np.zeros((40, 50, 3), np.uint8)
    short = (torch.OutOfMemoryError("for one image"), MemoryError(), RuntimeError("could not create a primitive"))
    for error in (RuntimeError("something else"), *short):
        monkeypatch.setattr(
            captioner, "caption_photos", lambda *arguments, error=error, **options: (_ for _ in ()).throw(error)
        )
        expected = RuntimeError if "else" in str(error) else ResourceError
        with pytest.raises(expected, match=r"else|for a single image"):
            next(captioner.stream([image]))


def test_captions_that_are_stopped_end_where_they_are(captioner, photos):
    prepared = [captioner.prepare(each) for each in photos]
    calls = iter([False, False, True])
    for stopped, whole in zip(
        captioner.caption_photos(prepared, search=Greedy(), stop=lambda: next(calls)),
        captioner.caption_photos(prepared, search=Greedy()),
        strict=True,
    ):
        assert stopped.tokens == whole.tokens[:2]


def test_an_opened_image_is_inspected_as_its_file_is(captioner, photos):
    opened = open_image(photos[0])
    search = Sampling(seed=1, temperature=3.0)  # whose noise depends on the file
    assert captioner.inspect(opened, search=search).text == captioner.inspect(photos[0], search=search).text


def test_the_size_is_that_of_the_photo_though_it_was_halved(captioner, monkeypatch):
    stream = io.BytesIO()
    photo(1, 91, 50).save(stream, "PNG")
    monkeypatch.setattr("captioner.images.FULL_PIXELS", 90 * 50)
    [found] = captioner.stream([stream.getvalue()], search=Greedy())
    assert (found.width, found.height, found.notes) == (91, 50, ("half_resolution",))
