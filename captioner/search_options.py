"""A search as flags and requests describe it, without loading torch."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from captioner.generation import Strategy

Method: TypeAlias = Literal["beam", "greedy", "sample"]
Length: TypeAlias = Literal["short", "medium", "long"]

LENGTHS: dict[Length, tuple[int, int, float]] = {
    "short": (1, 32, 0.0),
    "medium": (1, 32, 1.0),
    "long": (14, 48, 1.5),
}
"""Length -> min_length, max_length, length_penalty. Flickr8k's captions have 12 words on average."""
DEFAULT_BEAM = 5


def parse_region(text: str) -> tuple[float, float, float, float]:
    """X,Y,W,H as fractions of a photo. Raises ValueError for anything else."""
    try:
        x, y, width, height = map(float, text.split(","))
    except ValueError:
        raise ValueError(f"{text}: not four numbers X,Y,W,H") from None
    if not (0 <= x < 1 and 0 <= y < 1 and 0 < width <= 1 - x + 1e-6 and 0 < height <= 1 - y + 1e-6):
        raise ValueError(f"{text}: not within the photo; give fractions of it, from 0 to 1")
    return x, y, width, height


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """The options of a search; `strategy` loads torch."""

    method: Method = "beam"
    length: Length = "medium"
    learned_length: bool = False
    """Whether the model writes the length by itself, so that the search favors none."""
    captions: int = 1
    """Captions per image; greedy search finds one."""
    beam: int | None = None
    """Beams; None means 5, or `captions` if that is more."""
    max_length: int | None = None
    """Most tokens, the end token included; None leaves it to `length`."""
    length_penalty: float | None = None
    """For beam search: above 1 favors long captions, below 1 short ones; None leaves it to `length`."""
    consensus: bool = True
    """For beam search: the caption that has most in common with those of the other beams, not the most probable."""
    no_repeat_ngram: int | None = None
    """No run of this many tokens comes twice; 0 allows all. None: a model of words repeats no bigram and no object."""
    temperature: float = 1.0
    top_p: float = 0.9
    seed: int = 0

    def strategy(self) -> "Strategy":
        """The search. Raises ConfigError if its numbers do not fit together."""
        from captioner.generation import BeamSearch, Greedy, Sampling

        least, most, penalty = LENGTHS[self.length]
        if self.learned_length:
            least, _, penalty = LENGTHS["medium"]
        repeat = self.no_repeat_ngram
        if self.max_length is not None:
            least, most = min(least, self.max_length - 1), self.max_length
        if self.method == "greedy":
            return Greedy(min_length=least, max_length=most, no_repeat_ngram=repeat)
        if self.method == "sample":
            return Sampling(
                min_length=least,
                max_length=most,
                no_repeat_ngram=repeat,
                temperature=self.temperature,
                top_p=self.top_p,
                seed=self.seed,
                samples=self.captions,
            )
        return BeamSearch(
            min_length=least,
            max_length=most,
            no_repeat_ngram=repeat,
            width=max(DEFAULT_BEAM, self.captions) if self.beam is None else self.beam,
            length_penalty=penalty if self.length_penalty is None else self.length_penalty,
            captions=self.captions,
            consensus=self.consensus,
        )
