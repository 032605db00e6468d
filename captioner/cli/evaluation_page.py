"""The HTML report of `captioner evaluate`: scores, and the worst and best images with their captions."""

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from PIL import Image

from captioner.evaluation import Evaluation, ImageId
from captioner.images import open_image

MAX_IMAGES = 10
"""Most images among the worst, and among the best."""
THUMBNAIL = (400, 300)
"""Largest width and height of a picture, in pixels."""

STYLE = """
body { max-width: 75rem; margin: 2rem auto; padding: 0 1rem; font: 1rem/1.5 system-ui, sans-serif; color: #1b1f24 }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
td, th { padding: .15rem .9rem .15rem 0; text-align: left; border-bottom: 1px solid #d0d7de }
.images { display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: 1.5rem }
.tables { display: flex; flex-wrap: wrap; gap: 1rem 4rem; align-items: flex-start }
figure { margin: 0; min-width: 0; overflow-wrap: anywhere }
img { width: 100%; border-radius: .3rem }
figcaption b { display: block; font-size: 1.05rem; line-height: 1.35 }
ul { margin: .3rem 0; padding-left: 1.1rem; font-size: .9rem; line-height: 1.35; color: #57606a }
.score { font-size: .85rem; color: #57606a; overflow-wrap: anywhere }
.signature { font: .8rem monospace; color: #57606a; overflow-wrap: anywhere }
"""


def page(evaluation: Evaluation, paths: Mapping[ImageId, Path], about: Mapping[str, str]) -> str:
    """A self-contained HTML file; `about` names the model and what was evaluated."""
    metric, ranked = evaluation.ranked()
    count = min(MAX_IMAGES, -(-len(ranked) // 2))
    worst, best = ranked[:count], ranked[::-1][: min(count, len(ranked) - count)]
    scores = dict(zip(map(str, evaluation.captions), evaluation.scores.per_image[metric].tolist(), strict=True))
    sections = [
        f"<h2>The {name} images ({len(images)})</h2>\n<p>By the {metric} of the image alone.</p>\n<div class=images>"
        + "\n".join(_figure(evaluation, image, paths[image], f"{metric} {scores[str(image)]:.3f}") for image in images)
        + "</div>"
        for name, images in (("worst", worst), ("best", best))
        if images
    ]
    title = f"Captions of {escape(about['model'])}"
    tables = (_table(("evaluated", ""), list(about.items())), _scores(evaluation), _statistics(evaluation))
    reasons = "".join(f"<p>{escape(name)}: {escape(why)}</p>" for name, why in evaluation.scores.reasons.items())
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n<h1>{title}</h1>\n"
        f"<p>A caption for each of {len(evaluation.captions)} images. What the numbers mean: docs/metrics.md.</p>\n"
        f"<div class=tables>{''.join(tables)}</div>\n{reasons}"
        f"<p class=signature>{escape(evaluation.scores.signature)}</p>\n" + "\n".join(sections) + "\n</html>\n"
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
        f'<figure><img src="data:image/jpeg;base64,{_thumbnail(path)}" alt="image {escape(str(image))}">'
        f"<figcaption><b>{escape(caption.text) or '(an empty caption)'}</b><ul>{references}</ul>"
        f"<span class=score>{note} · mean probability of a word {caption.confidence:.2f} · {escape(path.name)}</span>"
        "</figcaption></figure>"
    )


def _thumbnail(path: Path) -> str:
    photo = open_image(path).image
    photo.thumbnail(THUMBNAIL, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    photo.save(buffer, format="JPEG", quality=85)
    return base64.b64encode(buffer.getvalue()).decode()
