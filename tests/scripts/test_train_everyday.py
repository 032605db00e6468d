"""All stages of the bundled model, in small."""

import pytest
import torch

from captioner import cli
from captioner.checkpoint import load_model
from captioner.pipeline import Captioner
from scripts import train_everyday

SMALL = {
    "encoder.weights": "null",
    "encoder.image_size": "[64,64]",
    "decoder.width": "32",
    "decoder.layers": "1",
    "decoder.heads": "2",
    "training.epochs": "1",
    "training.trainer.accelerator": "cpu",
    "training.trainer.precision": "32-true",
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "stages"),
    [([], ["1_finetune", "2_finetune", "3_decoder", "4_self_critical"]), (["--quick"], ["1_quick", "2_self_critical"])],
)
def test_each_stage_goes_on_from_the_one_before_and_is_done_once(
    shapes, tmp_path, capsys, caplog, monkeypatch, flags, stages
):
    main = train_everyday.main
    words = ["--flickr8k", str(shapes), "--coco", str(shapes), "-o", str(tmp_path), *flags]
    words += [word for key, value in SMALL.items() for word in ("--set", f"{key}={value}")]
    assert main([*words, "--minutes", "0.01"]) != 0  # a leg that ends before anything is done
    # The other legs in this process: a new one loads Lightning for seven seconds.
    caplog.set_level("INFO", logger="captioner")
    monkeypatch.setattr(train_everyday, "run", lambda command, end: cli.main(command[3:]))
    assert main(words) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / stages[-1] / "model")
    assert caplog.text.count("starting from") == len(stages) - 1
    assert "before training: validation loss" in caplog.text
    folders = [tmp_path / stage / "model" for stage in stages]
    encoders = [load_model(folder)[0].encoder.state_dict() for folder in folders if "1_finetune" not in str(folder)]
    assert all(torch.equal(encoders[0][name], other[name]) for other in encoders[1:] for name in other)
    assert Captioner.from_pretrained(folders[-1])(next((shapes / "images").iterdir())).text
    before = [(folder / "model.safetensors").stat().st_mtime_ns for folder in folders]
    assert main(words) == 0
    assert [(folder / "model.safetensors").stat().st_mtime_ns for folder in folders] == before
