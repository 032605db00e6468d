"""The presets for COCO, on drawn archives in its layout."""

import math
from pathlib import Path

import pytest
import timm
from pytorch_lightning.callbacks import Callback

from captioner.config_files import load_config
from captioner.data.archives import DATA_SETS, unpack
from captioner.training.run import train

CONFIGS = Path(__file__).parents[2] / "captioner" / "presets"
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
