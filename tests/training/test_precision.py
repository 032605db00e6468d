"""Every precision on an accelerator: dtypes that do not match, and operations that autocast refuses.

No accelerator is needed: tensors are fake ones that only claim to be on CUDA.
"""

import pytest
import torch

from captioner.config import Config, DecoderConfig, EncoderConfig, ModelConfig, OptimizationConfig, TokenizerConfig
from captioner.data.dataset import Batch
from captioner.model.caption_model import CaptionModel
from captioner.tokenizer import Tokenizer
from captioner.training.attention_losses import attention_measures
from captioner.training.task import CrossEntropyTask
from captioner.training.validation import CaptionValidation
from tests.fake_cuda import FakeCuda, autocast, to_fake_cuda


def make_task(name):
    tokenizer = Tokenizer.train(["a red circle above a blue star"], TokenizerConfig(min_count=1))
    encoder = EncoderConfig(name=name, image_size=(64, 64))
    decoder = DecoderConfig(width=32, heads=2, layers=2, max_length=16)
    model = CaptionModel(ModelConfig(encoder=encoder, decoder=decoder), vocabulary=len(tokenizer), dropout=0.1)
    model.encoder.freeze("all")
    config = Config(optimization=OptimizationConfig(pointing=0.1))
    return CrossEntropyTask(model, tokenizer, config, CaptionValidation(tokenizer, [], config.training))


def fake_batch(task, stored):
    encoder = task.model.encoder
    return Batch(
        images=None if stored else torch.zeros(2, 3, *encoder.image_size, dtype=torch.uint8, device="cuda"),
        features=torch.zeros(2, encoder.patches.stop, encoder.width, dtype=torch.float16, device="cuda")
        if stored
        else None,
        tokens=torch.zeros(4, 9, dtype=torch.long, device="cuda"),
        lengths=torch.full((4,), 9, device="cuda"),
        image_ids=[1, 2],
        corners=torch.zeros(2, dtype=torch.long, device="cuda"),
        objects=torch.ones(4, 9, dtype=torch.bool, device="cuda"),
        predicting=torch.zeros(2, 32, dtype=torch.long, device="cuda"),
    )


@pytest.mark.parametrize("precision", ["16-true", "bf16-true", "16-mixed", "bf16-mixed"])
@pytest.mark.parametrize(("encoder", "stored"), [("test_vit", False), ("test_convnext", True)])
def test_training_and_captioning_work_in_every_precision(encoder, stored, precision, monkeypatch):
    task = make_task(encoder)
    width, kind = precision.split("-")
    lower = {"16": torch.float16, "bf16": torch.bfloat16}[width]
    monkeypatch.setattr(CrossEntropyTask, "total_steps", 10)
    with FakeCuda():
        to_fake_cuda(task, lower if kind == "true" else torch.float32)
        batch = fake_batch(task, stored)
        with autocast(lower) if kind == "mixed" else torch.enable_grad():
            loss, pointed = task.loss(batch, task.encode(batch))
        assert loss.dtype == torch.float32
        assert pointed is not None
        task.eval()
        with torch.no_grad(), autocast(lower) if kind == "mixed" else torch.enable_grad():
            memory = task.encode(batch)
            _, weights = task.model.decoder.states(batch.tokens[:, :-1], memory, return_weights=True)
            attention_measures(weights, batch, task.model.encoder.grid, task.model.encoder.patches)
            cache = task.model.decoder.new_cache()
            for step in range(3):
                logits = task.model.decoder(batch.tokens[:, step : step + 1], memory, cache).logits
                logits.log_softmax(dim=-1).topk(2)
