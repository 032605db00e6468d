"""Records: what is reported about an image, as plain data for JSON."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from captioner.errors import ImageError

if TYPE_CHECKING:
    from captioner.caption import Caption, Captioned
    from captioner.inspection.trace import AttentionTrace

LOW_CONFIDENCE = "low_confidence"
UNFAMILIAR = "unfamiliar"
UNFAMILIAR_SENTENCE = "unlike the photos this model was trained on; its caption may be wrong"
DIGITS = 4
"""Decimals of a caption's numbers; further ones depend on the shape of the batch."""
UNFAMILIARITY_DIGITS = 2
"""Decimals of the distance from training photos."""
TRACE_DIGITS = 6
"""Decimals of a trace's numbers: the precision of float32."""
MEASURES = ("entropy", "peak", "null_mass", "prefix_mass", "padding_mass")


def caption_record(
    path: str, outcome: "Captioned | ImageError", *, model: str, prepend: str = "", min_confidence: float = 0.0
) -> dict[str, Any]:
    """The record of an input, as JSONL holds it; `{"path", "error"}` for one that failed.

    `prepend` goes before `caption`, but not into `captions`, the model's own. A confidence below `min_confidence` adds
    the note `low_confidence`, a photo unlike the training photos the note `unfamiliar`. What a model is not fitted for
    is left out.
    """
    if isinstance(outcome, ImageError):
        return {"path": path, "error": {"code": outcome.code, "message": str(outcome)}}
    caption = outcome.caption
    measured = caption.unfamiliarity
    flags = {UNFAMILIAR: caption.unfamiliar, LOW_CONFIDENCE: caption.confidence < min_confidence}
    return {
        "path": path,
        "sha256": outcome.sha256,
        "caption": prepend + caption.text,
        "log_prob": round(caption.log_prob, DIGITS),
        "confidence": round(caption.confidence, DIGITS),
        **({} if measured is None else {"unfamiliarity": round(measured, UNFAMILIARITY_DIGITS)}),
        **({} if caption.style is None else {"style": caption.style}),
        "captions": [_caption(each) for each in (caption, *caption.alternatives)],
        "width": outcome.width,
        "height": outcome.height,
        "model": model,
        "notes": [*outcome.notes, *(name for name, holds in flags.items() if holds)],
    }


def trace_record(
    trace: "AttentionTrace",
    *,
    layer: int | None = None,
    head: int | None = None,
    heads: Sequence[tuple[int, int]] | None = None,
) -> dict[str, Any]:
    """A trace as plain data, with a map (h, w) a word on `grid`; layers, heads as in `AttentionTrace.select`.

    `null_mass` is null where the model has no null patch.
    """
    chosen = trace.select(layer, head, heads)
    missing = [None] * len(trace.words)
    columns: dict[str, Sequence[float | None]] = {"log_prob": trace.log_probs, "need": trace.needs or missing}
    columns |= {name: getattr(chosen, name).tolist() for name in MEASURES}
    if not trace.has_null_patch:
        columns["null_mass"] = missing
    words = []
    for place, text in enumerate(trace.words):
        word: dict[str, Any] = {"text": text}
        for name, values in columns.items():
            value = values[place]
            word[name] = None if value is None else round(value, TRACE_DIGITS)
        word["map"] = [[round(value, TRACE_DIGITS) for value in row] for row in chosen.patches(place).tolist()]
        if place in trace.hallucination:
            word["hallucination"] = round(trace.hallucination[place], TRACE_DIGITS)
        words.append(word)
    return {
        "caption": trace.text,
        "grid": list(trace.map_grid),
        "geometry": trace.geometry.to_dict(),
        "method": trace.method,
        "layer": "mean" if layer is None else layer,
        "head": "mean" if head is None else head,
        **({"heads": [list(pair) for pair in heads]} if heads else {}),
        "words": words,
    }


def _caption(caption: "Caption") -> dict[str, Any]:
    words = []
    for word in caption.words:
        measured = {} if word.confidence is None else {"confidence": round(word.confidence, DIGITS)}
        words.append({"text": word.text, "log_prob": round(word.log_prob, DIGITS), **measured})
    return {"text": caption.text, "log_prob": round(caption.log_prob, DIGITS), "words": words}
