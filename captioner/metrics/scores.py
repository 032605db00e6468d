"""All metrics of captions and their references, for the corpus and for every image.

I images, in the candidates' order · B resamples
"""

import hashlib
import json
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import lru_cache, partial
from importlib.metadata import PackageNotFoundError, version
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from captioner.errors import AnnotationError, ConfigError, InputError
from captioner.metrics.bleu import bleu
from captioner.metrics.cider import cider_d
from captioner.metrics.meteor import meteor
from captioner.metrics.metric import Captions, Result
from captioner.metrics.object_words import object_words
from captioner.metrics.ptb import TOKENIZERS
from captioner.metrics.rouge import rouge_l
from captioner.metrics.significance import RESAMPLES, SEED, interval, resample
from captioner.metrics.spice import check_folder, spice

TokenizerName: TypeAlias = Literal["ptb", "char", "none"]

METRICS: dict[str, Callable[[Captions], Result]] = {
    "bleu": bleu,
    "rouge_l": rouge_l,
    "cider_d": cider_d,
    "meteor": meteor,
    "object_words": object_words,
}
"""The metrics by the names that users give; there is also `spice`, which needs its folder."""
DEFAULT_METRICS = ("bleu", "rouge_l", "cider_d")

_VERSIONS = {"meteor": "meteor-1.5", "spice": "spice-1.0"}


@dataclass(frozen=True)
class Scores:
    """Scores of a set of captions, as fractions."""

    corpus: dict[str, float | None]
    """None where a metric is undefined."""
    per_image: dict[str, NDArray[np.float64]]
    """(I,) each; NaN where a metric is undefined."""
    images: tuple[str, ...]
    """(I,) the ids, as strings."""
    signature: str
    """Everything that determines the numbers: version, tokenizer, metrics, references."""
    reasons: dict[str, str]
    """Why a metric is None."""
    notes: tuple[str, ...]
    """Remarks for the user."""
    captions: Captions = field(repr=False)
    """The tokenized captions."""
    results: tuple[Result, ...] = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """The report of `captioner score`, in JSON types."""
        report = {
            "metrics": self.corpus,
            "intervals": self.intervals(),
            "images": len(self.images),
            "signature": self.signature,
        }
        return report | ({"reasons": self.reasons} if self.reasons else {})

    def intervals(self, resamples: int = RESAMPLES, seed: int = SEED) -> dict[str, tuple[float, float] | None]:
        """95 % bootstrap intervals over images; None where a metric is undefined, and for a single image."""
        samples = self._resample(resamples, seed)
        return {name: self._interval(value, samples[name]) for name, value in self.corpus.items()}

    def compare(self, other: "Scores", resamples: int = RESAMPLES, seed: int = SEED) -> dict[str, dict[str, Any]]:
        """Metric -> `difference` (this minus the other) and its 95 % `interval` over resamples of the same images.

        Raises ConfigError unless both are scores of the same images and references.
        """
        if (self.images, self.signature) != (other.images, other.signature):
            raise ConfigError(f"scores of {other.signature} cannot be compared with those of {self.signature}")
        samples, other_samples = (each._resample(resamples, seed) for each in (self, other))
        compared = {}
        for name, value in self.corpus.items():
            other_value = other.corpus[name]
            difference = None if value is None or other_value is None else value - other_value
            found = self._interval(difference, samples[name] - other_samples[name])
            compared[name] = {"difference": difference, "interval": found}
        return compared

    def _resample(self, resamples: int, seed: int) -> dict[str, NDArray[np.float64]]:
        """Metric -> its scores (B,) for resamples of the images."""
        pairs = ((result.names, resample(result.statistics, resamples, seed).T) for result in self.results)
        return {name: samples for names, columns in pairs for name, samples in zip(names, columns, strict=True)}

    def _interval(self, value: float | None, samples: NDArray[np.float64]) -> tuple[float, float] | None:
        return None if value is None or len(self.images) == 1 else interval(samples)


def score_captions(
    candidates: Mapping[Any, str],
    references: Mapping[Any, Sequence[str]],
    metrics: Sequence[str] = DEFAULT_METRICS,
    tokenizer: TokenizerName = "ptb",
) -> dict[str, float | None]:
    """Metric -> its value for the corpus, a fraction; None for CIDEr-D of one image, which is undefined.

    Raises AnnotationError, naming the id, for captions that cannot be scored.
    """
    return score(candidates, references, metrics, tokenizer).corpus


