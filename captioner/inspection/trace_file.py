"""Traces as files: one .npz without pickles, with the photo as PNG and the rest as JSON.

W words · L layers · H heads · N memory positions · h·w patches
"""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from captioner.errors import InputError
from captioner.geometry import Geometry
from captioner.inspection.trace import METHODS, AttentionTrace
from captioner.text import first_line

FORMAT = 1
PLAIN_FIELDS = ("text", "words", "log_probs", "grid", "prefix", "method", "needs")
"""Fields of a trace that are saved as JSON."""
LATER_FIELDS = ("confidences", "next_best", "best_heads")
"""Fields that older files lack."""
ARRAYS = ("evidence", "contributions", "visible")
"""Fields that may be None."""
MAX_BYTES = 2**29
"""Most bytes of the unpacked arrays, and of the photo's pixels."""


def save_trace(trace: AttentionTrace, path: str | Path) -> None:
    """Write a trace, without its alternatives."""
    photo = io.BytesIO()
    trace.photo.save(photo, format="PNG")
    arrays: dict[str, Any] = {"weights": trace.weights, "photo": np.frombuffer(photo.getvalue(), np.uint8)}
    arrays |= {name: getattr(trace, name) for name in ARRAYS if getattr(trace, name) is not None}
    about = {"format": FORMAT, "geometry": trace.geometry.to_dict(), "hallucination": dict(trace.hallucination)}
    about["unfamiliarity"] = trace.unfamiliarity
    about |= {name: getattr(trace, name) for name in PLAIN_FIELDS + LATER_FIELDS}
    arrays["about"] = np.frombuffer(json.dumps(about, ensure_ascii=False).encode(), np.uint8)
    with Path(path).open("wb") as file:
        np.savez(file, **arrays)


def load_trace(path: str | Path) -> AttentionTrace:
    """The inverse of `save_trace`. Raises InputError for a file that is not a trace, or contradicts itself."""
    try:
        with Path(path).open("rb") as file:
            with zipfile.ZipFile(file) as archive:
                if sum(part.file_size for part in archive.infolist()) > MAX_BYTES:
                    raise ValueError(f"over {MAX_BYTES // 2**20} MiB unpacked")
            file.seek(0)
            with np.load(file, allow_pickle=False) as arrays:
                trace = _trace(arrays, json.loads(arrays["about"].tobytes()))
        _check(trace)
    except Exception as error:  # hostile bytes make decoders raise nearly anything
        raise InputError(
            f"{path}: not a trace ({first_line(error)}); give the .npz that a trace was saved to"
        ) from error
    return trace


def _trace(arrays: Any, about: dict[str, Any]) -> AttentionTrace:
    photo = Image.open(io.BytesIO(arrays["photo"].tobytes()), formats=["PNG"])
    if 4 * photo.width * photo.height > MAX_BYTES:
        raise ValueError(f"a photo of {photo.width} x {photo.height} pixels")
    photo.load()
    plain: Any = {name: _tuples(about[name]) for name in PLAIN_FIELDS}
    plain |= {name: _tuples(about.get(name, ())) for name in LATER_FIELDS}
    return AttentionTrace(
        **plain,
        geometry=Geometry.from_dict(about["geometry"]),
        hallucination={int(word): value for word, value in about.get("hallucination", {}).items()},
        unfamiliarity=about.get("unfamiliarity"),
        photo=photo,
        weights=arrays["weights"],
        **{name: arrays.get(name) for name in ARRAYS},
    )


def _check(trace: AttentionTrace) -> None:
    """Raise ValueError or TypeError for fields that do not fit together."""
    (height, width), geometry = trace.grid, trace.geometry
    sizes = [trace.prefix, height, width, *geometry.size, geometry.width, geometry.height]
    if not all(type(each) is int for each in sizes) or trace.prefix < 0 or min(sizes[1:]) < 1:  # true is no size
        raise ValueError("sizes that are no whole numbers above 0")
    count, (_, layers, heads, positions) = len(trace.words), trace.weights.shape
    numbers = [*trace.log_probs, *trace.needs, *trace.confidences, *trace.hallucination.values()]
    numbers += [probability for each in trace.next_best for _, probability in each]
    numbers += [] if trace.unfamiliarity is None else [trace.unfamiliarity]
    texts = [trace.text, *trace.words, *(token for each in trace.next_best for token, _ in each)]
    evidence, cells = trace.evidence, trace.contributions
    per_word = (trace.needs, trace.confidences, trace.next_best)
    fits = {
        "numbers": all(isinstance(each, int | float) for each in numbers),
        "texts": all(isinstance(each, str) for each in texts),
        "method": trace.method in METHODS and (evidence is None) == (trace.method == "raw"),
        "words": len(trace.weights) == len(trace.log_probs) == count and {len(each) for each in per_word} <= {0, count},
        "positions": trace.prefix + height * width <= positions,
        "evidence": evidence is None or (evidence.ndim == 4 and evidence.shape[::3] == (count, positions)),
        "contributions": cells is None or (cells.ndim == 3 and len(cells) == count and bool((cells >= 0).all())),
        "visible": trace.visible is None or (trace.visible.shape == trace.grid and trace.visible.dtype == bool),
        "hallucination": all(0 <= word < count for word in trace.hallucination),
        "best_heads": all(0 <= layer < layers and 0 <= head < heads for layer, head in trace.best_heads),
        "photo": trace.photo.size == (geometry.width, geometry.height),
        "arrays": all(
            each is None or (each.dtype.kind == "f" and bool(np.isfinite(each).all()))
            for each in (trace.weights, evidence, cells)
        ),
    }
    wrong = [name for name, good in fits.items() if not good]
    if wrong:
        raise ValueError(f"{', '.join(wrong)} of other sizes or types than its words")


def _tuples(value: Any) -> Any:
    """JSON's lists, at any depth, as tuples."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
