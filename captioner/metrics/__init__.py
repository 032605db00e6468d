"""The field's caption metrics, equal to the official tool's: no torch, and no Java but for METEOR and SPICE."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from captioner.metrics.reward import CiderReward
    from captioner.metrics.scores import Scores, score, score_captions

__all__ = ["CiderReward", "Scores", "score", "score_captions"]

_HOMES = {
    "CiderReward": "captioner.metrics.reward",
    "Scores": "captioner.metrics.scores",
    "score": "captioner.metrics.scores",
    "score_captions": "captioner.metrics.scores",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
