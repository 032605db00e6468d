"""The HTML report of `captioner evaluate`: scores, and the images that stand out, with their captions."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

import numpy as np

from captioner.caption import Caption
from captioner.evaluation import Evaluation, ImageId
from captioner.inspection.report import INDEX_IMAGES, thumbnail
from captioner.inspection.word_table import plain_words
from captioner.metrics.object_words import NounList
from captioner.templates import html_text, render_page

LEGEND = (
    "<p>Objects in captions: <mark>a reference names it</mark>, <mark class=wrong>no reference does</mark>. "
    "A caption lacks objects that most references name.</p>"
)


class Compared(NamedTuple):
    """Another model's captions of the same images."""

    name: str
    evaluation: Evaluation


def page(
    evaluation: Evaluation, paths: Mapping[ImageId, Path], about: Mapping[str, str], other: Compared | None = None
) -> str:
    """A self-contained HTML file that loads nothing; `about` names the model and what was evaluated.

    It shows the worst and the best images or, with `other`, those that gained and lost the most against it.
    """
    metric, ranked = evaluation.ranked()
    headings, note = ("worst", "best"), f"By the {metric} of the image alone."
    evaluations = [evaluation] if other is None else [other.evaluation, evaluation]
    names = [""] if other is None else [other.name, about["model"]]
    if other is not None:
        gained = np.nan_to_num(evaluation.scores.per_image[metric] - other.evaluation.scores.per_image[metric])
        images = list(evaluation.captions)
        ranked = [images[place] for place in np.argsort(gained, kind="stable")]
        headings = ("most worsened", "most improved")
        note = f"By the {metric} of the image alone. First: {html_text(other.name)}; then: {html_text(about['model'])}."
    count = min(INDEX_IMAGES, -(-len(ranked) // 2))
    worst, best = ranked[:count], ranked[::-1][: min(count, len(ranked) - count)]
    pairs = list(zip(headings, (worst, best), strict=True))
    sections = [
        f"<h2>The {name} images ({len(images)})</h2>\n<p>{note}</p>\n<div class=images>"
        + "\n".join(_figure(evaluations, image, paths[image], metric) for image in images)
        + "</div>"
        for name, images in (pairs if other is None else pairs[::-1])
        if images
    ]
    reasons = "".join(f"<p>{escape(name)}: {escape(why)}</p>" for name, why in evaluation.scores.reasons.items())
    scores = _scores(evaluation) if other is None else _comparison(evaluation, other, about["model"])
    tables = (_table(("evaluated", ""), list(about.items())), scores, _statistics(evaluations, names))
    values = {
        "model": html_text(about["model"]),
        "count": str(len(evaluation.captions)),
        "tables": "".join(tables),
        "reasons": reasons + LEGEND,
        "signature": escape(evaluation.scores.signature),
        "sections": "\n".join(sections),
    }
    return render_page("cli/evaluation_page.html", values)


def _scores(evaluation: Evaluation) -> str:
    intervals = evaluation.scores.intervals()
    rows = [(name, _score(value), _range(intervals[name])) for name, value in evaluation.scores.corpus.items()]
    return _table(("metric", "score", "95 % interval"), rows)


def _comparison(evaluation: Evaluation, other: Compared, model: str) -> str:
    """Both models' scores, and the difference with its interval over resamples of the same images."""
    differences = evaluation.scores.compare(other.evaluation.scores)
    before, rows = other.evaluation.scores.corpus, []
    for name, value in evaluation.scores.corpus.items():
        found = differences[name]
        rows.append((name, _score(before[name]), _score(value), _score(found["difference"]), _range(found["interval"])))
    return _table(("metric", other.name, model, "difference", "95 % interval, paired"), rows)


def _statistics(evaluations: Sequence[Evaluation], names: Sequence[str]) -> str:
    columns = []
    for evaluation in evaluations:
        report = evaluation.to_dict()
        columns.append(report["captions"] | {f"chair_{name}": value for name, value in report.get("chair", {}).items()})
    rows = [
        (name, *("unknown" if column[name] is None else f"{column[name]:.4g}" for column in columns))
        for name in columns[0]
    ]
    return _table(("the captions", *names), rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [
        "<tr>" + "".join(f"<{cell}>{html_text(text)}</{cell}>" for text in row) + "</tr>"
        for cell, row in (("th", head), *(("td", row) for row in rows))
    ]
    return f"<table>{''.join(lines)}</table>"


def _figure(evaluations: Sequence[Evaluation], image: ImageId, path: Path, metric: str) -> str:
    """An image with its caption by each model, and its references."""
    place = list(evaluations[0].captions).index(image)
    tokenized = evaluations[0].scores.captions.references[place]
    shown = ""
    for evaluation in evaluations:
        caption, score = evaluation.captions[image], evaluation.scores.per_image[metric][place]
        missing = missing_objects(evaluation.scores.captions.candidates[place], tokenized)
        lacks = f" · lacks {html_text(', '.join(missing))}" if missing else ""
        numbers = f"{metric} {score:.3f} · confidence {caption.confidence:.2f}"
        shown += f"<b>{marked_objects(caption, tokenized)}</b><span class=score>{numbers}{lacks}</span>"
    references = "".join(f"<li>{html_text(text)}</li>" for text in evaluations[0].references[image])
    return (
        f'<figure><img src="{thumbnail(path)}" alt="image {html_text(str(image))}">'
        f"<figcaption>{shown}<ul>{references}</ul><span class=score>{html_text(path.name)}</span></figcaption></figure>"
    )


def marked_objects(caption: Caption, references: Sequence[str]) -> str:
    """A caption as HTML, with its objects marked by whether the tokenized references name them."""
    nouns = NounList.bundled()
    possible = nouns.objects(references).possible
    words = [word.text for word in caption.words]
    html = [html_text(word) for word in words]
    for start, stop, concept, hints in nouns.phrases(plain_words(words)):
        if concept is not None:
            right = concept in possible or not hints.isdisjoint(possible)
            html[start] = f"<mark{'' if right else ' class=wrong'}>{html[start]}"
            html[stop - 1] += "</mark>"
    return " ".join(html) or html_text(caption.text) or "(an empty caption)"


def missing_objects(candidate: str, references: Sequence[str]) -> list[str]:
    """The objects that most of the tokenized references name and the tokenized candidate does not."""
    nouns = NounList.bundled()
    own = nouns.objects([candidate]).possible
    named = [set(nouns.objects([reference]).named) for reference in references]
    every = sorted(set().union(*named))
    return [each for each in every if each not in own and 2 * sum(each in one for one in named) > len(named)]


def _score(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"


def _range(bounds: tuple[float, float] | None) -> str:
    return "" if bounds is None else f"{bounds[0]:.4f} to {bounds[1]:.4f}"
