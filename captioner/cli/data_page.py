"""The HTML page of `captioner data check`: problems by code, with the pictures concerned."""

from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress

from captioner.data.annotations import Listing, Problem, image_name, safe_path
from captioner.errors import AnnotationError, ImageError
from captioner.inspection.report import thumbnail
from captioner.templates import html_text, render_page

MAX_SHOWN = 24
"""Problems of a code that are shown; the rest are counted."""
MAX_PICTURES = 3
"""Pictures that are shown of a problem."""


def page(listing: Listing, problems: Sequence[Problem], summary: str) -> str:
    """A self-contained HTML file that loads nothing."""
    names_of: defaultdict[str, set[str]] = defaultdict(set)
    """Place of an image or a caption -> names of its pictures."""
    for image in listing.images:
        for where in (image.where, image_name(image), *(caption.where for caption in image.captions)):
            names_of[where].add(image_name(image))
    by_code: defaultdict[str, list[Problem]] = defaultdict(list)
    for problem in sorted(problems, key=lambda problem: problem.severity):
        by_code[problem.code].append(problem)
    rows = "".join(
        f'<tr><td class={found[0].severity}>{found[0].severity}</td><td><a href="#{code}">{code}</a></td>'
        f"<td>{len(found)}</td></tr>"
        for code, found in by_code.items()
    )
    sections = []
    for code, found in by_code.items():
        shown = "".join(
            f"<div class=problem>{_pictures(listing, each.pictures or sorted(names_of[each.where]))}"
            f"<b>{html_text(each.where)}</b><br>{html_text(each.message)}</div>"
            for each in found[:MAX_SHOWN]
        )
        more = f"<p>and {len(found) - MAX_SHOWN} more</p>" if len(found) > MAX_SHOWN else ""
        sections.append(f"<h2 id={code}>{code} ({len(found)})</h2><div class=problems>{shown}</div>{more}")
    values = {
        "name": html_text(str(listing.source)),
        "summary": html_text(f"{len(problems)} problems; {summary}."),
        "table": f"<table><tr><th>severity</th><th>code</th><th>number</th></tr>{rows}</table>" if rows else "",
        "sections": "\n".join(sections),
    }
    return render_page("cli/data_page.html", values)


def _pictures(listing: Listing, names: Sequence[str]) -> str:
    """Small copies of pictures, without those that cannot be opened."""
    shown = ""
    for name in names[:MAX_PICTURES]:
        with suppress(ImageError, AnnotationError):
            shown += f'<img src="{thumbnail(safe_path(listing.root, name))}" alt="{html_text(name)}">'
    return f"<div class=pictures>{shown}</div>" if shown else ""
