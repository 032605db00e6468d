"""Trace files: whatever the bytes, a trace that can be drawn, or InputError in one line."""

import io
import json
import random
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from captioner.errors import InputError
from captioner.geometry import Geometry
from captioner.inspection import trace_file
from captioner.inspection.trace import AttentionTrace

ODD = (None, True, -1, 2**64, 1e999, "", "raw", [], [1], [1, "2"], [[[]]], {}, {"9": 1})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    trace = AttentionTrace(
        "a dog",
        ("a", "dog"),
        (-1.0, -2.0),
        generator.random((2, 1, 2, 7), np.float32),
        (2, 3),
        0,
        Geometry.of(8, 6, size=(32, 32), fit="squash"),
        Image.new("RGB", (8, 6)),
        method="refined",
        needs=(0.1, 2.0),
        evidence=generator.standard_normal((2, 1, 2, 7), np.float32),
        contributions=generator.random((2, 4, 6), np.float32),
        visible=np.ones((2, 3), bool),
        hallucination={1: 0.3},
        confidences=(0.9, 0.4),
        next_best=((("the", 0.2),), (("cat", 0.1), ("fox", 0.05))),
        best_heads=((0, 1),),
    )
    trace.save(tmp_path / "a.npz")
    return tmp_path / "a.npz"


def rewrite(path: Path, **changes: Any) -> None:
    with np.load(path) as arrays:
        content = dict(arrays)
    for name, value in changes.items():
        content[name] = np.frombuffer(value, np.uint8) if isinstance(value, bytes) else value
    np.savez(path, **content)


def about(path: Path) -> dict[str, Any]:
    with np.load(path) as arrays:
        return dict(json.loads(arrays["about"].tobytes()))


def load(path: Path) -> bool:
    """Whether the file is loaded, and drawn without an error, rather than refused."""
    try:
        trace = AttentionTrace.load(path)
    except InputError as error:
        message = str(error)
    else:
        trace.save_png(io.BytesIO())
        return True
    assert "not a trace" in message
    assert "\n" not in message
    return False


def test_it_is_loaded_as_it_was_saved(path: Path) -> None:
    trace = AttentionTrace.load(path)
    trace.save(path.with_name("again.npz"))
    assert path.with_name("again.npz").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("value", ODD, ids=repr)
def test_other_values_in_it_are_refused_or_drawn(path: Path, value: object) -> None:
    plain = about(path)
    refused = 0
    for key in plain:
        rewrite(path, about=json.dumps(plain | {key: value}).encode())
        refused += not load(path)
    assert refused >= 4


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("weights", np.zeros((3, 1, 2, 7), np.float32)),
        ("weights", np.zeros((2, 1, 2, 5), np.float32)),
        ("weights", np.full((2, 1, 2, 7), np.nan, np.float32)),
        ("weights", np.zeros((2, 1, 2, 7), "U3")),
        ("weights", np.zeros(3, np.float32)),
        ("evidence", np.zeros((2, 1, 2, 6), np.float32)),
        ("contributions", np.zeros((1, 4, 6), np.float32)),
        ("contributions", np.full((2, 4, 6), -1, np.float32)),
        ("visible", np.ones((3, 2), bool)),
        ("photo", b"\x89PNG\r\n\x1a\n no picture"),
        ("about", b"[" * 10**5),
        ("about", b"\xff\xfe"),
    ],
)
def test_arrays_that_contradict_it_are_refused(path: Path, name: str, values: Any) -> None:
    rewrite(path, **{name: values})
    assert not load(path)


def test_a_bomb_is_not_unpacked(path: Path) -> None:
    with np.load(path) as arrays:
        content = dict(arrays)
    content["weights"] = np.zeros((1, 1, 1, trace_file.MAX_BYTES // 4), np.float32)
    np.savez_compressed(path, **content)
    assert path.stat().st_size < 2**20
    with pytest.raises(InputError, match="512 MiB unpacked"):
        AttentionTrace.load(path)


def test_a_huge_photo_is_not_decoded(path: Path) -> None:
    picture = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(picture, format="PNG")
    rewrite(path, photo=picture.getvalue())
    with pytest.raises(InputError, match="not a trace"):
        AttentionTrace.load(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", about=np.array([object()], dtype=object))
    (tmp_path / "y.npz").write_bytes(b"PK\x03\x04 not a whole archive")
    np.save(tmp_path / "z.npy", np.zeros(3))
    with zipfile.ZipFile(tmp_path / "e.npz", "w"):
        pass
    for name in ("x.npz", "y.npz", "z.npy", "e.npz", "none.npz"):
        assert not load(tmp_path / name)


def test_mutated_bytes_are_refused_or_drawn(path: Path) -> None:
    random.seed(0)
    whole = path.read_bytes()
    refused = 0
    for _ in range(150):
        content = bytearray(whole)
        for _ in range(random.choice((1, 4, 30))):
            content[random.randrange(len(content))] = random.randrange(256)
        path.write_bytes(content[: random.choice((len(content), len(content), random.randrange(len(content))))])
        refused += not load(path)
    assert refused > 75
