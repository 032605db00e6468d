"""The demo captions every photo of docs/photos and makes a page that stands on its own."""

import re
from dataclasses import replace
from html import escape, unescape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

from captioner import Captioner
from captioner.config import DecoderConfig, EncoderConfig, ModelConfig, TokenizerConfig
from captioner.model.caption_model import CaptionModel
from captioner.model.familiarity import Familiarity
from captioner.tokenizer import Tokenizer
from scripts import demo


class Links(HTMLParser):
    """What a page refers to, and which elements were left open."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    tokenizer = Tokenizer.train(["< > &"], TokenizerConfig(min_count=1))
    config = ModelConfig(
        encoder=EncoderConfig(name="test_vit", image_size=(64, 64)),
        decoder=DecoderConfig(width=16, layers=1, heads=2, max_length=40),
    )
    network = CaptionModel(config, vocabulary=len(tokenizer))
    with torch.no_grad():  # captions of a word or two, so that the sheets are small
        network.decoder.final_norm.bias.copy_(1000 * network.decoder.token_embedding.weight[tokenizer.eos])
    folder = tmp_path_factory.mktemp("model") / "<b>"
    Captioner(network, tokenizer, name="tiny").save_pretrained(folder)
    return folder


def test_the_demo_shows_every_photo(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    assert demo.main(["--model", str(model), "--output", str(output)]) == 0
    photos = sorted(demo.PHOTOS.glob("*.jpg"))
    captions = Captioner.from_pretrained(model)([str(photo) for photo in photos])
    *lines, last = capsys.readouterr().out.splitlines()
    assert lines == [f"{photo.name}: {caption.text}" for photo, caption in zip(photos, captions, strict=True)]
    assert last.endswith(str(output / "report.html"))

    page = (output / "report.html").read_text(encoding="utf-8")
    links = Links(page)
    assert links.open == []
    # Nothing is fetched from elsewhere: pictures are in the page, and the reports lie beside it.
    pages = [link for link in links.found if not link.startswith("data:")]
    assert sorted(pages) == sorted([f"{photo.stem}.html" for photo in photos] * 2)
    assert sorted(each.name for each in output.iterdir()) == sorted({"report.html", *pages})
    for photo, caption in zip(photos, captions, strict=True):
        report = (output / f"{photo.stem}.html").read_text(encoding="utf-8")
        assert f"<title>{escape(caption.text)} · captioner</title>" in report
        assert '<a href="report.html">' in report
        assert f"<b>{photo.name}</b>" in report
    headings = re.findall('<b><a href="([^"]*)">(.*?)</a></b>', page)
    assert {href: unescape(text) for href, text in headings} == {
        f"{photo.stem}.html": caption.text or "(an empty caption)"
        for photo, caption in zip(photos, captions, strict=True)
    }


def test_only_unfamiliar_photos_have_a_warning(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    captioner = Captioner.from_pretrained(model, device="cpu")
    photos = sorted(demo.PHOTOS.glob("*.jpg"))
    network = captioner.model
    pixels = torch.from_numpy(np.stack([captioner.prepare(photo).pixels for photo in photos]))
    with torch.no_grad():
        network.familiarity = Familiarity.fit(torch.randn(200, network.encoder.width))
        distances = network.familiarity(network.encoder(pixels))
    network.config = replace(network.config, familiar_distance=float(distances.sort().values[-3:-1].mean()))
    captioner.save_pretrained(tmp_path / "fitted")
    demo.main(["--model", str(tmp_path / "fitted"), "--output", str(tmp_path / "out")])
    expected = {photos[place].name for place in distances.topk(2).indices.tolist()}
    lines = capsys.readouterr().out.splitlines()
    assert {line.split(":")[0] for line in lines if "unlike the photos this model was trained on" in line} == expected
    sections = (tmp_path / "out" / "report.html").read_text(encoding="utf-8").split("<figure>")[1:]
    warned = {
        name for section in sections if "Unlike the photos" in section for name in re.findall(r"\w+\.jpg", section)
    }
    assert warned == expected


def test_a_missing_model_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main(["--model", str(tmp_path / "none"), "--output", str(tmp_path / "out")]) == 4
    error = capsys.readouterr().err
    assert error.startswith("demo: error: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
