"""A tiny model that knows the words of a drawn data set."""

from dataclasses import replace

import pytest
import torch

from captioner.config import DecoderConfig, EncoderConfig, ModelConfig, TokenizerConfig
from captioner.data.formats import load_captions
from captioner.model.caption_model import CaptionModel
from captioner.tokenizer import Tokenizer


def network(texts, null_patch=True, seed=0):
    torch.manual_seed(seed)
    tokenizer = Tokenizer.train(texts, TokenizerConfig(min_count=1))
    config = ModelConfig(
        encoder=EncoderConfig(name="test_convnext", image_size=(64, 64)),
        decoder=DecoderConfig(width=32, layers=2, heads=2, max_length=24, null_patch=null_patch),
    )
    return CaptionModel(config, vocabulary=len(tokenizer)).eval(), tokenizer


@pytest.fixture(scope="session")
def images(shapes):
    """Drawn pictures, whose captions name an object of the noun list too."""
    return [
        replace(image, captions=tuple(f"a dog and {text}" for text in image.captions))
        for image in load_captions(shapes).split("train").images[:8]
    ]


@pytest.fixture(scope="session")
def trained(images):
    return network([text for image in images for text in image.captions])
