"""The HTML report of `captioner evaluate`: scores, and the worst and best images with their captions."""

from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from string import Template

from captioner.evaluation import Evaluation, ImageId
from captioner.inspection.report import INDEX_IMAGES, thumbnail


def page(evaluation: Evaluation, paths: Mapping[ImageId, Path], about: Mapping[str, str]) -> str:
    """A self-contained HTML file; `about` names the model and what was evaluated."""
    metric, ranked = evaluation.ranked()
    count = min(INDEX_IMAGES, -(-len(ranked) // 2))
    worst, best = ranked[:count], ranked[::-1][: min(count, len(ranked) - count)]
    scores = dict(zip(evaluation.captions, evaluation.scores.per_image[metric].tolist(), strict=True))
    sections = [
        f"<h2>The {name} images ({len(images)})</h2>\n<p>By the {metric} of the image alone.</p>\n<div class=images>"
        + "\n".join(_figure(evaluation, image, paths[image], f"{metric} {scores[image]:.3f}") for image in images)
        + "</div>"
        for name, images in (("worst", worst), ("best", best))
        if images
    ]
    reasons = "".join(f"<p>{escape(name)}: {escape(why)}</p>" for name, why in evaluation.scores.reasons.items())
    tables = (_table(("evaluated", ""), list(about.items())), _scores(evaluation), _statistics(evaluation))
    template = (resources.files("captioner.cli") / "evaluation_page.html").read_text(encoding="utf-8")
    return Template(template).substitute(
        model=escape(about["model"]),
        count=len(evaluation.captions),
        tables="".join(tables),
        reasons=reasons,
        signature=escape(evaluation.scores.signature),
        sections="\n".join(sections),
    )


def _scores(evaluation: Evaluation) -> str:
    intervals = evaluation.scores.intervals()
    rows = []
    for name, value in evaluation.scores.corpus.items():
        bounds = intervals[name]
        spread = "" if bounds is None else f"{bounds[0]:.4f} to {bounds[1]:.4f}"
        rows.append((name, "undefined" if value is None else f"{value:.4f}", spread))
    return _table(("metric", "score", "95 % interval"), rows)


def _statistics(evaluation: Evaluation) -> str:
    report = evaluation.to_dict()
    values = report["captions"] | {f"chair_{name}": value for name, value in report.get("chair", {}).items()}
    rows = [(name, "unknown" if value is None else f"{value:.4g}") for name, value in values.items()]
    return _table(("the captions", ""), rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [
        "<tr>" + "".join(f"<{cell}>{escape(text)}</{cell}>" for text in row) + "</tr>"
        for cell, row in (("th", head), *(("td", row) for row in rows))
    ]
    return f"<table>{''.join(lines)}</table>"


def _figure(evaluation: Evaluation, image: ImageId, path: Path, note: str) -> str:
    caption = evaluation.captions[image]
    references = "".join(f"<li>{escape(text)}</li>" for text in evaluation.references[image])
    return (
        f'<figure><img src="{thumbnail(path)}" alt="image {escape(str(image))}">'
        f"<figcaption><b>{escape(caption.text) or '(an empty caption)'}</b><ul>{references}</ul>"
        f"<span class=score>{note} · confidence {caption.confidence:.2f} · {escape(path.name)}</span>"
        "</figcaption></figure>"
    )
