"""CIDEr-D against the official tool's values."""

import numpy as np

from captioner.metrics.cider import cider_d
from captioner.metrics.metric import Captions
from tests.metrics.conftest import Official


def test_equals_the_official_tool(official: Official) -> None:
    found = cider_d(official.captions)
    np.testing.assert_allclose(found.corpus.item(), official.corpus["cider_d"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.per_image[:, 0], official.per_image["cider_d"], rtol=0, atol=1e-12)


def test_the_only_reference_scores_ten() -> None:
    found = cider_d(
        Captions(["a dog runs fast", "two cats sleep here"], [["a dog runs fast"], ["two cats sleep here"]])
    )
    np.testing.assert_allclose(found.per_image, 10, rtol=1e-15)


def test_n_grams_of_all_images_weigh_nothing() -> None:
    references = [["a dog runs fast"], ["a dog sleeps here"]]
    np.testing.assert_array_equal(cider_d(Captions(["a dog", "a dog"], references)).per_image, [[0], [0]])


def test_one_image_alone_has_no_weights() -> None:
    found = cider_d(Captions(["a dog"], [["a dog"]]))
    assert np.isnan(found.corpus).all()
    assert np.isnan(found.per_image).all()
    assert found.undefined.startswith("one image alone")


def test_another_length_is_punished_by_bigrams() -> None:
    references = [["a b c d e f"], ["u v w x y z"]]
    whole, half = (cider_d(Captions([text, "u"], references)).per_image[0, 0] for text in ("a b c d e f", "a b c d"))
    # Cosines of n-grams 1 to 4 that share 4 of 6, 3 of 5, 2 of 4 and 1 of 3 entries; 3 bigrams against 5.
    cosines = sum(np.sqrt(share) for share in (4 / 6, 3 / 5, 2 / 4, 1 / 3))
    np.testing.assert_allclose([whole, half], [10, 10 * cosines / 4 * np.exp(-(2**2) / 72)], rtol=1e-14)


def test_empty_candidates_score_zero() -> None:
    np.testing.assert_array_equal(cider_d(Captions(["", ""], [["a dog"], [""]])).per_image, [[0], [0]])
