"""All metrics of captions and their references, for the corpus and for every image.

I images, in the candidates' order · M names of a metric
"""

import hashlib
import json
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import lru_cache
from itertools import chain
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
from captioner.metrics.ptb import LINE_BREAKS, TOKENIZERS
from captioner.metrics.rouge import rouge_l
from captioner.metrics.significance import RESAMPLES, SEED, interval, resample
from captioner.metrics.spice import check_folder, spice

TokenizerName: TypeAlias = Literal["ptb", "char", "none"]

METRICS: dict[str, Callable[[Captions], Result] | None] = {
    "bleu": bleu,
    "rouge_l": rouge_l,
    "cider_d": cider_d,
    "meteor": meteor,
    "spice": None,
    "object_words": object_words,
}
"""The metrics by the names that users give; `spice` needs its folder as well."""
DEFAULT_METRICS = ("bleu", "rouge_l", "cider_d")

ALIASES = {
    "cider": "cider_d",
    "ciderd": "cider_d",
    "rouge": "rouge_l",
    "objects": "object_words",
    **{f"bleu_{order}": "bleu" for order in range(1, 5)},
    **{f"bleu{order}": "bleu" for order in range(1, 5)},
    **{f"object_{kind}": "object_words" for kind in ("precision", "recall")},
}
"""Names that users may mistake for a metric's -> the metric's name."""

_VERSIONS = {"meteor": "meteor-1.5", "spice": "spice-1.0"}


@dataclass(frozen=True)
class Scores:
    """Scores of a set of captions, as fractions."""

    corpus: dict[str, float | None]
    """None where a metric is undefined."""
    per_image: dict[str, NDArray[np.float64]]
    """(I,) each; NaN where a metric is undefined."""
    images: tuple[str, ...]
    """(I,) the ids, as texts."""
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
        """95 % bootstrap intervals over images; None where a metric is undefined, and of one image."""
        return self._spread(lambda index: resample(self.results[index].statistics, resamples, seed), self.corpus)

    def compare(self, other: "Scores", resamples: int = RESAMPLES, seed: int = SEED) -> dict[str, dict[str, Any]]:
        """Metric -> `difference` (this minus the other) and its 95 % `interval`, the same images being drawn for both.

        Raises ConfigError where the two are not of the same images and references.
        """
        if (self.images, self.signature) != (other.images, other.signature):
            raise ConfigError(f"scores of {other.signature} cannot be compared with those of {self.signature}")

        def pairs(index: int) -> NDArray[np.float64]:
            mine, others = (each.results[index].statistics for each in (self, other))
            return resample(mine, resamples, seed) - resample(others, resamples, seed)

        differences: dict[str, float | None] = {}
        for name, value in self.corpus.items():
            another = other.corpus[name]
            differences[name] = None if value is None or another is None else value - another
        found = self._spread(pairs, differences)
        return {name: {"difference": differences[name], "interval": found[name]} for name in differences}

    def _spread(
        self, values: Callable[[int], NDArray[np.float64]], corpus: Mapping[str, float | None]
    ) -> dict[str, tuple[float, float] | None]:
        """The interval of each metric that has a corpus value, from the resamples (B, M) of each result."""
        found: dict[str, tuple[float, float] | None] = dict.fromkeys(corpus)
        if len(self.images) > 1:
            for index, result in enumerate(self.results):
                for name, samples in zip(result.names, values(index).T, strict=True):
                    found[name] = None if corpus[name] is None else interval(samples)
        return found


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
    texts, all_references = _by_id(candidates, "candidates"), _by_id(references, "references")
    if not texts:
        raise InputError("no candidates: nothing to score; give a caption for each image")
    images = tuple(texts)
    own = [_candidate(image, text) for image, text in texts.items()]
    others = [_references(image, all_references) for image in images]

    sizes = [len(each) for each in others]
    words = iter(_tokenized(tuple(chain.from_iterable(others)), tokenizer))
    tokenized = [[next(words) for _ in range(size)] for size in sizes]
    captions = Captions(TOKENIZERS[tokenizer](own), tokenized)
    results = tuple(_compute(metric, captions, spice_dir) for metric in metrics)

    unused = len(all_references) - len(images)
    corpus: dict[str, float | None] = {}
    reasons: dict[str, str] = {}
    for result in results:
        for name, value in zip(result.names, result.corpus.tolist(), strict=True):
            corpus[name] = None if np.isnan(value) else value
            if np.isnan(value):
                reasons[name] = result.reason
    return Scores(
        corpus,
        {name: result.per_image[:, column] for result in results for column, name in enumerate(result.names)},
        images,
        _signature(tokenizer, metrics, dict(zip(images, others, strict=True))),
        reasons,
        (f"{unused} images with references have no candidate; they are left out",) if unused else (),
        captions,
        results,
    )


