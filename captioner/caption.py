"""Captions of image memory: text, words and probabilities."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from captioner.generation import Hypothesis, Strategy, generate
from captioner.model.decoder import TextDecoder
from captioner.model.memory import Memory
from captioner.tokenizer import Tokenizer


@dataclass(frozen=True)
class CaptionWord:
    """A word and the natural logarithm of its probability."""

    text: str
    log_prob: float


@dataclass(frozen=True)
class Caption:
    """A caption with its probability, and the runners-up where several captions were requested."""

    text: str
    log_prob: float
    """Sum of the natural-log probabilities of its tokens, the end token included; no length penalty."""
    words: tuple[CaptionWord, ...]
    tokens: tuple[int, ...]
    """Without the start token; the end token is there unless the caption was cut off."""
    alternatives: tuple["Caption", ...] = ()
    cut_off: bool = False
    """Whether the caption reached the maximum length before its end."""

    @property
    def confidence(self) -> float:
        """The geometric mean of the tokens' probabilities."""
        return math.exp(self.log_prob / max(1, len(self.tokens)))


@dataclass(frozen=True)
class Captioned:
    """A captioned image; `width` and `height` are those of the upright photo."""

    caption: Caption
    width: int
    height: int
    sha256: str | None
    notes: tuple[str, ...]


def caption_memory(
    decoder: TextDecoder,
    tokenizer: Tokenizer,
    memory: Memory,
    search: Strategy,
    *,
    prefix: Sequence[int] = (),
    keys: Sequence[str] | None = None,
) -> list[list[Caption]]:
    """The captions of each image of a memory, best first; `prefix` and `keys` are those of `generate`."""
    # A model of few positions writes shorter captions than the default allows.
    most = min(search.max_length, decoder.config.max_length - 1)
    found = generate(
        decoder,
        memory,
        replace(search, max_length=most, min_length=min(search.min_length, most - 1)),
        bos=tokenizer.bos,
        eos=tokenizer.eos,
        pad=tokenizer.pad,
        suppressed=tokenizer.suppressed,
        prefix=prefix,
        keys=keys,
    )
    return [[_to_caption(tokenizer, hypothesis) for hypothesis in hypotheses] for hypotheses in found]


def _to_caption(tokenizer: Tokenizer, hypothesis: Hypothesis) -> Caption:
    tokens, log_probs = hypothesis
    words = tuple(
        CaptionWord(word.text, math.fsum(log_probs[word.start : word.stop])) for word in tokenizer.words(tokens)
    )
    cut_off = tokenizer.eos not in tokens
    return Caption(tokenizer.decode(tokens), hypothesis.log_prob, words, tuple(tokens), cut_off=cut_off)
