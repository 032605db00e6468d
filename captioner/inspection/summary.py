"""Summaries of word tables, as plain data and as Markdown.   K words"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from captioner.inspection.pointing import best_heads
from captioner.inspection.word_table import NEED_THRESHOLD, Estimate, WordTable

REFERENCE = "raw"
"""The map that the others are compared with."""
DIGITS = 4


def summarize(table: WordTable) -> dict[str, Any]:
    """Group of words -> measure -> map -> its mean and interval, and its difference from raw attention."""
    groups = {
        f"objects that need the image by more than {NEED_THRESHOLD:g} nat": table.visual_objects,
        "other objects": table.is_object & ~table.visual_objects,
        "other words": ~table.is_object,
    }
    found: dict[str, Any] = {}
    for group, chosen in groups.items():
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
    """The mass of each head on the right photo, for visual objects, and the heads that point best together."""
    assert table.heads is not None
    chosen = table.heads[table.visual_objects]
    masses = (chosen[..., 0] / np.maximum(chosen[..., 1], np.finfo(np.float32).tiny)).mean(axis=0)
    return {
        "mass_by_layer_and_head": [[round(float(mass), DIGITS) for mass in row] for row in masses],
        "best_heads": [list(pair) for pair in best_heads(table)],
    }


def markdown(title: str, summary: Mapping[str, Any]) -> str:
    """A table for each group: a row for each map, and for each measure its mean and its difference from raw."""
    lines = [f"## {title}", ""]
    for group, measures in summary.items():
        names = [measure for measure in measures if measure != "words"]
        maps = list(dict.fromkeys(name for measure in names for name in measures[measure]))
        lines += [f"{group}: {measures['words']} words", ""]
        lines += _table(
            ["map", *(header for name in names for header in (name, "minus raw"))],
            [[each, *(cell for name in names for cell in _cells(measures[name].get(each)))] for each in maps],
        )
        lines.append("")
    return "\n".join(lines)


def heads_markdown(found: Mapping[str, Any]) -> str:
    """A table with a row for each layer and a column for each head, and the best heads."""
    masses = found["mass_by_layer_and_head"]
    lines = ["Mass of each head, for objects that need the image", ""]
    lines += _table(
        ["layer", *(f"head {head}" for head in range(len(masses[0])))],
        [[str(layer), *(f"{mass:.3f}" for mass in row)] for layer, row in enumerate(masses)],
    )
    best = ", ".join(f"layer {layer} head {head}" for layer, head in found["best_heads"]) or "none"
    lines += ["", f"Best together: {best}", ""]
    return "\n".join(lines)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table."""
    return [f"| {' | '.join(header)} |", "|" + "---|" * len(header), *(f"| {' | '.join(row)} |" for row in rows)]


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
