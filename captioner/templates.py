"""HTML templates of the package; their security policies allow the scripts and styles in them by their hashes."""

import base64
import hashlib
import re
from collections.abc import Iterable, Mapping
from html import escape
from importlib import resources

from captioner.text import printable

NONE = "'none'"


def read_template(name: str) -> str:
    """A template by its path in the package, with each {{include path}} replaced by that file."""
    text = (resources.files("captioner") / name).read_text(encoding="utf-8")
    return re.sub(r"\{\{include (\S+)\}\}", lambda match: read_template(match[1]), text)


def fill(template: str, values: Mapping[str, str]) -> str:
    """The template with {{name}} replaced by texts that are HTML already."""
    return re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], template)


def render_page(name: str, values: Mapping[str, str]) -> str:
    """A self-contained page from a template: it loads nothing, and its pictures are in it."""
    template = read_template(name)
    return fill(template, {**values, "policy": security_policy([template], img_src="data:")})


def html_text(text: str) -> str:
    """A text of others as HTML."""
    return escape(printable(text))


def security_policy(templates: Iterable[str], **sources: str) -> str:
    """A content security policy that allows the scripts and styles of templates, and sources such as `img_src`."""
    text, directives = "".join(templates), {"default-src": NONE}
    for tag in ("script", "style"):
        blocks = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        directives[f"{tag}-src"] = " ".join(map(_hash, blocks)) or NONE
    directives |= {name.replace("_", "-"): value for name, value in sources.items()}
    directives |= {"base-uri": NONE, "form-action": NONE}
    return "; ".join(f"{name} {value}" for name, value in directives.items())


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
