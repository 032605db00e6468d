"""The plain words and the scales that sheets and reports share."""

import math
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from captioner.geometry import Geometry
from captioner.inspection.legend import ENOUGH, UNSUPPORTED, factor, percent, shared_scale_end, why_faint
from captioner.inspection.trace import AttentionTrace


def trace_of(needs: tuple[float, ...]) -> AttentionTrace:
    words = tuple(f"w{number}" for number in range(len(needs)))
    weights = np.zeros((len(needs), 1, 1, 4), np.float32)
    geometry, photo = Geometry.of(8, 6, size=(32, 32), fit="squash"), Image.new("RGB", (8, 6))
    trace = AttentionTrace(" ".join(words), words, (-0.5,) * len(words), weights, (2, 2), 0, geometry, photo)
    return replace(trace, needs=needs, method="relevance", evidence=weights)


@pytest.mark.parametrize(
    ("nats", "text"),
    [(0, "1x"), (0.004, "1x"), (0.1, "1.11x"), (-0.1, "0.90x"), (1, "2.7x"), (3, "20x"), (9, "8,103x")],
)
def test_nats_are_factors(nats: float, text: str) -> None:
    assert factor(nats) == text


@pytest.mark.parametrize(
    ("share", "text"), [(0, "0 %"), (1e-4, "< 0.1 %"), (0.0123, "1.2 %"), (0.0996, "10 %"), (0.5, "50 %"), (1, "100 %")]
)
def test_shares_are_percentages(share: float, text: str) -> None:
    assert percent(share) == text


def test_words_without_need_of_the_photo_were_probable_or_are_not_supported() -> None:
    trace = replace(trace_of((2.0, 0.5, -1.0, -1.0)), log_probs=(-3.0, -0.5, -3.2, -3.5))
    assert [why_faint(trace, word) for word in range(4)] == ["", ENOUGH, ENOUGH, UNSUPPORTED]
    assert why_faint(replace(trace, needs=()), 1) == ""


def test_the_shared_scale_is_that_of_the_words_that_need_the_photo() -> None:
    peaks = [0.4, 0.8, 9.0, 9.0]
    assert shared_scale_end(peaks, trace_of((2.0, 2.0, 0.0, 0.0))) == pytest.approx(0.7)
    assert shared_scale_end(peaks, trace_of((0.0,) * 4)) == pytest.approx(9.0)
    assert shared_scale_end([0.0] * 4, trace_of((2.0,) * 4)) == 0.15
    assert shared_scale_end([0.0] * 4, trace_of((2.0,) * 4), 0.5) == 0.075
    assert shared_scale_end([0.0], replace(trace_of((2.0,)), method="raw", evidence=None)) == 1.0
    assert shared_scale_end([], trace_of(())) == 0.15
    assert math.isfinite(shared_scale_end([math.inf, 1.0], trace_of((0.0, 2.0))))
