"""captioner export: the bundled model without PyTorch, and errors on one line."""

import subprocess
import sys
from pathlib import Path

import pytest

from captioner.cli import main
from captioner.pipeline import Captioner

PHOTOS = sorted((Path(__file__).resolve().parents[2] / "docs" / "photos").glob("*.jpg"))


@pytest.mark.slow
def test_the_bundled_model_gives_the_same_captions(tmp_path, capsys):
    runner = pytest.importorskip("captioner.export.runner", reason="takes the extra `onnx`")
    folder = tmp_path / "onnx"
    assert main(["export", "onnx", "-o", str(folder)]) == 0
    assert capsys.readouterr().out == f"{folder}\n"
    card = (folder / "README.md").read_text(encoding="utf-8")
    bundled = Path(sys.modules["captioner"].__file__).parent / "bundled" / "README.md"
    assert card.startswith(bundled.read_text(encoding="utf-8"))
    captioner, onnx = Captioner.from_pretrained(device="cpu"), runner.OnnxCaptioner(folder)
    found = onnx.caption([onnx.prepare(path) for path in PHOTOS])
    for [caption], expected in zip(found, captioner(list(PHOTOS)), strict=True):
        assert caption.text == expected.text
        assert caption.log_prob == pytest.approx(expected.log_prob, abs=1e-3)
        assert [value for _, value in caption.words] == pytest.approx([w.log_prob for w in expected.words], abs=1e-3)


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (("onnx", "-o", "taken"), 2, "-o taken: exists; name another folder"),
        (("onnx", "-o", "new", "--model", "nowhere"), 4, "nowhere: no such model; name a model folder, a .ckpt file"),
        (("onx", "-o", "new"), 2, "invalid choice: 'onx'"),
    ],
)
def test_errors_are_one_line(tmp_path, monkeypatch, capsys, flags, code, message):
    pytest.importorskip("onnxscript", reason="takes the extra `onnx`")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "something").touch()
    assert main(["export", *flags]) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_a_missing_extra_is_named(tmp_path):
    """In a process of its own, where none of it is loaded yet."""
    code = """
import sys
from captioner.cli import main
for package in ("onnx", "onnxscript", "onnxruntime"):
    sys.modules[package] = None
    print(main(["export", "onnx", "-o", sys.argv[1]]))
    del sys.modules[package]
"""
    command = [sys.executable, "-c", code, str(tmp_path / "new")]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout == "5\n5\n5\n"
    for package, line in zip(("onnx", "onnxscript", "onnxruntime"), result.stderr.splitlines(), strict=True):
        assert line == f'captioner: error: {package} is not installed; pip install "captioner[onnx]"'
    assert not (tmp_path / "new").exists()
