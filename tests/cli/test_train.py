"""`captioner train` from the command line: what it prints, resumes and refuses."""

import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from importlib import import_module

import pytest

from captioner.checkpoint import load_model
from captioner.cli import main
from captioner.config_files import load_config
from captioner.model_files import model_folder

TINY = """
data: {batch_images: 4, captions_per_image: 2}
encoder: {name: test_convnext, image_size: [64, 64]}
decoder: {width: 32, layers: 1, heads: 2, max_length: 24}
tokenizer: {min_count: 1}
training: {epochs: 1, trainer: {enable_progress_bar: false, accelerator: cpu}}
"""


@pytest.fixture
def train(tmp_path, shapes):
    config = tmp_path / "tiny.yaml"
    config.write_text(TINY)

    def run(*flags):
        return main(["train", "--config", str(config), "--set", f"data.root={shapes}", *map(str, flags)])

    return run


def test_the_model_folder_is_all_that_is_printed(train, tmp_path, capsys):
    assert train("-o", tmp_path / "run") == 0
    assert capsys.readouterr().out == f"{tmp_path / 'run' / 'model'}\n"
    about = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert about["model"]["encoder"]["name"] == "test_convnext"


def test_a_run_is_named_after_its_configuration(train, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert train() == 0
    assert (tmp_path / "runs" / "tiny" / "model").is_dir()


def test_a_folder_alone_fine_tunes_the_bundled_model(shapes, caplog):
    caplog.set_level("INFO")
    assert main(["train", str(shapes), "--fast-dev-run"]) == 0
    assert f"starting from {model_folder('bundled')}: " in caplog.text


def test_a_folder_gives_the_run_its_name(shapes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(TINY)
    (tmp_path / "my photos").symlink_to(shapes)
    assert main(["train", "my photos", "--config", "tiny.yaml"]) == 0
    assert load_config(tmp_path / "runs" / "my photos" / "config.yaml").data.root == "my photos"


def test_texts_newer_than_the_annotations_are_not_read_and_that_is_said(train, shapes, tmp_path, caplog):
    shutil.copytree(shapes, tmp_path / "data")
    assert train("-o", tmp_path / "run", "--fast-dev-run", "--set", f"data.root={tmp_path / 'data'}") == 0
    assert "is read instead" not in caplog.text
    picture = next((tmp_path / "data" / "images").iterdir())
    picture.with_suffix(".txt").write_text("a corrected caption")
    assert train("-o", tmp_path / "run", "--fast-dev-run", "--set", f"data.root={tmp_path / 'data'}") == 0
    assert "1 text files are newer than captions.json, which is read instead" in caplog.text


def test_something_must_be_named(capsys):
    assert main(["train"]) == 2
    assert "name a folder of photos and captions, or a configuration with --config" in capsys.readouterr().err


def test_resume_auto_continues_or_starts(train, tmp_path, capsys):
    assert train("-o", tmp_path / "run", "--resume", "auto") == 0
    assert "nothing to resume" in capsys.readouterr().err
    assert train("-o", tmp_path / "run") == 2
    assert "already holds a run" in capsys.readouterr().err
    assert train("-o", tmp_path / "run", "--resume", "auto", "--set", "training.epochs=2") == 0
    assert "nothing to resume" not in capsys.readouterr().err


def test_init_starts_from_a_model(train, tmp_path):
    assert train("-o", tmp_path / "first") == 0
    flags = ("--init", tmp_path / "first" / "model", "--set", "decoder.dropout=0.4")
    assert train("-o", tmp_path / "second", *flags) == 0
    (first, words), (second, same) = (load_model(tmp_path / name / "model") for name in ("first", "second"))
    assert len(words) == len(same)
    assert "dropout: 0.4" in (tmp_path / "second" / "config.yaml").read_text()
    assert second.decoder.token_embedding.weight.shape == first.decoder.token_embedding.weight.shape


def test_settings_of_the_network_that_init_overrules_are_named(train, tmp_path, shapes, capsys):
    """Those that the user gives, be they defaults, and not those of a preset."""
    assert train("-o", tmp_path / "first") == 0
    start = ("--init", tmp_path / "first" / "model", "--fast-dev-run")
    capsys.readouterr()
    assert train(*start, "--set", "decoder.dropout=0.4") == 0
    assert main(["train", str(shapes), "--config", "shapes", *map(str, start)]) == 0
    assert "ignored" not in capsys.readouterr().err
    assert train(*start, "--set", "decoder.width=512", "--set", "decoder.layers=2") == 0
    [line] = [line for line in capsys.readouterr().err.splitlines() if "ignored" in line]
    assert line == (
        f"captioner: training starts from {tmp_path / 'first' / 'model'}; ignored: decoder.width 512 (the model "
        "has 32), decoder.layers 2 (the model has 1)"
    )


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (("--set", "training.epoch=1"), 2, "did you mean training.epochs?"),
        (("--epochs", "1"), 2, "unknown flag --epochs; settings are given as --set KEY=VALUE"),
        (("--set", "data.train_split=trian"), 2, "choose one of: test, train, val"),
        (("--init", "nowhere"), 4, "nowhere: no such model"),
        (("--resume", "nowhere.ckpt"), 4, "nowhere.ckpt"),
        (("--set", "encoder.weights=nowhere.pth"), 2, "no such file nowhere.pth"),
    ],
)
def test_what_cannot_be_done_is_told_in_a_line(train, tmp_path, capsys, flags, code, message):
    assert train("-o", tmp_path / "run", *flags) == code
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_unusable_photos_are_listed_before_training_or_left_out(train, shapes, tmp_path, capsys, caplog):
    data = tmp_path / "data"
    shutil.copytree(shapes, data)
    first, second = sorted((data / "images").iterdir())[:2]
    first.write_bytes(b"")
    second.write_bytes(second.read_bytes()[:200])
    flags = ("-o", tmp_path / "run", "--set", f"data.root={data}")
    assert train(*flags) == 2
    error = capsys.readouterr().err
    assert "2 of 22 photos cannot be used; leave them out with --skip-bad" in error
    assert [name in error for name in (first.name, second.name)] == [True, True]
    assert not (tmp_path / "run").exists()
    assert train(*flags, "--skip-bad") == 0
    assert "2 photos are left out (--skip-bad)" in caplog.text


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="terminals as Unix has them")
@pytest.mark.parametrize("terminal", [False, True])
def test_progress_is_for_terminals_and_log_lines_stay_whole(train, tmp_path, shapes, terminal):
    """`captioner train ... | cat` gives the model's folder alone; a bar on standard error never holds a log line."""
    config = tmp_path / "tiny.yaml"
    config.write_text(TINY.replace("enable_progress_bar: false, ", ""))
    command = [sys.executable, "-m", "captioner", "train", "--config", str(config), "-o", str(tmp_path / "run")]
    command += ["--set", f"data.root={shapes}"]
    ours, theirs = os.openpty() if terminal else os.pipe()
    if terminal:
        import_module("termios").tcsetwinsize(theirs, (40, 100))
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs) as process:
        os.close(theirs)
        err = b""
        with suppress(OSError):  # what reading a terminal gives once its other end is closed
            while part := os.read(ours, 4096):
                err += part
        out = process.stdout.read()
    os.close(ours)
    assert process.returncode == 0, err.decode()
    assert out.decode() == f"{tmp_path / 'run' / 'model'}\n"
    lines = re.split(r"[\r\n]+", err.decode().replace("\x1b[A", ""))
    bars = [line for line in lines if "it/s" in line or "%|" in line]
    assert bool(bars) == terminal
    assert not [line for line in bars if "CIDEr-D" in line]
    assert [line for line in lines if line.startswith("epoch 0: CIDEr-D ")]


def test_a_dry_run_prints_and_keeps_nothing(train, tmp_path, capsys):
    assert train("-o", tmp_path / "run", "--fast-dev-run") == 0
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "run").exists()
