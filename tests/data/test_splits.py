"""Splits do not depend on the order of files, keep copies together, and have the sizes that were asked for."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioner.data.annotations import CaptionedImage, CaptionSet
from captioner.data.splits import coco_annotations, split_names
from captioner.errors import AnnotationError

NAMES = [f"{number}.jpg" for number in range(100)]
SHARES = {"test": 0.1, "val": 0.2}


@given(st.permutations(NAMES))
def test_the_order_does_not_matter(names: list[str]) -> None:
    groups = [NAMES[:9], NAMES[20:22]]
    assert split_names(names, SHARES, groups) == split_names(NAMES, SHARES, groups[::-1])


def test_each_split_has_its_share() -> None:
    assert Counter(split_names(NAMES, SHARES).values()) == {"train": 70, "val": 20, "test": 10}
    assert Counter(split_names(NAMES[:3], SHARES).values()) == {"train": 1, "val": 1, "test": 1}
    assert Counter(split_names(NAMES, {"test": 0.0, "val": 0.1}).values()) == {"train": 90, "val": 10}


def test_copies_share_a_split_and_none_is_overfull() -> None:
    groups = [NAMES[start : start + 7] for start in range(0, 70, 7)]
    splits = split_names(NAMES, SHARES, groups)
    assert all(len({splits[name] for name in group}) == 1 for group in groups)
    assert Counter(splits.values()) == {"train": 70, "val": 20, "test": 10}


def test_the_seed_decides() -> None:
    one, other = (split_names(NAMES, SHARES, seed=seed) for seed in (0, 1))
    assert one != other


def test_known_names_keep_their_splits() -> None:
    known = split_names(NAMES[:40], SHARES)
    splits = split_names(NAMES, SHARES, known=known)
    assert splits.items() >= known.items()
    assert Counter(splits.values()) == {"train": 70, "val": 20, "test": 10}


def test_a_copy_of_a_picture_that_is_kept_aside_is_kept_aside_too() -> None:
    known = {"0.jpg": "train", "1.jpg": "test"}
    splits = split_names(NAMES, SHARES, [NAMES[:3]], known=known)
    assert [splits[name] for name in NAMES[:3]] == ["test"] * 3


def test_a_split_that_would_stay_empty_is_an_error() -> None:
    with pytest.raises(AnnotationError, match=r"100 pictures, up to 100 of them alike: too few for the split test"):
        split_names(NAMES, SHARES, [NAMES])
    with pytest.raises(AnnotationError, match=r"2 pictures: too few for the split train"):
        split_names(NAMES[:2], SHARES)


def test_styles_are_written_with_the_captions(tmp_path: Path) -> None:
    images = (CaptionedImage(1, tmp_path / "a.jpg", ("a dog", "a cat"), "train", styles=("loud", None)),)
    written = coco_annotations(CaptionSet(images, tmp_path), "tone")["annotations"]
    assert written == [
        {"id": 1, "image_id": 1, "caption": "a dog", "tone": "loud"},
        {"id": 2, "image_id": 1, "caption": "a cat"},
    ]
    assert "tone" not in coco_annotations(CaptionSet(images, tmp_path))["annotations"][0]
