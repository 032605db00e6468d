"""Colors, scales and plain words that sheets and reports share.   W words"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from captioner.inspection.trace import AttentionTrace, Method

RAMP = ((0.16, 0.05, 285.0), (0.38, 0.17, 305.0), (0.58, 0.21, 360.0), (0.77, 0.17, 410.0), (0.96, 0.10, 465.0))
"""Evenly spaced anchors in Oklab (lightness, chroma, hue in degrees), lightness rising steadily."""
SCALE_END = 0.75
"""Quantile of the words' peaks at which a shared scale ends, so that one sharp map does not leave all others dark."""
MIN_SCALE_END: dict[Method, float] = {"raw": 0.0, "relevance": 0.15, "refined": 0.1, "perturbation": 0.15}
"""Least end of a shared scale, so that tiny values stay dark."""
HALLUCINATION_THRESHOLD = 0.5
"""A report says of objects with a higher hallucination probability that they may not be in the photo."""

BRIGHT: dict[Method, str] = {
    "raw": "the model looked here when it chose the word",
    "relevance": "this part of the photo made the word more likely",
    "refined": "this part of the photo made the word more likely",
    "perturbation": "the word is less likely without this part of the photo",
}
"""Method -> what a bright place means, for photographers."""
COLOR: dict[Method, str] = {
    "raw": "share of the word's attention on a patch",
    "relevance": "factor by which a patch raised the odds of the word",
    "refined": "factor by which a patch raised the odds of the word, on the finer grid of an earlier encoder stage",
    "perturbation": "factor by which the word is less likely if 3 x 3 patches are hidden",
}
"""Method -> the meaning of a map's values."""
LABEL: dict[Method, str] = {
    "raw": "attention",
    "relevance": "evidence",
    "refined": "evidence, sharpened",
    "perturbation": "hiding test",
}
"""Method -> its name for photographers."""
DEFINITION: dict[Method, str] = {
    "raw": "the cross-attention weights at the step that predicts the word, averaged over the chosen layers and heads. "
    "The weights of a word sum to 1 over the photo and the positions beside it.",
    "relevance": "relevance, that is attention weight times the effect of the patch's value, relative to the mean "
    "patch's, on the log-odds of the word, summed over the chosen layers and heads. To first order, the odds would "
    "shrink by the factor shown if the patch were like the mean patch. Only factors above 1 are drawn.",
    "refined": "relevance on the finer grid of an earlier encoder stage: resized, multiplied by the third power of "
    "what each cell of the stage contributed to the word (gradient times activation, the sum of the positive "
    "channels), and scaled to its former sum.",
    "perturbation": "the factor by which the word is less likely if a square of 3 x 3 patches around the place is "
    "hidden from the model, averaged over the squares that cover the patch.",
}
"""Method -> the definition of its maps."""
ENOUGH, UNSUPPORTED = "the words before it were enough", "the photo hardly supports it"
"""Said of words that do not need the photo: those that are probable without it, and others."""
PROBABLE = 0.1
"""Probability without the photo from which the words before a word were enough."""

# From Oklab to the cube roots of cone responses, and from their cubes to linear sRGB (Ottosson 2020).
TO_CONES = ((1, 0.3963377774, 0.2158037573), (1, -0.1055613458, -0.0638541728), (1, -0.0894841775, -1.2914855480))
TO_LINEAR = (
    (4.0767416621, -3.3077115913, 0.2309699292),
    (-1.2684380046, 2.6097574011, -0.3413193965),
    (-0.0041960863, -0.7034186147, 1.7076147010),
)


def _colors() -> NDArray[np.uint8]:
    """(256, 3) sRGB, from the lowest value to the highest."""
    anchors = np.array(RAMP)
    steps = np.linspace(0, len(RAMP) - 1, 256)
    lightness, chroma, degrees = (np.interp(steps, np.arange(len(RAMP)), column) for column in anchors.T)
    hue = np.radians(degrees)
    oklab = np.stack([lightness, chroma * np.cos(hue), chroma * np.sin(hue)])
    linear = np.clip(np.array(TO_LINEAR) @ (np.array(TO_CONES) @ oklab) ** 3, 0, 1)
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.asarray(np.round(255 * srgb.T), np.uint8)


COLORS = _colors()


def faint_words(trace: AttentionTrace) -> NDArray[np.bool_]:
    """(W,) words to draw faintly, each on a scale of its own: the photo did not raise their odds, so that their maps
    would be dark. Attention weights always sum to one, so that no map of the method `raw` is dark.
    """
    return ~np.array(trace.needs_photo, bool) & (trace.method != "raw")


def why_faint(trace: AttentionTrace, word: int) -> str:
    """The reason why a word's map is drawn faintly; empty for a word that needs the photo."""
    if trace.needs_photo[word]:
        return ""
    return ENOUGH if math.exp(trace.log_probs[word] - trace.needs[word]) >= PROBABLE else UNSUPPORTED


def shared_scale_end(peaks: Sequence[float], trace: AttentionTrace, heads_shown: float = 1.0) -> float:
    """The value at which the shared scale of a trace ends; `peaks` (W,) are the maxima of its maps.

    A selection that shows this share of all heads has that much less evidence.
    """
    bright = np.array(peaks)[~faint_words(trace)]
    chosen = bright if len(bright) else np.array(peaks)
    end = float(np.quantile(chosen, SCALE_END)) if len(chosen) else 0.0
    return max(end, heads_shown * MIN_SCALE_END[trace.method]) or 1.0


def format_value(value: float, method: Method) -> str:
    """A value of a map: a percentage of attention, else nats as a factor."""
    return percent(value) if method == "raw" else factor(value)


def factor(nats: float) -> str:
    """A difference of log-odds or log-probabilities as a factor, such as 1.2x."""
    value = math.exp(min(nats, 20.0))
    digits = 0 if value >= 9.95 or 0.995 < value < 1.005 else 1 if value >= 1.995 else 2
    return f"{value:,.{digits}f}x"


def percent(share: float) -> str:
    if 0 < share < 0.0005:
        return "< 0.1 %"
    return f"{100 * share:.1f} %" if 0 < share < 0.0995 else f"{100 * share:.0f} %"
