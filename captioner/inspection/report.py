"""An interactive report: one HTML file, without network access, with the maps of a photo's captions.

W words · L layers · H heads · h·w patches
"""

import base64
import io
import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from PIL import Image

from captioner.images import open_image
from captioner.inspection.legend import (
    BRIGHT,
    COLORS,
    DEFINITION,
    HALLUCINATION_THRESHOLD,
    LABEL,
    shared_scale_end,
    why_faint,
)
from captioner.inspection.trace import TINY, AttentionTrace
from captioner.templates import html_text, render_page

PHOTO_SIDE = 1024
"""Longest side of the photo in a report, in pixels."""
THUMBNAIL_SIDE = 480
MAX_PHOTO_BYTES, MAX_THUMBNAIL_BYTES = 300_000, 30_000
"""The JPEG quality is lowered until a picture fits."""
QUALITIES = (88, 80, 70, 60, 50, 40, 30)
INDEX_IMAGES = 10
"""Maximum number of captions among the worst, and among the best, on an index page."""
MAX_NUMBER = 1e9
"""Infinite numbers are written as this one."""
FRAME = (
    '<iframe srcdoc="{page}" sandbox="allow-scripts" title="{title}" style="width:100%;height:52rem;border:0"></iframe>'
)


def render_report(trace: AttentionTrace, *, name: str = "", model: str = "", index: str = "") -> str:
    """The HTML page of a trace and its alternatives; `index` names a page beside it to go back to.

    No request leaves the page: its content security policy allows its own script and style only, by their hashes.
    """
    photo = trace.photo.convert("RGB")
    photo.thumbnail((PHOTO_SIDE, PHOTO_SIDE), Image.Resampling.LANCZOS)
    data = {
        "width": photo.width,
        "height": photo.height,
        "colors": _base64(COLORS.tobytes()),
        "methods": {
            method: {"label": LABEL[method], "bright": BRIGHT[method], "definition": DEFINITION[method]}
            for method in LABEL
        },
        "captions": [_caption(each) for each in (trace, *trace.alternatives)],
    }
    back = f'<p><a href="{_address(index)}">All photos</a></p>' if index else ""
    texts = {
        "title": f"{trace.text or name} · captioner",
        "name": name,
        "caption": trace.text,
        "model": f"Captioned with the model “{model}”." if model else "",
    }
    page = {key: html_text(text) for key, text in texts.items()}
    return render_page(
        "inspection/report.html", page | {"back": back, "photo": _data_uri(photo, MAX_PHOTO_BYTES), "data": _json(data)}
    )


def render_frame(trace: AttentionTrace) -> str:
    """The report in an `iframe` that stands on its own, for notebooks."""
    return FRAME.format(page=escape(render_report(trace)), title=html_text(trace.text))


@dataclass(frozen=True)
class IndexEntry:
    """A photo on an index page."""

    photo: Path
    caption: str
    score: float
    """The score by which photos are ranked."""
    href: str = ""
    """The file name of its report; empty if it has none."""
    references: Sequence[str] = ()
    note: str = ""


