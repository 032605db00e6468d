"""Exported folders: what is in them, their graphs' sizes, 8-bit weights, and a runner that needs four packages."""

import copy
import importlib
import json
import shutil
import subprocess
import sys
import venv
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

onnxruntime = pytest.importorskip("onnxruntime", reason="takes the extra `onnx`")

from captioner.checkpoint import describe  # noqa: E402
from captioner.errors import ConfigError  # noqa: E402
from captioner.export.folder import OPSET, export_onnx, round_weights  # noqa: E402
from captioner.export.runner import DECODE_STEP, ENCODE, PROJECT, OnnxCaptioner  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
PHOTOS = sorted((ROOT / "docs" / "photos").glob("*.jpg"))
NEEDED = ("numpy", "pillow", "tokenizers", "onnxruntime")


def test_the_folder_describes_itself(exported):
    captioner, folder = exported.captioner, exported.folder
    about = describe(captioner.model, captioner.tokenizer)
    assert (folder / "tokenizer.json").read_text(encoding="utf-8") == about.pop("tokenizer")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    onnx = config.pop("onnx")
    assert config == about
    assert (onnx["opset"], onnx["int8"], onnx["grid"]) == (18, False, list(captioner.model.encoder.grid))
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert card.startswith("# A random model\n\n## Run this model with ONNX Runtime\n")
    assert "(opset 18, float32)" in card
    assert (folder / "LICENSE").read_text(encoding="utf-8") == (ROOT / "LICENSE").read_text(encoding="utf-8")


def test_sizes_that_vary_have_names(exported):
    onnx = pytest.importorskip("onnx")
    shapes = {}
    for name in ("encode", "project", "decode_step"):
        model = onnx.load(exported.folder / f"{name}.onnx")
        assert [each.version for each in model.opset_import if not each.domain] == [OPSET]
        for each in (*model.graph.input, *model.graph.output):
            sizes = each.type.tensor_type.shape.dim
            shapes[each.name] = [size.dim_param or size.dim_value for size in sizes]
    model = exported.captioner.model
    config, positions = model.config.decoder, model.encoder.grid[0] * model.encoder.grid[1] + model.encoder.prefix
    memory, width = positions + config.null_patch, config.width // config.heads
    assert shapes["images"] == ["images", 3, *model.encoder.image_size]
    assert shapes["features"] == ["images", positions, model.encoder.width]
    assert shapes["tokens"] == ["images", "rows"]
    assert shapes["log_probs"] == ["images", "rows", model.decoder.vocabulary]
    assert shapes["weights"] == ["images", "rows", config.layers, config.heads, memory]
    for layer in range(config.layers):
        for kind in ("keys", "values"):
            assert shapes[f"{kind}_{layer}"] == ["images", config.heads, memory, width]
            assert shapes[f"past_{kind}_{layer}"] == ["images", "rows", config.heads, "length", width]
            assert shapes[f"present_{kind}_{layer}"] == ["images", "rows", config.heads, "length + 1", width]


def test_pixels_are_the_same(exported, tmp_path, monkeypatch):
    """By the modules in the folder: photos, one that its EXIF turns, one with an alpha channel, one in 16 bits."""
    photo = Image.open(PHOTOS[0])
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.save(tmp_path / "turned.jpg", exif=exif)
    photo.convert("RGBA").rotate(10).save(tmp_path / "alpha.png")
    Image.fromarray(np.asarray(photo.convert("L"), np.uint16) * 257).save(tmp_path / "deep.png")
    monkeypatch.syspath_prepend(exported.folder)
    before = set(sys.modules)
    run = importlib.import_module("run")
    try:
        onnx = run.OnnxCaptioner(exported.folder)
        for path in (*PHOTOS, tmp_path / "turned.jpg", tmp_path / "alpha.png", tmp_path / "deep.png"):
            expected = exported.captioner.prepare(path)
            np.testing.assert_array_equal(onnx.prepare(path).pixels, expected.pixels)
        with pytest.raises(importlib.import_module("captioner_parts.errors").ImageError):
            onnx.prepare(exported.folder / "config.json")
    finally:
        for name in set(sys.modules) - before:
            del sys.modules[name]


def test_weights_of_8_bits(exported, tmp_path):
    """A quarter of the size where there are linear layers, and nearly the same probabilities."""
    shutil.copytree(exported.folder, tmp_path / "int8")
    for name in (ENCODE, PROJECT, DECODE_STEP):
        round_weights(tmp_path / "int8" / name)
    whole, rounded = exported.onnx, OnnxCaptioner(tmp_path / "int8")
    pixels = np.stack([whole.prepare(path).pixels for path in PHOTOS])
    tokens = np.full((len(PHOTOS), 1), whole.tokenizer.bos)
    found = [
        each.decode_step(tokens, each.encode(pixels), each.empty_cache(len(pixels)))[0] for each in (whole, rounded)
    ]
    difference = np.abs(found[0] - found[1])
    assert 0 < difference.mean() < 0.05


def test_an_encoder_that_branches_on_its_values_is_refused(exported, tmp_path):
    class Branching(torch.nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    captioner = copy.deepcopy(exported.captioner)
    if not hasattr(captioner.model.encoder.backbone, "blocks"):
        pytest.skip("another encoder")
    captioner.model.encoder.backbone.blocks.append(Branching())
    name = captioner.model.config.encoder.name
    with pytest.raises(ConfigError, match=rf"^encoder {name}: PyTorch cannot export it \(.+\); choose another$"):
        export_onnx(captioner.model, captioner.tokenizer, tmp_path, card="")
    assert not (tmp_path / "config.json").exists()


@pytest.mark.slow
def test_the_folder_captions_without_torch(exported, tmp_path):
    """In a virtual environment with four packages and nothing else, from another folder."""
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=False, symlinks=True)
    binaries = environment / ("Scripts" if sys.platform == "win32" else "bin")
    python = binaries / Path(sys.executable).name
    [packages] = environment.glob("**/site-packages")
    for name in NEEDED:
        distribution = metadata.distribution(name)
        roots = {file.parts[0] for file in distribution.files or () if file.parts[0] not in ("..", "__pycache__")}
        for each in roots:
            (packages / each).symlink_to(distribution.locate_file(each))
    missing = subprocess.run([python, "-c", "import torch"], capture_output=True, text=True, check=False)
    assert "ModuleNotFoundError: No module named 'torch'" in missing.stderr
    rotated = tmp_path / "rotated.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(PHOTOS[0]).save(rotated, exif=exif)
    paths = [str(path) for path in (*PHOTOS, rotated)]
    command = [python, str(exported.folder / "run.py"), *paths, "--overlays", str(tmp_path / "overlays")]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    captions = exported.captioner(paths)
    assert result.stdout == "".join(f"{path}\t{caption.text}\n" for path, caption in zip(paths, captions, strict=True))
    assert len(list((tmp_path / "overlays").iterdir())) == len(paths)
