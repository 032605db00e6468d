"""How well a split is captioned: captions from features or memory, their scores, and what scores do not tell.

I images · B images of a batch · N memory positions · E encoder width
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from captioner.caption import Caption, caption_memory
from captioner.generation import Strategy
from captioner.metrics.object_words import chair
from captioner.metrics.ptb import TOKENIZERS
from captioner.metrics.scores import DEFAULT_METRICS, Scores, TokenizerName, score
from captioner.model.decoder import TextDecoder
from captioner.model.memory import Memory
from captioner.model.packed import pack
from captioner.tokenizer import Tokenizer

ImageId: TypeAlias = int | str

BAD_ENDINGS = frozenset(
    (
        *("a", "an", "the", "this", "that", "his", "her", "its", "their", "two", "three", "and", "or", "but", "while"),
        *("of", "with", "in", "at", "on", "for", "from", "to", "by", "near", "into", "as", "is", "are", "was", "be"),
        *("being", "which", "who"),
    )
)
"""Words that hardly end a sentence. "with his hat on" does: a few captions are counted wrongly, of any system."""


@dataclass(frozen=True)
class Habits:
    """What captions are like, whether or not they are right; shares are fractions of the captions."""

    distinct_captions: float
    distinct_1: float
    """Different words among all words (Li et al. 2016)."""
    distinct_2: float
    """Different bigrams among all bigrams."""
    vocabulary: int
    """Different words that are used."""
    novel: float | None
    """Captions that are not among those of the training split; None where there is none to compare with."""
    mean_length: float
    """Words, punctuation left out."""
    shortest: int
    longest: int
    reference_length: float
    """Mean words of the references."""
    repeated_bigrams: float
    """Captions in which a bigram comes twice."""
    cut_off: float
    """Captions that stop at the longest length allowed, or on a word such as `a` or `with`."""
    object_precision: float | None
    """Objects that captions name and a reference has too, among all they name; None where they name none."""
    object_recall: float | None


@dataclass(frozen=True)
class Evaluation:
    """Captions of a split and what they are worth."""

    captions: Mapping[ImageId, Caption]
    references: Mapping[ImageId, Sequence[str]]
    scores: Scores
    habits: Habits
    chair: Mapping[str, float | None] | None = None
    """`instances` and `sentences` (Rohrbach et al. 2018), where the objects in the images are known."""

    def to_dict(self) -> dict[str, Any]:
        """What `captioner evaluate` prints: JSON types only."""
        report = self.scores.to_dict() | {"captions": asdict(self.habits)}
        return report if self.chair is None else report | {"chair": dict(self.chair)}

    def results(self) -> list[dict[str, ImageId | str]]:
        """The captions in COCO's results format."""
        return [{"image_id": image, "caption": caption.text} for image, caption in self.captions.items()]

    def ranked(self) -> tuple[str, list[ImageId]]:
        """The metric that ranks images, and their ids, the worst first; equal ones in their order."""
        metric = "cider_d" if self.scores.corpus.get("cider_d") is not None else next(iter(self.scores.per_image))
        images = list(self.captions)
        order = np.argsort(np.nan_to_num(self.scores.per_image[metric], nan=-1.0), kind="stable")
        return metric, [images[place] for place in order]


def caption_features(
    decoder: TextDecoder,
    tokenizer: Tokenizer,
    batches: Iterable[tuple[Sequence[ImageId], Tensor | Memory]],
    search: Strategy,
) -> dict[ImageId, Caption]:
    """The best caption of each image, from features (B, N, E) or from memory; an image that comes again is passed over.

    Sampling's noise depends on the images' ids.
    """
    captions: dict[ImageId, Caption] = {}
    decoder = pack(decoder)
    for images, seen in batches:
        first = {image: place for place, image in reversed(list(enumerate(images))) if image not in captions}
        if not first:
            continue
        places = torch.tensor(sorted(first.values()))
        chosen = [images[place] for place in places.tolist()]
        if isinstance(seen, Tensor):
            with torch.inference_mode():
                memory = decoder.project(seen[places.to(seen.device)].to(decoder.token_embedding.weight.dtype))
        else:
            memory = seen.select(places.to(seen.layers[0].keys.device))
        found = caption_memory(decoder, tokenizer, memory, search, keys=[str(image) for image in chosen])
        captions.update((image, best) for image, [best, *_] in zip(chosen, found, strict=True))
    return captions


def evaluate_captions(
    captions: Mapping[ImageId, Caption],
    references: Mapping[ImageId, Sequence[str]],
    *,
    known: Collection[str] = (),
    objects: Mapping[ImageId, Collection[str]] | None = None,
    metrics: Sequence[str] = DEFAULT_METRICS,
    tokenizer: TokenizerName = "ptb",
    spice_dir: Path | None = None,
) -> Evaluation:
    """Score a caption an image against the references of the same id.

    `known` are the captions of the training split; `objects` the COCO categories that are in each image, for CHAIR.
    Raises what `score` raises.
    """
    chosen = {image: references[image] for image in captions if image in references}
    texts = {image: caption.text for image, caption in captions.items()}
    scores = score(texts, chosen, metrics, tokenizer, spice_dir)
    found = score(texts, chosen, ["object_words"], tokenizer).corpus
    tokenize = TOKENIZERS[tokenizer]
    words = [each.split() for each in tokenize(list(texts.values()))]
    habits = _habits(
        words,
        cut_off=[caption.cut_off for caption in captions.values()],
        references=tokenize([text for each in chosen.values() for text in each]),
        known=set(tokenize(list(known))),
        objects=found,
    )
    shares = None
    if objects is not None:
        wrong = chair([" ".join(each) for each in words], [objects[image] for image in captions])
        shares = {"instances": _number(wrong.instances), "sentences": _number(wrong.sentences)}
    return Evaluation(dict(captions), chosen, scores, habits, shares)


def _habits(
    captions: list[list[str]],
    *,
    cut_off: list[bool],
    references: Sequence[str],
    known: Collection[str],
    objects: Mapping[str, float | None],
) -> Habits:
    words = [word for caption in captions for word in caption]
    pairs = [list(pairwise(caption)) for caption in captions]
    flat = [pair for each in pairs for pair in each]
    lengths = [len(caption) for caption in captions]
    unfinished = [
        early or (bool(caption) and caption[-1] in BAD_ENDINGS)
        for caption, early in zip(captions, cut_off, strict=True)
    ]
    return Habits(
        distinct_captions=len(set(map(tuple, captions))) / len(captions),
        distinct_1=len(set(words)) / max(1, len(words)),
        distinct_2=len(set(flat)) / max(1, len(flat)),
        vocabulary=len(set(words)),
        novel=fmean(" ".join(caption) not in known for caption in captions) if known else None,
        mean_length=fmean(lengths),
        shortest=min(lengths),
        longest=max(lengths),
        reference_length=fmean(len(reference.split()) for reference in references),
        repeated_bigrams=fmean(len(set(each)) < len(each) for each in pairs),
        cut_off=fmean(unfinished),
        object_precision=objects["object_precision"],
        object_recall=objects["object_recall"],
    )


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return None if np.isnan(value) else value
