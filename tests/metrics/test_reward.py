"""The reward against CIDEr-D of whole sets, and against the official tool's with given document frequencies."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioner.errors import AnnotationError
from captioner.metrics.cider import cider_d
from captioner.metrics.metric import Captions
from captioner.metrics.reward import EOS, UNKNOWN, CiderReward
from tests.metrics.conftest import Official

REFERENCES = [["a dog runs on the grass", "a brown dog"], ["two cats sleep", "a cat", "two cats on a bed"], ["a man"]]


def plain(captions: Any) -> Any:
    """References that are tokenized already."""
    return captions


def words(*captions: str) -> list[list[str]]:
    return [caption.split() for caption in captions]


def test_equals_cider_d_of_the_same_set(official: Official) -> None:
    candidates, references = official.tokenized_candidates, official.tokenized_references
    reward = CiderReward.of(references, plain, eos=False)
    found = reward.reward(range(len(reward)), [words(caption) for caption in candidates])
    np.testing.assert_allclose(found[:, 0], official.per_image["cider_d"], rtol=0, atol=1e-12)


CAPTION = st.lists(st.sampled_from(["a", "b", "c", "dog", "é"]), max_size=12).map(" ".join)


@given(st.lists(st.tuples(CAPTION, st.lists(CAPTION, min_size=1, max_size=4)), min_size=2, max_size=6))
def test_equals_cider_d_of_any_set(images: list[tuple[str, list[str]]]) -> None:
    candidates, references = [candidate for candidate, _ in images], [several for _, several in images]
    found = CiderReward.of(references, plain, eos=False).reward(
        range(len(images)), [words(each) for each in candidates]
    )
    np.testing.assert_allclose(
        found[:, 0], cider_d(Captions(candidates, references)).per_image[:, 0], rtol=0, atol=1e-12
    )


def test_equals_the_official_tool_with_document_frequencies_of_all_references(
    load_shared: Callable[[str], Any],
) -> None:
    references = load_shared("coco_karpathy_test/refs.json")
    reward = CiderReward.of(list(references.values()), eos=False)
    places = {image: place for place, image in enumerate(references)}
    for batch in load_shared("ciderd_batch/batches.json")["batches"]:
        images = [places[image] for image in batch["image_ids"][::5]]
        samples = [words(*batch["hyps_tokenised"][start : start + 5]) for start in range(0, 5 * len(images), 5)]
        found = reward.reward(images, samples)
        np.testing.assert_allclose(found.ravel(), batch["ciderd"], rtol=0, atol=1e-12)


def test_a_reward_does_not_depend_on_the_batch() -> None:
    reward = CiderReward.of(REFERENCES, plain)
    samples = [words("a dog runs", "zebra zebra dog"), words("two cats", ""), words("a man", "zebra a man")]
    together = reward.reward([2, 0, 0], samples)
    for image, several, expected in zip([2, 0, 0], samples, together, strict=True):
        np.testing.assert_array_equal(reward.reward([image], [several]), [expected])
        for sample, value in zip(several, expected, strict=True):
            np.testing.assert_array_equal(reward.reward([image], [[sample]]), [[value]])


def test_a_saved_reward_is_the_same(tmp_path: Path) -> None:
    reward = CiderReward.of(REFERENCES, plain)
    reward.save(tmp_path / "reward")
    loaded = CiderReward.load(tmp_path / "reward")
    assert len(loaded) == len(reward) == 3
    assert (loaded.words, loaded.eos) == (reward.words, reward.eos)
    arrays = [(*each.references, each.keys, each.starts) for each in (reward, loaded)]
    for mine, other in zip(*arrays, strict=True):
        np.testing.assert_array_equal(mine, other)
        assert mine.dtype == other.dtype
    samples = [words("a dog zebra", f"two cats {EOS}")] * 3
    np.testing.assert_array_equal(loaded.reward(range(3), samples), reward.reward(range(3), samples))


def test_the_end_of_a_caption_counts() -> None:
    reward = CiderReward.of(REFERENCES, plain)
    ended, cut = reward.reward([0], [words(f"a brown dog {EOS}", "a brown dog")])[0]
    assert ended > cut
    assert reward.reward([2], [words(f"a man {EOS}")])[0, 0] == pytest.approx(
        cider_d(
            Captions([f"a man {EOS}"] * 3, [[f"{caption} {EOS}" for caption in several] for several in REFERENCES])
        ).per_image[2, 0]
    )
    without = CiderReward.of(REFERENCES, plain, eos=False)
    ended, cut = without.reward([0], [words(f"a brown dog {EOS}", "a brown dog")])[0]
    assert ended == cut


def test_an_unknown_word_matches_nothing_but_makes_the_sample_longer() -> None:
    reward = CiderReward.of([[f"a {UNKNOWN} dog", "b"], ["c"]], plain)
    unknown, strange, known = reward.reward([0], [words(f"{UNKNOWN} dog", "zebra dog", "a dog")])[0]
    assert unknown == strange < known


def test_repeats_of_a_word_that_no_reference_has_count_as_repeats() -> None:
    references = [["a dog"], ["a cat"]]
    reward = CiderReward.of(references, plain, eos=False)
    for sample in ("dog zebra zebra", "dog zebra lion"):
        expected = cider_d(Captions([sample, ""], references)).per_image[0, 0]
        assert reward.reward([0], [words(sample)])[0, 0] == pytest.approx(expected, abs=1e-14)


def test_references_go_through_the_tokenizer() -> None:
    reward = CiderReward.of([["A dog, running."], ["Two cats!"]])
    np.testing.assert_allclose(reward.reward([0], [words(f"a dog running {EOS}")]), [[10]], rtol=1e-14)


def test_nothing_sampled() -> None:
    reward = CiderReward.of(REFERENCES, plain)
    assert reward.reward([], []).shape == (0, 0)
    assert reward.reward([0, 1], [[], []]).shape == (2, 0)


@pytest.mark.parametrize(
    ("references", "message"),
    [
        ([["a"], []], "image 1: no reference, so no reward; leave the image out"),
        ([["a"]], "references of 1 images: CIDEr weighs words by how rare they are among images; give two or more"),
    ],
)
def test_images_without_a_reward(references: list[list[str]], message: str) -> None:
    with pytest.raises(AnnotationError, match=message):
        CiderReward.of(references, plain)


def test_another_file_is_no_reward(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no reward")
    (tmp_path / "pickle").write_bytes(pickle.dumps({"a": 1}))
    np.savez(tmp_path / "other.npz", words=np.zeros(1))
    np.save(tmp_path / "array.npy", np.zeros(1))
    for name in ("text", "pickle", "other.npz", "array.npy"):
        with pytest.raises(AnnotationError, match=f"{name}: not a saved reward .*; build it again"):
            CiderReward.load(tmp_path / name)
