"""The page at `/`, which captions photos in a browser."""

from dataclasses import dataclass

from captioner.templates import read_template, security_policy


@dataclass(frozen=True)
class Page:
    html: str
    policy: str
    """Its content security policy."""


def render_page() -> Page:
    """The page. Its policy allows the script and style of reports too, since a frame inherits it."""
    html, report = read_template("serving/page.html"), read_template("inspection/report.html")
    sources = {"connect_src": "'self'", "img_src": "blob: data:", "frame_ancestors": "'none'"}
    return Page(html, security_policy([html, report], **sources))
