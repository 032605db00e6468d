"""Small networks with large random weights: what they attend to and say differs visibly from token to token."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from captioner.config import DecoderConfig
from captioner.model.decoder import TextDecoder


@pytest.fixture(scope="session")
def randomize() -> Callable[[nn.Module, int], None]:
    """Redraw every parameter; the standard initialization is so small that nearly everything would look equal."""

    def redraw(module: nn.Module, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
                if "norm.weight" in name:
                    parameter.add_(1.0)

    return redraw


@pytest.fixture(scope="session")
def build(randomize: Callable[[nn.Module, int], None]) -> Callable[..., TextDecoder]:
    """A decoder of width 16 with 2 layers, 4 heads, 11 words, for features of width 6."""

    def make(seed: int = 0, dropout: float = 0.0, **changes: object) -> TextDecoder:
        options = {"width": 16, "layers": 2, "heads": 4, "feed_forward": 2, "max_length": 12}
        decoder = TextDecoder(DecoderConfig(**{**options, **changes}), vocabulary=11, encoder_width=6, dropout=dropout)
        randomize(decoder, seed)
        return decoder.eval()

    return make
