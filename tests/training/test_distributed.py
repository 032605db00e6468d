"""Real processes of torch.distributed, with gloo."""

import json
import subprocess
import sys

import pytest
import torch

from captioner.checkpoint import load_model
from captioner.data.formats import load_captions
from captioner.generation import Greedy
from captioner.metrics import score_captions
from captioner.pipeline import Captioner
from captioner.training.history import read_table

pytestmark = pytest.mark.slow

CONFIG = """
data: {root: %s, annotations: %s, batch_images: 64, captions_per_image: 1, mosaics: 0.5}
encoder: {name: test_convnext, image_size: [64, 64], train: all}
decoder: {width: 32, layers: 1, heads: 2, max_length: 24, dropout: 0}
tokenizer: {min_count: 1}
training: {epochs: 1, trainer: {accelerator: cpu, precision: 64-true, log_every_n_steps: 1}}
"""
SCRIPT = """
import sys
from pathlib import Path
import torch
from pytorch_lightning.callbacks import Callback
from captioner.config_files import load_config
from captioner.training.run import train

class Recorder(Callback):
    def on_before_optimizer_step(self, trainer, task, optimizer):
        if trainer.is_global_zero and trainer.global_step == 0:
            found = {name: each.grad for name, each in task.named_parameters() if each.grad is not None}
            torch.save(found, folder / "gradients.pt")

folder = Path(sys.argv[2])
folder.mkdir(exist_ok=True)
model = train(load_config(sys.argv[1], sys.argv[3:]), folder / "run", callbacks=[Recorder()])
if model is not None:  # as in captioner.cli
    print(model)
"""


@pytest.fixture
def train(tmp_path, shapes):
    data = json.loads((shapes / "captions.json").read_text())
    for place, image in enumerate(data["images"]):
        image["split"] = "val" if place % 3 == 0 else "train"
    for annotation in data["annotations"]:
        annotation["caption"] = f"a dog and {annotation['caption']}"  # shapes are no object words
    (tmp_path / "named.json").write_text(json.dumps(data))
    (tmp_path / "tiny.yaml").write_text(CONFIG % (shapes, tmp_path / "named.json"))
    (tmp_path / "script.py").write_text(SCRIPT)

    def run(name, *settings):
        folder = tmp_path / name
        command = [sys.executable, tmp_path / "script.py", tmp_path / "tiny.yaml", folder, *settings]
        finished = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
        assert finished.returncode == 0, finished.stderr
        return folder, finished

    return run


def validation(folder):
    """The rows of metrics.csv with the results of a validation."""
    return [row for row in read_table(folder / "run" / "metrics.csv").values() if "val_loss" in row]


def processes(count):
    return f"training.trainer.devices={count}", "training.trainer.strategy=ddp"


def test_fewer_batches_than_processes(train, shapes, tmp_path):
    """Three processes share two training batches and one of validation: the run ends, its one step has the gradient of
    one process with all captions in one batch, and its scores are those of all images.
    """
    whole, _ = train("whole", "data.batch_images=256")
    shared, finished = train("shared", *processes(3))
    expected, found = (torch.load(folder / "gradients.pt", weights_only=True) for folder in (whole, shared))
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-10, atol=1e-14)
    [measured], [single] = (validation(folder) for folder in (shared, whole))
    assert measured["val_loss"] == pytest.approx(single["val_loss"], rel=1e-6)
    assert measured["val_pointing"] == pytest.approx(single["val_pointing"], rel=1e-6)
    val = load_captions(shapes, tmp_path / "named.json").split("val").images
    captioner = Captioner(*load_model(shared / "run" / "model"), name="run")
    captions = captioner([image.path for image in val], search=Greedy())
    scores = score_captions(
        {image.image_id: caption.text for image, caption in zip(val, captions, strict=True)},
        {image.image_id: image.captions for image in val},
    )
    assert measured["val_cider_d"] == pytest.approx(scores["cider_d"], abs=1e-6)
    assert finished.stdout == f"{shared / 'run' / 'model'}\n"


def test_batches_of_unequal_length_in_two_processes(train):
    """Also where a step accumulates several batches of each."""
    whole, _ = train("whole", "data.batch_images=256")
    shared, _ = train("shared", *processes(2), "data.batch_images=24", "training.trainer.accumulate_grad_batches=2")
    expected, found = (torch.load(folder / "gradients.pt", weights_only=True) for folder in (whole, shared))
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-10, atol=1e-14)