def render_index(entries: Sequence[IndexEntry], *, measure: str, model: str) -> str:
    """A page of the worst and the best captions by a measure, with thumbnails; all others are listed below them."""
    ranked = sorted(entries, key=lambda entry: entry.score)
    count = min(INDEX_IMAGES, -(-len(ranked) // 2))
    worst, best = ranked[:count], ranked[count:][-count:][::-1]
    sections = [
        f"<h2>{heading} {measure}</h2><div class=photos>{''.join(_figure(each, measure) for each in chosen)}</div>"
        for heading, chosen in (("Highest", best), ("Lowest", worst))
        if chosen
    ]
    if others := ranked[count : len(ranked) - len(best)]:
        items = (f"<li>{_link(each, html_text(each.photo.name))} {html_text(each.caption)}</li>" for each in others)
        sections.append(f"<h2>All others</h2><ul class=others>{''.join(items)}</ul>")
    page = {"model": html_text(model), "count": str(len(entries)), "sections": "".join(sections)}
    return render_page("inspection/index.html", page)


def thumbnail(path: Path) -> str:
    """A small copy of a photo as a data URI."""
    photo = open_image(path).image
    photo.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.LANCZOS)
    return _data_uri(photo, MAX_THUMBNAIL_BYTES)


def _figure(entry: IndexEntry, measure: str) -> str:
    name = html_text(entry.photo.name)
    image = f'<img src="{thumbnail(entry.photo)}" alt="{name}">'
    references = "".join(f"<li>{html_text(text)}</li>" for text in entry.references)
    note = f"<p class=warning>{html_text(entry.note)}</p>" if entry.note else ""
    caption = html_text(entry.caption) or "(an empty caption)"
    return (
        f"<figure>{_link(entry, image)}<figcaption><b>{_link(entry, caption)}</b>"
        f"<ul>{references}</ul>{note}<small>{measure} {entry.score:.2f} · {name}</small></figcaption></figure>"
    )


def _link(entry: IndexEntry, content: str) -> str:
    return f'<a href="{_address(entry.href)}">{content}</a>' if entry.href else content


def _caption(trace: AttentionTrace) -> dict[str, Any]:
    """A trace as plain data for the page's script."""
    null_mass = trace.null_mass.tolist()
    words = []
    for word, text in enumerate(trace.words):
        chance = trace.hallucination.get(word)
        words.append(
            {
                "text": text,
                "probability": _number(math.exp(trace.log_probs[word])),
                "need": _number(trace.needs[word]) if trace.needs else None,
                "why_faint": why_faint(trace, word),
                "null_mass": _number(null_mass[word]) if trace.has_null_patch else None,
                "confidence": _number(trace.confidences[word]) if trace.confidences else None,
                "hallucination": None if chance is None else _number(chance),
                "doubtful": chance is not None and chance > HALLUCINATION_THRESHOLD,
                "next_best": [[text, _number(share)] for text, share in trace.next_best[word]]
                if trace.next_best
                else [],
            }
        )
    return {
        "text": trace.text,
        "confidence": _number(trace.confidence),
        "unfamiliar": trace.unfamiliar,
        "box": trace.geometry.box,
        "grid": trace.grid,
        "hidden": None if trace.visible is None else _base64((~trace.visible).astype(np.uint8).tobytes()),
        "words": words,
        "views": [_view(*each) for each in _selections(trace)],
    }


def _selections(trace: AttentionTrace) -> Iterator[tuple[AttentionTrace, AttentionTrace, int | None, int | str | None]]:
    """The trace by each method that it has, a selection of it, and the layer and head that were selected."""
    forms = [trace]
    if trace.contributions is not None:
        forms.append(replace(trace, method="relevance", contributions=None))
    if trace.evidence is not None:
        forms.append(replace(trace, method="raw", contributions=None, evidence=None))
    layers, heads = trace.weights.shape[1:3]
    for form in forms:
        yield form, form, None, None
        if form.method == "perturbation":
            continue
        if form.best_heads:
            yield form, form.select(heads=form.best_heads), None, "best"
        for layer in range(layers) if layers > 1 or heads > 1 else ():
            yield form, form.select(layer), layer, None
            for head in range(heads) if form.method == "raw" and heads > 1 else ():
                yield form, form.select(layer, head), layer, head


def _view(whole: AttentionTrace, trace: AttentionTrace, layer: int | None, head: int | str | None) -> dict[str, Any]:
    """The maps of a selection, 8 bits a patch, each on its own scale."""
    maps = np.array([trace.patches(word) for word in range(len(trace.words))], np.float32).reshape(-1, *trace.map_grid)
    scales = maps.max(axis=(1, 2))
    levels = np.round(255 * maps / np.maximum(scales, TINY)[:, None, None])
    share = math.prod(trace.weights.shape[1:3]) / math.prod(whole.weights.shape[1:3])
    return {
        "method": trace.method,
        "layer": layer,
        "head": head,
        "grid": trace.map_grid,
        "end": _number(shared_scale_end(scales.tolist(), trace, share)),
        "scales": [_number(each) for each in scales.tolist()],
        "entropy": [_number(each) for each in trace.entropy.tolist()],
        "values": _base64(levels.astype(np.uint8).tobytes()),
    }


def _address(name: str) -> str:
    """The relative address of a file by its name, of any characters or bytes."""
    return quote(os.fsencode(name))


def _json(data: Any) -> str:
    """JSON that no text in it can end the element of; control characters and lone surrogates are escaped."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026")


def _number(value: float) -> float:
    """Five significant digits; JSON has no infinity."""
    return float(f"{np.clip(np.nan_to_num(value), -MAX_NUMBER, MAX_NUMBER):.5g}")


def _data_uri(photo: Image.Image, most: int) -> str:
    """A photo as JPEG of at most so many bytes, if the lowest quality allows it, in a data URI."""
    for quality in QUALITIES:
        stream = io.BytesIO()
        photo.save(stream, format="JPEG", quality=quality)
        if stream.tell() <= most:
            break
    return f"data:image/jpeg;base64,{_base64(stream.getvalue())}"


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
