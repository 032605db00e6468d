"""A report holds the maps of its trace, ends no element early, allows its own script only, and stays small."""

import base64
import hashlib
import html
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from captioner import BeamSearch, Captioner
from captioner.geometry import Geometry
from captioner.inspection.report import IndexEntry, render_index, render_report
from captioner.inspection.trace import AttentionTrace

HOSTILE = (
    "</script><script>document.title = 'hacked'</script>",
    "<!--<script>",
    "\"'&amp;<img src=x onerror=alert(1)>",
    "{{data}}{{policy}}",
    "\u202egnp.exe מילה",
    "\U0001f9ff\u200d\U0001f415",
    "\ud800\0\x1b[31m\u2028",
    "w" * 10_000,
)


class Elements(HTMLParser):
    """The start tags of a page, with their attributes, and the text of its script elements."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.found and self.found[-1][0] == "script" and self.lasttag == "script":
            self.scripts.append(data)


def data_of(page: str) -> dict[str, Any]:
    [text] = re.findall('<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    return json.loads(text)


def file_name(text: str) -> str:
    """The text, without what no file name has."""
    return text.replace("\ud800", "\udce9").replace("\0", "")


def maps_of(view: dict[str, Any], words: int) -> np.ndarray:
    levels = np.frombuffer(base64.b64decode(view["values"]), np.uint8).reshape(words, *view["grid"])
    return levels / 255 * np.array(view["scales"])[:, None, None]


@pytest.fixture(scope="module")
def captioner(trained) -> Captioner:
    captioner = Captioner(*trained, name="tiny")
    captioner.model.config = replace(captioner.model.config, best_heads=((1, 0), (0, 1)))
    return captioner


@pytest.fixture(scope="module")
def trace(captioner: Captioner, images) -> AttentionTrace:
    return captioner.inspect(images[0].path, search=BeamSearch(captions=2, max_length=6))


def test_the_maps_are_those_of_the_trace(trace: AttentionTrace) -> None:
    [caption, other] = data_of(render_report(trace))["captions"]
    assert (caption["text"], other["text"]) == (trace.text, trace.alternatives[0].text)
    assert [word["text"] for word in caption["words"]] == list(trace.words)
    relevance = replace(trace, method="relevance", contributions=None)
    forms = {"refined": trace, "relevance": relevance, "raw": replace(relevance, method="raw", evidence=None)}
    found = {(view["method"], view["layer"], view["head"]): view for view in caption["views"]}
    expected = [(method, None, head) for method in forms for head in (None, "best")]
    expected += [(method, layer, None) for method in forms for layer in range(2)]
    expected += [("raw", layer, head) for layer in range(2) for head in range(2)]
    assert set(found) == set(expected)
    assert len(found) == len(caption["views"])
    for (method, layer, head), view in found.items():
        heads = trace.best_heads if head == "best" else None
        chosen = forms[method].select(layer, None if head == "best" else head, heads)
        maps = maps_of(view, len(trace.words))
        for word in range(len(trace.words)):
            true = chosen.patches(word)
            np.testing.assert_allclose(maps[word], true, atol=float(true.max()) / 500)
        assert view["entropy"] == pytest.approx(chosen.entropy.tolist(), abs=1e-3)


def test_the_numbers_are_those_of_the_trace(trace: AttentionTrace) -> None:
    trace = replace(trace, confidences=(0.25,) * len(trace.words), hallucination={0: 0.75, 1: 0.25})
    words = data_of(render_report(trace))["captions"][0]["words"]
    assert [word["probability"] for word in words] == pytest.approx(np.exp(trace.log_probs).tolist(), rel=1e-4)
    assert [word["need"] for word in words] == pytest.approx(trace.needs, rel=1e-4, abs=1e-6)
    assert [word["null_mass"] for word in words] == pytest.approx(trace.null_mass.tolist(), rel=1e-4)
    assert [word["why_faint"] == "" for word in words] == list(trace.needs_photo)
    assert {word["confidence"] for word in words} == {0.25}
    assert [word["hallucination"] for word in words][:3] == [0.75, 0.25, None]
    assert [word["doubtful"] for word in words][:3] == [True, False, False]
    assert [len(word["next_best"]) for word in words] == [5] * len(words)


def test_without_a_null_patch_and_without_need_there_are_no_such_numbers(trace: AttentionTrace) -> None:
    bare = replace(trace, needs=(), weights=trace.weights[..., :-1], method="raw", evidence=None, contributions=None)
    caption = data_of(render_report(bare))["captions"][0]
    assert {(word["need"], word["null_mass"], word["why_faint"]) for word in caption["words"]} == {(None, None, "")}
    assert {view["method"] for view in caption["views"]} == {"raw"}


def test_perturbation_has_one_map_beside_the_attention(captioner: Captioner, images) -> None:
    trace = captioner.inspect(images[0].path, caption="a dog", method="perturbation")
    views = data_of(render_report(trace))["captions"][0]["views"]
    assert [view["layer"] for view in views if view["method"] == "perturbation"] == [None]
    assert {view["method"] for view in views} == {"perturbation", "raw"}


def test_extreme_traces_have_a_report(trace: AttentionTrace) -> None:
    empty = replace(
        trace, text="", words=(), log_probs=(), needs=(), weights=trace.weights[:0], evidence=None, contributions=None,
        method="raw", next_best=(), alternatives=(),
    )  # fmt: skip
    assert data_of(render_report(empty))["captions"][0]["words"] == []
    impossible = replace(trace, log_probs=(-np.inf,) * len(trace.words), needs=(-np.inf,) * len(trace.words))
    assert {word["probability"] for word in data_of(render_report(impossible))["captions"][0]["words"]} == {0.0}


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_becomes_markup(trace: AttentionTrace, text: str) -> None:
    words = (text, *trace.words[1:])
    page = render_report(replace(trace, text=text, words=words), name=text, model=text, index=file_name(text))
    assert page.encode()
    data = data_of(page)["captions"][0]
    assert (data["text"], data["words"][0]["text"]) == (text, text)
    plain = Elements(render_report(trace, name="name", model="model", index="index"))
    elements = Elements(page)
    assert [tag for tag, _ in elements.found] == [tag for tag, _ in plain.found]
    assert [set(attributes) for _, attributes in elements.found] == [set(attributes) for _, attributes in plain.found]
    assert elements.scripts[1] == plain.scripts[1]


def test_the_policy_allows_the_own_script_and_style_only(trace: AttentionTrace) -> None:
    page = render_report(trace)
    [policy] = re.findall('Content-Security-Policy" content="([^"]*)"', page)
    rules = dict(rule.split(" ", 1) for rule in html.unescape(policy).split("; "))
    own = {}
    for tag in ("script", "style"):
        [content] = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        own[tag] = f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
    none = "'none'"
    assert rules == {
        "default-src": none,
        "img-src": "data:",
        "script-src": own["script"],
        "style-src": own["style"],
        "base-uri": none,
        "form-action": none,
    }


def test_a_report_of_a_large_photo_stays_small(captioner: Captioner) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1200, 1600, 3), dtype=np.uint8)
    page = render_report(captioner.inspect(Image.fromarray(noise), caption="a dog and a red circle " * 3))
    assert len(page.encode()) < 600_000
    data = data_of(page)
    assert (data["width"], data["height"]) == (1024, 768)


def test_a_file_and_a_notebook_have_the_report(trace: AttentionTrace, tmp_path: Path) -> None:
    trace.save_html(tmp_path / "dog.html")
    page = (tmp_path / "dog.html").read_bytes().decode()
    assert page == render_report(trace, name="dog")
    [(tag, attributes)] = Elements(trace._repr_html_()).found
    assert tag == "iframe"
    assert attributes["srcdoc"] == render_report(trace)
    assert attributes["sandbox"] == "allow-scripts"


def test_hidden_patches_and_the_place_of_the_grid_are_there(captioner: Captioner, images) -> None:
    trace = captioner.inspect(images[0].path, caption="a dog", region=(0, 0, 0.5, 1))
    trace = replace(trace, geometry=Geometry.of(*trace.photo.size, size=(64, 128), fit="letterbox"))
    caption = data_of(render_report(trace))["captions"][0]
    assert tuple(caption["box"]) == trace.geometry.box
    hidden = np.frombuffer(base64.b64decode(caption["hidden"]), np.uint8).reshape(caption["grid"])
    np.testing.assert_array_equal(hidden, ~trace.visible)


def entries(folder: Path, count: int) -> list[IndexEntry]:
    Image.new("RGB", (8, 6)).save(folder / "photo.png")
    return [
        IndexEntry(folder / "photo.png", f"caption {number}", number / 100, f"{number}.html") for number in range(count)
    ]


@pytest.mark.parametrize(("count", "best", "worst", "others"), [(1, 0, 1, 0), (5, 2, 3, 0), (24, 10, 10, 4)])
def test_an_index_has_the_best_and_the_worst_captions(
    tmp_path: Path, count: int, best: int, worst: int, others: int
) -> None:
    shuffled = np.random.default_rng(0).permutation(count)
    given = entries(tmp_path, count)
    page = render_index([given[each] for each in shuffled], measure="confidence", model="m")
    numbers = [int(each) for each in re.findall(r'<b><a href="(\d+)\.html">', page)]
    assert numbers == [*range(count - 1, count - 1 - best, -1), *range(worst)]
    assert page.count("<li><a") == others
    assert page.count("<img") == best + worst


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_becomes_markup_in_an_index(tmp_path: Path, text: str) -> None:
    [plain] = entries(tmp_path, 1)
    given = replace(plain, references=("reference",), note="note")
    hostile = replace(given, caption=text, href=file_name(text), references=(text,), note=text)
    pages = [
        Elements(render_index([each], measure="confidence", model=model))
        for each, model in ((given, "model"), (hostile, text))
    ]
    assert [tag for tag, _ in pages[0].found] == [tag for tag, _ in pages[1].found]
    assert "a" not in [tag for tag, _ in Elements(render_index([replace(plain, href="")], measure="", model="")).found]
