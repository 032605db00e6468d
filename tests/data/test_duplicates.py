"""Copies of a picture are found whatever their size and quality; other pictures are not taken for copies."""

import io
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from captioner.data.duplicates import across, fingerprint, grouped, look_alike, same_bytes


def scene(seed: int) -> Image.Image:
    """A smooth random picture."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return Image.fromarray(noise).resize((320, 240), Image.Resampling.BICUBIC)


def jpeg(picture: Image.Image, quality: int) -> Image.Image:
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=quality)
    return Image.open(stream).convert("RGB")


CHANGES = {
    "smaller": lambda picture: picture.resize((80, 60), Image.Resampling.LANCZOS),
    "compressed": lambda picture: jpeg(picture, 20),
    "brighter": lambda picture: picture.point(lambda value: min(255, round(1.05 * value))),
    "cropped": lambda picture: picture.crop((2, 2, 318, 238)),
    "stretched": lambda picture: picture.resize((240, 240)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_copies_look_alike(change: str) -> None:
    pictures = {f"{seed}": scene(seed) for seed in range(20)}
    pictures["copy"] = CHANGES[change](pictures["7"])
    prints = {name: found for name, picture in pictures.items() if (found := fingerprint(picture)) is not None}
    assert len(prints) == 21
    assert look_alike(prints) == [["7", "copy"]]
    assert look_alike(dict(reversed(prints.items()))) == [["7", "copy"]]


def test_the_same_structure_in_other_colors_is_another_picture() -> None:
    red, blue = (Image.new("RGB", (64, 64), "white") for _ in range(2))
    red.paste((220, 40, 40), (20, 20, 50, 50))
    blue.paste((40, 60, 230), (20, 20, 50, 50))
    prints = {"red": fingerprint(red), "blue": fingerprint(blue), "same": fingerprint(red.resize((99, 70)))}
    assert None not in prints.values()
    assert look_alike({name: found for name, found in prints.items() if found}) == [["red", "same"]]


@pytest.fixture(scope="module")
def drawings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Image.Image]:
    """200 pictures with one or two small shapes on a plain or striped ground."""
    folder = tmp_path_factory.mktemp("drawings")
    assert import_module("scripts.draw_shapes").main(["--output", str(folder), "--images", "200"]) == 0
    return {path.stem: Image.open(path).convert("RGB") for path in (folder / "images").iterdir()}


@pytest.mark.parametrize("change", [None, "half", *CHANGES])
def test_drawings_are_told_apart_and_their_copies_found(drawings: dict[str, Image.Image], change: str | None) -> None:
    changes = CHANGES | {
        "half": lambda picture: picture.reduce(2),
        "smaller": lambda picture: picture.resize((80, 60)),
        "cropped": lambda picture: picture.crop((1, 1, picture.width - 1, picture.height - 1)),
    }
    pictures = drawings | {f"{name} copy": changes[change](each) for name, each in drawings.items() if change}
    prints = {name: found for name, picture in pictures.items() if (found := fingerprint(picture)) is not None}
    assert look_alike(prints) == [[name, f"{name} copy"] for name in sorted(drawings) if change]


@pytest.mark.parametrize("width", [32, 40, 70])
def test_shapes_in_the_same_place_are_other_pictures(width: int) -> None:
    """A circle, a square, a darker circle, and the circle on another ground."""
    pictures = {name: Image.new("RGB", (96, 96), "white") for name in ("circle", "square", "dark", "beige")}
    box = (14, 12, 14 + width, 12 + width)
    ImageDraw.Draw(pictures["circle"]).ellipse(box, fill="green")
    ImageDraw.Draw(pictures["square"]).rectangle(box, fill="green")
    ImageDraw.Draw(pictures["dark"]).ellipse(box, fill="black")
    pictures["beige"].paste((240, 224, 196), (0, 0, 96, 96))
    ImageDraw.Draw(pictures["beige"]).ellipse(box, fill="green")
    prints = {name: found for name, picture in pictures.items() if (found := fingerprint(picture)) is not None}
    assert len(prints) == 4
    assert look_alike(prints) == []


def test_plain_pictures_have_no_fingerprint() -> None:
    assert fingerprint(Image.new("RGB", (64, 64), "gray")) is None
    assert look_alike({}) == []


def test_groups_join_links_in_any_order() -> None:
    links = [("c", "b"), ("x",), ("e", "d"), ("b", "a"), ("y", "y")]
    assert grouped(links) == grouped(links[::-1]) == [["a", "b", "c"], ["d", "e"], ["x"], ["y"]]


def test_same_bytes(tmp_path: Path) -> None:
    for name, content in {"a": b"one", "b": b"two", "c": b"one", "d": b"longer"}.items():
        (tmp_path / name).write_bytes(content)
    assert same_bytes({path.name: path for path in tmp_path.iterdir()}) == [["a", "c"]]


def test_only_groups_in_several_splits_are_across() -> None:
    splits = {"a": "train", "b": "train", "c": "val"}
    assert list(across([["a", "b", "none"], ["b", "c", "none"]], splits)) == [["b", "c"]]
