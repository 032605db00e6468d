"""Tables of faithfulness as plain data and as Markdown."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from captioner.inspection.faithfulness import (
    FUNCTION_WORDS,
    NEEDED,
    Estimate,
    WordTable,
    area_under_curve,
    best_heads,
    plain_words,
    rank_correlation,
)

REFERENCE = "raw"
"""The map that others are compared with."""
DIGITS = 4


def groups(table: WordTable) -> dict[str, NDArray[np.bool_]]:
    """Which words belong to each group: (K,) bool."""
    return {
        f"objects that need the image by more than {NEEDED:g} nat": table.seen_objects,
        "other objects": table.named & ~table.seen_objects,
        "other words": ~table.named,
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
    """Pointing of each head for objects that need the image, and the best set."""
    assert table.heads is not None
    chosen = table.heads[table.seen_objects]
    masses = (chosen[..., 0] / np.maximum(chosen[..., 1], np.finfo(np.float32).tiny)).mean(axis=0)
    return {
        "mass_by_layer_and_head": [[round(float(mass), DIGITS) for mass in row] for row in masses],
        "best_heads": [list(pair) for pair in best_heads(table)],
    }


def null_summary(table: WordTable) -> dict[str, Any]:
    """What the null patch takes of which words, and how that goes with their need; empty where there is none.

    `share` is what a step can know: how much of the next word's distribution is there without the image. Its
    correlation with need, which depends on the word that then comes, is about the most that a null patch can reach.
    """
    if not table.null_mass.any():
        return {}
    function = np.array([word in FUNCTION_WORDS for word in plain_words(table.words)], dtype=bool)
    return {
        "words": len(table.words),
        "objects": _number(table.null_mass[table.named].mean()),
        "function_words": _number(table.null_mass[function].mean()),
        "auc_function_words_above_objects": _number(
            area_under_curve(table.null_mass[function], table.null_mass[table.named])
        ),
        "spearman_with_visual_need": _number(rank_correlation(-table.null_mass, table.needs)),
        "spearman_of_the_share_with_visual_need": _number(rank_correlation(-table.shares, table.needs)),
        "spearman_with_the_share": _number(rank_correlation(table.null_mass, table.shares)),
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
    """The mass that each head puts on the right photo, and what the null patch takes."""
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


def null_markdown(found: Mapping[str, Mapping[str, Any]]) -> str:
    """A column for each kind of captions."""
    lines = ["## The null patch", "", f"| | {' | '.join(found)} |", "|---|" + "---|" * len(found)]
    names = next(iter(found.values()))
    lines += [
        f"| {name.replace('_', ' ')} | {' | '.join(str(each[name]) for each in found.values())} |" for name in names
    ]
    return "\n".join([*lines, ""])


def invented_markdown(found: Mapping[str, Any]) -> str:
    """How well invented objects are told, by what."""
    lines = ["## Objects that no reference names", ""]
    lines += [f"{found['invented']} of {found['words']} object words of the model's captions", ""]
    if found["auc"]:
        lines += ["| told by (on photos that taught it nothing) | area under the curve |", "|---|---|"]
        lines += [f"| {name} | {value:.3f} |" for name, value in found["auc"].items()]
        lines.append("")
    return "\n".join(lines)


def _cells(found: Mapping[str, Any] | None) -> tuple[str, str]:
    if found is None:
        return "", ""
    difference = found.get("minus_raw")
    return _spelled(found), "" if difference is None else _spelled(difference, sign=True)


def _spelled(found: Mapping[str, Any], sign: bool = False) -> str:
    spelled = "+.3f" if sign else ".3f"
    low, high = found["interval"]
    return f"{found['value']:{spelled}} ({low:{spelled}} to {high:{spelled}})"


def _rounded(estimate: Estimate) -> dict[str, Any]:
    return {
        "value": round(estimate.value, DIGITS),
        "interval": [round(estimate.low, DIGITS), round(estimate.high, DIGITS)],
    }


def _number(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), DIGITS)