def check_metrics(metrics: Sequence[str], spice_dir: Path | None = None) -> tuple[str, ...]:
    """The metrics, each once. Raises ConfigError for an unknown one, ResourceError for a SPICE that is not there."""
    for metric in metrics:
        if metric not in METRICS:
            known = [*METRICS, *ALIASES]
            close = [ALIASES.get(name, name) for name in get_close_matches(metric.lower(), known, n=1)]
            hint = f"did you mean {close[0]}?" if close else f"choose from {', '.join(METRICS)}"
            raise ConfigError(f"metric {metric}: not known; {hint}")
    if "spice" in metrics:
        if spice_dir is None:
            raise ConfigError("metric spice: needs the folder of SPICE 1.0; give spice_dir (--spice-dir)")
        check_folder(spice_dir)
    return tuple(dict.fromkeys(metrics))


def _compute(metric: str, captions: Captions, spice_dir: Path | None) -> Result:
    compute = METRICS[metric]
    if compute is not None:
        return compute(captions)
    assert spice_dir is not None
    return spice(captions, spice_dir)


def _by_id(captions: Mapping[Any, Any], what: str) -> dict[str, Any]:
    """The captions by ids as texts: JSON's keys are texts, COCO's ids are numbers."""
    if not isinstance(captions, Mapping):
        raise AnnotationError(f"{what}: {type(captions).__name__}, not a mapping; give a dict by image id")
    found: dict[str, Any] = {}
    for image, value in captions.items():
        if isinstance(image, bool) or not isinstance(image, int | np.integer | str):
            raise AnnotationError(f"{what}: id {reprlib.repr(image)}: not an integer or a text; give one")
        if str(image) in found:
            raise AnnotationError(f"{what}: image {image}: twice, as a number and as a text; keep one of them")
        found[str(image)] = value
    return found


def _candidate(image: str, caption: Any) -> str:
    if not isinstance(caption, str):
        raise AnnotationError(f"candidates: image {image}: {reprlib.repr(caption)} is not a text; give it one caption")
    return caption.translate(LINE_BREAKS)


def _references(image: str, references: Mapping[str, Any]) -> list[str]:
    captions = references.get(image)
    if captions is None or (isinstance(captions, list | tuple) and not captions):
        raise AnnotationError(f"references: image {image}: none, though it has a candidate; add some, or leave it out")
    if not isinstance(captions, list | tuple):
        raise AnnotationError(
            f"references: image {image}: {reprlib.repr(captions)} is not a list of texts; make it one"
        )
    for caption in captions:
        if not isinstance(caption, str):
            raise AnnotationError(
                f"references: image {image}: {reprlib.repr(caption)} is not a text; mend or remove it"
            )
    return [caption.translate(LINE_BREAKS) for caption in captions]


@lru_cache(maxsize=1)
def _tokenized(captions: tuple[str, ...], tokenizer: TokenizerName) -> Sequence[str]:
    """Tokenized references, cached: in training and in comparisons they are often those of the last call."""
    return TOKENIZERS[tokenizer](captions)


def _signature(tokenizer: str, metrics: Sequence[str], references: Mapping[str, list[str]]) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        release = version("captioner")
    except PackageNotFoundError:
        release = "0+unknown"
    counts = sorted({len(each) for each in references.values()})
    # White space changes no score, and some file formats change it.
    tidy = {image: [" ".join(text.split()) for text in texts] for image, texts in references.items()}
    content = json.dumps(tidy, sort_keys=True).encode()
    parts = {
        "captioner": release,
        "tok": tokenizer,
        "metrics": "+".join(_VERSIONS.get(metric, metric) for metric in metrics),
        "images": len(references),
        "refs": counts[0] if len(counts) == 1 else f"{counts[0]}-{counts[-1]}",
        "hash": hashlib.sha256(content).hexdigest()[:12],
    }
    return "|".join(f"{key}:{value}" for key, value in parts.items())


ALIASES = {
    "cider": "cider_d",
    "ciderd": "cider_d",
    "rouge": "rouge_l",
    "objects": "object_words",
    **{f"bleu_{order}": "bleu" for order in range(1, 5)},
    **{f"bleu{order}": "bleu" for order in range(1, 5)},
    **{f"object_{kind}": "object_words" for kind in ("precision", "recall")},
}
"""What a metric may also be called -> its name."""

_VERSIONS = {"meteor": "meteor-1.5", "spice": "spice-1.0"}
