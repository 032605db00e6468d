"""The presets for COCO, on drawn archives in its layout."""

import argparse
import math
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import timm
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities import rank_zero_only

from captioner.cli.train import add_arguments
from captioner.config_files import load_config
from captioner.data.archives import DATA_SETS, unpack
from captioner.training.run import train
from captioner.training.trainer import make_trainer

CONFIGS = Path(__file__).parents[2] / "captioner" / "presets"
MANY_DEVICES = {"coco_vit_8gpu": 8, "coco_vit_2x8gpu": 16}
PRESETS = ("coco_dinov2", "coco_siglip", "coco_vit")
STEPS = 3


class Recorder(Callback):
    """The loss of each step, and the learning rates of the first."""

    def __init__(self):
        self.losses, self.rates = [], set()

    def on_train_batch_end(self, trainer, task, outputs, batch, index):
        self.losses.append(float(outputs["loss"]))
        self.rates |= {group["initial_lr"] for group in trainer.optimizers[0].param_groups}


@pytest.mark.parametrize("preset", PRESETS)
def test_the_encoder_has_pretrained_weights(preset):
    encoder = load_config(CONFIGS / f"{preset}.yaml").encoder
    assert encoder.pretrained
    assert encoder.name in timm.list_pretrained()


@pytest.mark.parametrize("preset", MANY_DEVICES)
def test_many_devices_train_as_one_does(preset):
    """The learning rates grow with the square root of the batch, and the warmup shows as many photos."""
    one, many = load_config("coco_vit"), load_config(preset)
    trainer = many.training.trainer
    times = trainer["devices"] * trainer.get("num_nodes", 1)
    assert times == MANY_DEVICES[preset]
    for rate in ("learning_rate", "encoder_learning_rate"):
        expected = math.sqrt(times) * getattr(one.optimization, rate)
        assert getattr(many.optimization, rate) == pytest.approx(expected, rel=0.02)
    assert many.optimization.warmup_steps * times == one.optimization.warmup_steps
    for section in ("data", "encoder", "decoder", "tokenizer"):
        assert getattr(many, section) == getattr(one, section)


def test_slurm_starts_as_many_processes_as_the_preset_has_devices(monkeypatch):
    """The sbatch file's flags, and what the trainer makes of the environment that srun gives to the tenth process."""
    script = CONFIGS / "coco_vit_2x8gpu.sbatch"
    subprocess.run(["bash", "-n", script], check=True)
    text = script.read_text()
    flags = dict(re.findall(r"^#SBATCH --([a-z-]+)=(\S+)", text, re.MULTILINE))
    [command] = re.findall(r"^srun .* captioner train (.*)", text, re.MULTILINE)
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    config = load_config(parser.parse_args(shlex.split(command)).config, ["training.trainer.accelerator=cpu"])
    environment = {
        **{"JOB_ID": 1, "JOB_NAME": flags["job-name"], "NTASKS": 16, "NTASKS_PER_NODE": flags["ntasks-per-node"]},
        **{"NODELIST": "one,two", "NNODES": flags["nodes"], "PROCID": 9, "LOCALID": 1, "NODEID": 1},
    }
    for name, value in environment.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    monkeypatch.setattr(rank_zero_only, "rank", 0)  # which the trainer sets
    trainer = make_trainer(config, [], [], fast_dev_run=False)
    assert int(flags["nodes"]) * int(flags["ntasks-per-node"]) == trainer.world_size == 16
    assert (trainer.global_rank, trainer.local_rank, trainer.node_rank) == (9, 1, 1)
    assert trainer.strategy.cluster_environment.creates_processes_externally
    assert int(flags["cpus-per-task"]) > config.data.workers


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_it_trains(preset, coco_archives, tmp_path):
    """A few steps without weights, on pictures of two by two patches."""
    unpack(DATA_SETS["coco"].archives, coco_archives, tmp_path, advance=lambda number: None)
    side = 28 if preset == "coco_dinov2" else 32
    small = (
        "encoder.pretrained=false",
        f"encoder.image_size=[{side}, {side}]",
        "data.batch_images=4",
        "data.workers=0",
    )
    options = ("training.trainer.enable_progress_bar=false", "training.trainer.accelerator=cpu", "training.threads=1")
    config = load_config(CONFIGS / f"{preset}.yaml", [f"data.root={tmp_path}", *small, *options])
    recorder = Recorder()
    train(config, tmp_path / "run", fast_dev_run=STEPS, callbacks=[recorder])
    assert len(recorder.losses) == STEPS
    assert all(map(math.isfinite, recorder.losses))
    rates = config.optimization
    assert max(recorder.rates) == rates.learning_rate
    # Twelve blocks, and the patch embedding below them.
    assert min(recorder.rates) == pytest.approx(rates.encoder_learning_rate * rates.encoder_layer_decay**12)


@pytest.mark.slow
def test_self_critical_training_goes_on_from_a_preset(coco_archives, tmp_path):
    unpack(DATA_SETS["coco"].archives, coco_archives, tmp_path, advance=lambda number: None)
    options = (
        f"data.root={tmp_path}",
        "data.batch_images=4",
        "data.workers=0",
        "training.trainer.enable_progress_bar=false",
        "training.trainer.accelerator=cpu",
        "training.threads=1",
    )
    small = ("encoder.name=test_vit", "encoder.pretrained=false", "decoder.layers=1", "training.epochs=1")
    first = train(load_config(CONFIGS / "coco_vit.yaml", [*options, *small]), tmp_path / "first")
    recorder = Recorder()
    config = load_config(CONFIGS / "coco_self_critical.yaml", [*options, "training.epochs=1"])
    assert train(config, tmp_path / "second", init=first, callbacks=[recorder]) is not None
    assert all(map(math.isfinite, recorder.losses))
