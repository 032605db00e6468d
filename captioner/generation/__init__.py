"""Search for captions: the strategies, the loop they share, and the mask of choices that training shares too."""

from captioner.generation.search import Search, generate, mask_choices
from captioner.generation.strategies import BeamSearch, Greedy, Hypothesis, Sampling, Sequences, Strategy, with_captions

__all__ = [
    "BeamSearch",
    "Greedy",
    "Hypothesis",
    "Sampling",
    "Search",
    "Sequences",
    "Strategy",
    "generate",
    "mask_choices",
    "with_captions",
]
