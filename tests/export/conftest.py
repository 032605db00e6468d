"""Random captioners and what they export to, one for each kind of encoder, fit and memory."""

from pathlib import Path
from typing import NamedTuple

import pytest
import torch

pytest.importorskip("onnxscript", reason="takes the extra `onnx`")

from captioner.config import DecoderConfig, EncoderConfig, ModelConfig, TokenizerConfig
from captioner.export.folder import export_onnx
from captioner.export.runner import OnnxCaptioner
from captioner.model.caption_model import CaptionModel
from captioner.pipeline import Captioner
from captioner.tokenizer import Tokenizer

CAPTIONS = ["a red circle is left of two blue squares", "one small dog sits near the man's green kite on a beach"]
KINDS = {
    "vit": (
        EncoderConfig(name="test_vit", image_size=(64, 96), fit="crop"),
        DecoderConfig(width=32, heads=4, layers=2),
    ),
    "resnet": (
        EncoderConfig(name="test_resnet", image_size=(96, 96), fit="letterbox"),
        DecoderConfig(width=32, heads=2, layers=3, null_patch=False, max_length=20),
    ),
    "efficientnet, pooled": (
        EncoderConfig(name="test_efficientnet", image_size=(192, 96), fit="squash", pool=3),
        DecoderConfig(width=32, heads=2, layers=1),
    ),
}


class Exported(NamedTuple):
    """A captioner and its exported folder."""

    captioner: Captioner
    folder: Path

    @property
    def onnx(self) -> OnnxCaptioner:
        return OnnxCaptioner(self.folder)


def random_captioner(kind: str) -> Captioner:
    """A small captioner that is not indifferent: its weights are larger than at the start of training."""
    torch.manual_seed(0)
    encoder, decoder = KINDS[kind]
    tokenizer = Tokenizer.train(CAPTIONS, TokenizerConfig(min_count=1))
    model = CaptionModel(ModelConfig(encoder=encoder, decoder=decoder), vocabulary=len(tokenizer))
    for parameter in model.decoder.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return Captioner(model, tokenizer, name=kind)


SLOW = [pytest.param(kind, marks=[pytest.mark.slow] if place else []) for place, kind in enumerate(KINDS)]


@pytest.fixture(scope="session", params=SLOW)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    captioner = random_captioner(request.param)
    folder = tmp_path_factory.mktemp("exported") / "onnx"
    export_onnx(captioner.model, captioner.tokenizer, folder, card="# A random model\n")
    return Exported(captioner, folder)
