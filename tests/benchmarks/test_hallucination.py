import numpy as np

from benchmarks.hallucination import detection
from captioner.faithfulness import HallucinationExamples
from captioner.inspection.hallucination import FEATURES


def test_detection_is_judged_on_other_photos():
    """Labels that are noise are detected by nothing, whatever the features."""
    rng = np.random.default_rng(0)
    features, photos = rng.normal(size=(3000, len(FEATURES))), np.arange(3000) // 3
    noise = detection(HallucinationExamples(features, rng.random(3000) < 0.3, photos))
    assert all(abs(value - 0.5) < 0.05 for value in noise.values())
    found = detection(HallucinationExamples(features, features[:, 1] > 0.5, photos))
    assert found["trace"] > 0.98
    assert found["probability"] < 0.6
    assert set(found) == {"probability", "probability and place", "trace"}
