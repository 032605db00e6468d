"""The field's caption metrics, equal to the official tool's: no torch, and Java only for METEOR and SPICE."""

from captioner.metrics.reward import CiderReward
from captioner.metrics.scores import Scores, score, score_captions

__all__ = ["CiderReward", "Scores", "score", "score_captions"]
