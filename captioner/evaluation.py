"""How well a split is captioned: captions from features or memory, their scores and their statistics.

I images · B images of a batch · N memory positions · E encoder width
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, pairwise
from pathlib import Path
from statistics import fmean
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from captioner.caption import Caption, caption_memory
from captioner.generation import Strategy
from captioner.metrics.metric import Captions
from captioner.metrics.object_words import NounList, chair, object_words
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
"""Words that rarely end a sentence; a few do ("with his hat on") and are miscounted, for every system alike."""


@dataclass(frozen=True)
class CaptionStatistics:
    """Diversity, length and completeness of captions, right or wrong; shares are fractions of the captions."""

    distinct_captions: float
    distinct_1: float
    """Different words among all words (Li et al. 2016)."""
    distinct_2: float
    """Different bigrams among all bigrams."""
    vocabulary: int
    """Different words."""
    novel: float | None
    """Captions that are not in the training split; None without one."""
    mean_length: float
    """Words, without punctuation."""
    shortest: int
    longest: int
    reference_length: float
    """Mean words of the references."""
    repeated_bigrams: float
    """Captions that repeat a bigram."""
    repeated_objects: float
    """Captions that name an object twice by the same words, as in "a stove and a stove"."""
    cut_off: float
    """Captions that end at the maximum length, or on a word such as `a` or `with`."""
    object_precision: float | None
    """Objects that captions name and a reference supports, among all they name; None where they name none."""
    object_recall: float | None


@dataclass(frozen=True)
class Evaluation:
    """Captions of a split with their scores and statistics."""

    captions: Mapping[ImageId, Caption]
    references: Mapping[ImageId, Sequence[str]]
    scores: Scores
    statistics: CaptionStatistics
    chair: Mapping[str, float | None] | None = None
    """`instances` and `sentences` (Rohrbach et al. 2018); None where the objects in the images are unknown."""

    def to_dict(self) -> dict[str, Any]:
        """The report of `captioner evaluate`, in JSON types."""
        report = self.scores.to_dict() | {"captions": asdict(self.statistics)}
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
    control: Sequence[int] = (),
) -> dict[ImageId, Caption]:
    """The best caption of each image, from features (B, N, E) or from memory; repeated images are skipped.

    `control` tokens choose a style. The noise of sampling depends on the images' ids.
    """
    captions: dict[ImageId, Caption] = {}
    decoder = pack(decoder)
    for images, source in batches:
        places = {image: place for place, image in reversed(list(enumerate(images))) if image not in captions}
        if not places:
            continue
        chosen = sorted(places, key=places.__getitem__)
        rows = torch.tensor([places[image] for image in chosen])
        if isinstance(source, Tensor):
            with torch.inference_mode():
                memory = decoder.project(source[rows.to(source.device)].to(decoder.token_embedding.weight.dtype))
        else:
            memory = source.select(rows.to(source.layers[0].keys.device))
        found = caption_memory(decoder, tokenizer, memory, search, control=control, keys=[*map(str, chosen)])
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
    """Score one caption an image against the references of the same id.

    `known` are the captions of the training split; `objects` the COCO categories that are in each image, for CHAIR.
    Raises the errors of `score`.
    """
    chosen = {image: references[image] for image in captions if image in references}
    texts = {image: caption.text for image, caption in captions.items()}
    scores = score(texts, chosen, metrics, tokenizer, spice_dir)
    statistics = caption_statistics(
        scores.captions,
        cut_off=[caption.cut_off for caption in captions.values()],
        known=set(TOKENIZERS[tokenizer](list(known))),
    )
    shares = None
    if objects is not None:
        found = chair(scores.captions.candidates, [objects[image] for image in captions])
        shares = {"instances": _nan_to_none(found.instances), "sentences": _nan_to_none(found.sentences)}
    return Evaluation(dict(captions), chosen, scores, statistics, shares)


def caption_statistics(
    captions: Captions, *, cut_off: Sequence[bool], known: Collection[str] = ()
) -> CaptionStatistics:
    """Statistics of tokenized captions (I).

    `cut_off` (I,) says which reached the maximum length; `known` are the tokenized captions of the training split.
    """
    nouns = NounList.bundled()
    split = [candidate.split() for candidate in captions.candidates]
    bigrams = [list(pairwise(words)) for words in split]
    lengths = [len(words) for words in split]
    reference_lengths = [len(reference.split()) for each in captions.references for reference in each]
    vocabulary = set(chain.from_iterable(split))
    precision, recall = map(_nan_to_none, object_words(captions).corpus.tolist())
    return CaptionStatistics(
        distinct_captions=len(set(map(tuple, split))) / len(split),
        distinct_1=len(vocabulary) / max(1, sum(lengths)),
        distinct_2=len(set(chain.from_iterable(bigrams))) / max(1, sum(map(len, bigrams))),
        vocabulary=len(vocabulary),
        novel=fmean(" ".join(words) not in known for words in split) if known else None,
        mean_length=fmean(lengths),
        shortest=min(lengths),
        longest=max(lengths),
        reference_length=fmean(reference_lengths),
        repeated_bigrams=fmean(len(set(each)) < len(each) for each in bigrams),
        repeated_objects=fmean(len(set(each)) < len(each) for each in map(nouns.names, split)),
        cut_off=fmean(
            stopped or not BAD_ENDINGS.isdisjoint(words[-1:]) for words, stopped in zip(split, cut_off, strict=True)
        ),
        object_precision=precision,
        object_recall=recall,
    )


def _nan_to_none(value: float) -> float | None:
    """JSON has no NaN."""
    return None if np.isnan(value) else value
