"""Photos worth captioning: unsure ones, far from each other and from those that are captioned, in any order."""

import random

import numpy as np
from PIL import Image

from captioner import Captioner, Greedy
from captioner.caption import Caption, CaptionWord
from captioner.suggestion import POOL_FACTOR, Candidate, candidates, suggest
from tests.serving.conftest import save_tiny_model


def candidate(name, confidence, place, unfamiliarity=None):
    words = (CaptionWord("dog", -1.0, confidence),)
    caption = Caption("dog", -1.0, words, (5,), unfamiliarity=unfamiliarity)
    return Candidate(name, caption, np.array(place, np.float32))


def names(chosen):
    return [each.path for each in chosen]


LINE = [candidate(f"{place:02}", 0.5, (place, 0)) for place in range(11)]


def test_choices_are_spread():
    assert names(suggest(LINE, 3)) == ["00", "10", "05"]


def test_choices_are_far_from_captioned_photos():
    captioned = [candidate("x", 0.9, (0, 0)), candidate("y", 0.9, (8, 0))]
    first, *others = names(suggest(LINE[:9], 3, captioned))
    assert (first, sorted(others)) == ("04", ["02", "06"])


def test_choices_come_from_the_least_confident():
    rng = np.random.default_rng(0)
    found = [candidate(f"{number:03}", number / 200, rng.normal(size=4)) for number in range(100)]
    assert all(name < f"{5 * POOL_FACTOR:03}" for name in names(suggest(found, 5)))
    assert names(suggest(found, 1)) == ["000"]


def test_unfamiliar_photos_count_as_unsure():
    known = [candidate("known", 0.1, (0, 0))]
    for distance, expected in ((1.0, "x"), (None, "3")):
        found = [candidate(f"{number}", number / 20, (number, 0), distance) for number in range(2 * POOL_FACTOR)]
        far = candidate("x", 0.17, (50, 50), distance and 2.0)
        assert names(suggest([*found, far], 1, known)) == [expected]


def test_the_order_of_the_candidates_does_not_matter():
    rng = np.random.default_rng(1)
    found = [candidate(f"{number}", float(rng.random()), rng.normal(size=3)) for number in range(60)]
    expected = names(suggest(found, 7))
    assert len(set(expected)) == 7
    random.shuffle(found)
    assert names(suggest(found, 7)) == expected


def test_there_may_be_fewer_candidates_than_wanted():
    assert suggest([], 5) == []
    assert sorted(names(suggest(LINE[:2], 5))) == ["00", "01"]
    same = [candidate(name, 0.5, (1, 1)) for name in "abc"]
    assert sorted(names(suggest(same, 3))) == ["a", "b", "c"]


def test_candidates_have_the_captions_of_the_model(tmp_path):
    captioner = Captioner.from_pretrained(save_tiny_model(tmp_path), device="cpu")
    paths = [str(tmp_path / f"{number}.png") for number in range(3)]
    for number, path in enumerate(paths):
        Image.effect_noise((40, 30), 20 + 40 * number).save(path)
    (tmp_path / "1.png").write_bytes(b"no picture")
    errors = []
    found = list(candidates(captioner, paths, errors.append))
    assert names(found) == [paths[0], paths[2]]
    assert [error.code for error in errors] == ["not_an_image"]
    photos = [captioner.prepare(path) for path in names(found)]
    features = captioner.features(photos)
    assert found[0].summary.shape == (features.shape[2],)
    assert [each.caption.text for each in found] == [
        caption.text for caption in captioner.caption_photos(photos, search=Greedy())
    ]
