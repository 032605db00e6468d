"""A small task, batches written by hand, and processes that have loaded Lightning."""

import pytest
import torch

from captioner.config import Config, DecoderConfig, EncoderConfig, ModelConfig, TokenizerConfig
from captioner.data.dataset import Sample, collate
from captioner.model.caption_model import CaptionModel
from captioner.tokenizer import Tokenizer
from captioner.training.task import CrossEntropyTask
from captioner.training.validation import CaptionValidation
from tests.processes import fork_server, launcher


@pytest.fixture
def task():
    torch.manual_seed(0)
    tokenizer = Tokenizer.train(["a red circle above a blue star"], TokenizerConfig(min_count=1))
    encoder = EncoderConfig(name="test_convnext", image_size=(64, 64))
    decoder = DecoderConfig(width=32, heads=2, layers=2, max_length=16)
    model = CaptionModel(ModelConfig(encoder=encoder, decoder=decoder), vocabulary=len(tokenizer))
    config = Config()
    return CrossEntropyTask(model, tokenizer, config, CaptionValidation(tokenizer, [], config.training)).eval()


@pytest.fixture
def make_batch(task):
    """A batch of images with equally many of the texts each."""

    def batch(texts, images):
        rows = [[task.tokenizer.bos, *task.tokenizer.encode(text), task.tokenizer.eos] for text in texts]
        count = len(rows) // len(images)
        captions = [tuple(rows[start : start + count]) for start in range(0, len(rows), count)]
        samples = [Sample(place, *each) for place, each in enumerate(zip(images, captions, strict=True))]
        return collate(samples, task.tokenizer.pad)

    return batch


@pytest.fixture(scope="session")
def training_server():
    """Loads Lightning once, which takes seven seconds."""
    with fork_server(["captioner.training.run", "tqdm.contrib.logging"]) as process:
        yield process


@pytest.fixture
def launch(training_server, tmp_path_factory):
    with launcher(training_server, lambda: tmp_path_factory.mktemp("streams")) as start:
        yield start