def score(
    candidates: Mapping[Any, str],
    references: Mapping[Any, Sequence[str]],
    metrics: Sequence[str] = DEFAULT_METRICS,
    tokenizer: TokenizerName = "ptb",
    spice_dir: Path | None = None,
) -> Scores:
    """Score one caption an image, in the candidates' order, against the references of the same id (1 equals "1").

    Raises AnnotationError, naming the id, for captions that cannot be scored; ConfigError for an unknown metric or
    tokenizer; InputError for no candidates; ResourceError where METEOR or SPICE cannot run.
    """
    metrics = check_metrics([metrics] if isinstance(metrics, str) else metrics, spice_dir)
    if tokenizer not in TOKENIZERS:
        raise ConfigError(f"tokenizer {tokenizer}: not known; choose from {', '.join(TOKENIZERS)}")
    candidates, references = _by_id(candidates, "candidates"), _by_id(references, "references")
    if not candidates:
        raise InputError("no candidates: nothing to score; give a caption for each image")
    for image, caption in candidates.items():
        _check_text("candidates", image, caption)
    used = {image: _references(image, references) for image in candidates}

    words = iter(_tokenize(tuple(chain.from_iterable(used.values())), tokenizer))
    tokenized = [list(islice(words, len(each))) for each in used.values()]
    captions = Captions(TOKENIZERS[tokenizer](list(candidates.values())), tokenized)
    compute = METRICS | {"spice": partial(spice, folder=spice_dir)}
    results = tuple(compute[metric](captions) for metric in metrics)

    corpus: dict[str, float | None] = {}
    per_image: dict[str, NDArray[np.float64]] = {}
    reasons: dict[str, str] = {}
    for result in results:
        for name, value, column in zip(result.names, result.corpus.tolist(), result.per_image.T, strict=True):
            corpus[name], per_image[name] = value, column
            if np.isnan(value):
                corpus[name], reasons[name] = None, result.undefined
    unused = len(references) - len(used)
    notes = (f"{unused} images with references have no candidate; they are left out",) if unused else ()
    signature = _signature(tokenizer, metrics, used)
    return Scores(corpus, per_image, tuple(candidates), signature, reasons, notes, captions, results)


def check_metrics(metrics: Sequence[str], spice_dir: Path | None = None) -> tuple[str, ...]:
    """The metrics, each once. Raises ConfigError for an unknown one, ResourceError for an incomplete SPICE."""
    known = (*METRICS, "spice")
    for metric in metrics:
        if metric not in known:
            close = get_close_matches(metric.lower(), known, n=1, cutoff=0.55)
            hint = f"did you mean {close[0]}?" if close else f"choose from {', '.join(known)}"
            raise ConfigError(f"metric {metric}: not known; {hint}")
    if "spice" in metrics:
        check_folder(spice_dir)
    return tuple(dict.fromkeys(metrics))


def _by_id(captions: Mapping[Any, Any], what: str) -> dict[str, Any]:
    """The captions by ids as strings: JSON's keys are strings, COCO's ids are numbers."""
    if not isinstance(captions, Mapping):
        raise AnnotationError(f"{what}: {type(captions).__name__}, not a mapping; give a dict by image id")
    found: dict[str, Any] = {}
    for image, value in captions.items():
        if isinstance(image, bool) or not isinstance(image, int | np.integer | str):
            raise AnnotationError(f"{what}: id {reprlib.repr(image)}: not an integer or a string; give one")
        if str(image) in found:
            raise AnnotationError(f"{what}: image {image}: twice, as a number and as a string; keep one of them")
        found[str(image)] = value
    return found


def _references(image: str, references: Mapping[str, Any]) -> Sequence[str]:
    captions = [] if references.get(image) is None else references[image]
    if not isinstance(captions, list | tuple):
        given = reprlib.repr(captions)
        raise AnnotationError(f"references: image {image}: {given} is not a list of strings; make it one")
    if not captions:
        raise AnnotationError(f"references: image {image}: none, though it has a candidate; add some, or leave it out")
    for caption in captions:
        _check_text("references", image, caption)
    return captions


def _check_text(what: str, image: str, caption: Any) -> None:
    if not isinstance(caption, str):
        raise AnnotationError(f"{what}: image {image}: {reprlib.repr(caption)} is not a string; correct or remove it")


@lru_cache(maxsize=1)
def _tokenize(captions: tuple[str, ...], tokenizer: TokenizerName) -> Sequence[str]:
    """Tokenized references, cached: in training and in comparisons they are often those of the last call."""
    return TOKENIZERS[tokenizer](captions)


def _signature(tokenizer: str, metrics: Sequence[str], references: Mapping[str, Sequence[str]]) -> str:
    try:
        release = version("captioner")
    except PackageNotFoundError:
        release = "0+unknown"  # run from a checkout that is not installed
    counts = sorted(map(len, references.values()))
    # White space changes no score, and some file formats change it.
    tidy = {image: [" ".join(text.split()) for text in texts] for image, texts in references.items()}
    content = json.dumps(tidy, sort_keys=True).encode()
    parts = {
        "captioner": release,
        "tok": tokenizer,
        "metrics": "+".join(_VERSIONS.get(metric, metric) for metric in metrics),
        "images": len(references),
        "refs": f"{counts[0]}-{counts[-1]}" if counts[0] < counts[-1] else counts[0],
        "hash": hashlib.sha256(content).hexdigest()[:12],
    }
    return "|".join(f"{key}:{value}" for key, value in parts.items())
