"""The whole network.   B images · R = B·C caption rows · T tokens · N memory positions · V vocabulary"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from captioner.config import ModelConfig
from captioner.model.decoder import TextDecoder
from captioner.model.encoder import VisionEncoder
from captioner.model.familiarity import Familiarity
from captioner.model.memory import Memory
from captioner.model.stage import Stage

GRAY = 128
"""Pixel value of the gray picture that stands for no image."""


class CaptionModel(nn.Module):
    """A vision encoder and a text decoder; `config` is resolved and rebuilds the same network.

    `pretrained` and `weights` say where the encoder's weights come from, as in `VisionEncoder`.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        vocabulary: int,
        dropout: float = 0.0,
        pretrained: bool = False,
        weights: str | None = None,
    ) -> None:
        super().__init__()
        self.encoder = VisionEncoder(config.encoder, pretrained=pretrained, weights=weights)
        self.decoder = TextDecoder(
            config.decoder, vocabulary=vocabulary, encoder_width=self.encoder.width, dropout=dropout
        )
        self.familiarity = Familiarity(self.encoder.width) if config.familiar_distance else None
        self.config = replace(config, encoder=self.encoder.config)

    def encode(self, images: Tensor) -> Memory:
        """images (B, 3, height, width) uint8 -> the keys and values of every layer."""
        return self.decoder.project(self.encoder(images))

    def unfamiliarity(self, features: Tensor) -> list[float | None]:
        """features (B, N, E) -> how unlike the training photos each image is: above 1 it is unfamiliar. None if the
        model has no measure of it."""
        if self.familiarity is None or self.config.familiar_distance is None:
            return [None] * len(features)
        return [*(self.familiarity(features) / self.config.familiar_distance).tolist()]

    def encode_with_stage(self, images: Tensor) -> tuple[Tensor, Memory, Stage | None]:
        """The features (B, N, E) and the memory as from `encode`, in an autograd graph that leads back to an earlier
        stage of the encoder.
        """
        features, stage = self.encoder.with_stage(images)
        with torch.inference_mode(False), torch.enable_grad():
            return features, self.decoder.project(features), stage

    def blind(self, memory: Memory) -> Memory:
        """The memory of as many blank images: only the null patches, or a gray picture if there are none."""
        device = memory.layers[0].keys.device
        null = [position for position, source in enumerate(memory.sources) if source == "null"]
        if null:
            return memory.take(torch.tensor(null, device=device))
        shape = memory.images, 3, *self.encoder.image_size
        return self.encode(torch.full(shape, GRAY, dtype=torch.uint8, device=device))

    def forward(self, images: Tensor, tokens: Tensor) -> Tensor:
        """images (B, 3, height, width) uint8, tokens (R, T) -> logits (R, T, V)."""
        return self.decoder(tokens, self.encode(images)).logits  # type: ignore[no-any-return]
