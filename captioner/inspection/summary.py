"""Summaries of word tables, as plain data and as Markdown.   K words"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from captioner.inspection.pointing import best_heads
from captioner.inspection.word_table import NEED_THRESHOLD, Estimate, WordTable

REFERENCES = ("raw", "center")
"""The maps that the others are compared with, where they were measured."""
AREA = "area"
"""The mass of an even map, which the mass of the others is divided by."""
DIGITS = 4
FORMATS = {"value": ".3f", "over_area": ".2f", **{f"minus_{reference}": "+.3f" for reference in REFERENCES}}
"""The columns of a measure of a map, in order, each with the format of its numbers."""


def summarize(table: WordTable) -> dict[str, Any]:
    """Group of words -> measure -> map -> its mean and interval, and its differences from the reference maps."""
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
            each: dict[str, Any] = _rounded(table.mean(column, chosen))
            for reference in REFERENCES:
                if name and name != reference and f"{reference} {measure}" in table.columns:
                    each[f"minus_{reference}"] = _rounded(table.mean(column, chosen, minus=f"{reference} {measure}"))
            if measure == "mass" and AREA in table.columns:
                each["over_area"] = _rounded(table.mean(column, chosen, over=AREA))
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
    """A table for each group: a row for each map, and for each measure its mean and what it is compared with."""
    lines = [f"## {title}", ""]
    for group, measures in summary.items():
        names = [measure for measure in measures if measure != "words"]
        maps = list(dict.fromkeys(name for measure in names for name in measures[measure]))
        lines += [f"{group}: {measures['words']} words", ""]
        columns = [
            (name, kind)
            for name in names
            for kind in FORMATS
            if any(kind in estimates for estimates in measures[name].values())
        ]
        lines += _table(
            ["map", *(name if kind == "value" else kind.replace("_", " ") for name, kind in columns)],
            [[each, *(_cell(measures[name].get(each, {}), kind) for name, kind in columns)] for each in maps],
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


def _cell(found: Mapping[str, Any], kind: str) -> str:
    """An estimate and its interval; empty where there is none."""
    estimate = found if kind == "value" else found.get(kind)
    if not estimate:
        return ""
    digits, (low, high) = FORMATS[kind], estimate["interval"]
    return f"{estimate['value']:{digits}} ({low:{digits}} to {high:{digits}})"


def _rounded(estimate: Estimate) -> dict[str, Any]:
    return {
        "value": round(estimate.value, DIGITS),
        "interval": [round(estimate.low, DIGITS), round(estimate.high, DIGITS)],
    }
