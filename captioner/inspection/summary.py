"""Summaries of word tables as plain data and as Markdown."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from captioner.inspection.pointing import best_heads
from captioner.inspection.word_table import NEED_THRESHOLD, Estimate, WordTable

REFERENCE = "raw"
"""The map that others are compared with."""
DIGITS = 4


def groups(table: WordTable) -> dict[str, NDArray[np.bool_]]:
    """Group -> (K,) whether each word belongs to it."""
    return {
        f"objects that need the image by more than {NEED_THRESHOLD:g} nat": table.visual_objects,
        "other objects": table.is_object & ~table.visual_objects,
        "other words": ~table.is_object,
    }


def summarize(table: WordTable) -> dict[str, Any]:
    """Group -> measure -> map -> mean, interval, and the difference from the plain mean of all heads."""
    found: dict[str, Any] = {}
    for group, chosen in groups(table).items():
        if not chosen.any():
            continue
        measures: dict[str, Any] = {"words": int(chosen.sum())}
        for column in table.columns:
            name, _, measure = column.rpartition(" ")
            reference = f"{REFERENCE} {measure}"
            each: dict[str, Any] = _rounded(table.mean(column, chosen))
            if name and name != REFERENCE and reference in table.columns:
                each["minus_raw"] = _rounded(table.mean(column, chosen, minus=reference))
            measures.setdefault(measure, {})[name or measure] = each
        found[group] = measures
    return found


def heads_summary(table: WordTable) -> dict[str, Any]:
    """The mass that each head puts on the right photo for visual objects, and the best set of heads."""
    assert table.heads is not None
    chosen = table.heads[table.visual_objects]
    masses = (chosen[..., 0] / np.maximum(chosen[..., 1], np.finfo(np.float32).tiny)).mean(axis=0)
    return {
        "mass_by_layer_and_head": [[round(float(mass), DIGITS) for mass in row] for row in masses],
        "best_heads": [list(pair) for pair in best_heads(table)],
    }


def markdown(title: str, summary: Mapping[str, Any]) -> str:
    """A table a group: a row a map, a column a measure, with intervals and differences from raw."""
    lines = [f"## {title}", ""]
    for group, measures in summary.items():
        names = [measure for measure in measures if measure != "words"]
        maps = list(dict.fromkeys(name for measure in names for name in measures[measure]))
        lines += [f"{group}: {measures['words']} words", ""]
        lines += [f"| map | {' | '.join(f'{name} | minus raw' for name in names)} |"]
        lines += [f"|---|{'---|' * 2 * len(names)}"]
        for each in maps:
            cells = [cell for measure in names for cell in _cells(measures[measure].get(each))]
            lines.append(f"| {each} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def heads_markdown(found: Mapping[str, Any]) -> str:
    """A row a layer, a column a head."""
    masses = found["mass_by_layer_and_head"]
    lines = ["Mass of each head, for the same objects", ""]
    lines += [
        f"| layer | {' | '.join(f'head {head}' for head in range(len(masses[0])))} |",
        "|---|" + "---|" * len(masses[0]),
    ]
    lines += [f"| {layer} | {' | '.join(f'{mass:.3f}' for mass in row)} |" for layer, row in enumerate(masses)]
    best = ", ".join(f"layer {layer} head {head}" for layer, head in found["best_heads"]) or "none"
    lines += ["", f"Best together: {best}", ""]
    return "\n".join(lines)


def hallucination_markdown(found: Mapping[str, Any]) -> str:
    """How many objects of the model's captions no reference names."""
    count = f"{found['hallucinated']} of {found['words']} object words of the model's captions"
    return "\n".join(["## Objects that no reference names", "", count, ""])


def _cells(found: Mapping[str, Any] | None) -> tuple[str, str]:
    if found is None:
        return "", ""
    difference = found.get("minus_raw")
    return _format_estimate(found, ".3f"), "" if difference is None else _format_estimate(difference, "+.3f")


def _format_estimate(found: Mapping[str, Any], digits: str) -> str:
    low, high = found["interval"]
    return f"{found['value']:{digits}} ({low:{digits}} to {high:{digits}})"


def _rounded(estimate: Estimate) -> dict[str, Any]:
    return {
        "value": round(estimate.value, DIGITS),
        "interval": [round(estimate.low, DIGITS), round(estimate.high, DIGITS)],
    }
