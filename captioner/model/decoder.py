"""Text decoder.   B images · R caption rows (B x captions or beams) · T tokens · N memory positions · E encoder width
D width · H heads · L layers · V vocabulary
"""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from captioner.config import DecoderConfig
from captioner.errors import ConfigError
from captioner.model.attention import CrossAttention, KeyValues, SelfAttention
from captioner.model.cache import CaptionCache, LayerCache
from captioner.model.dropout import Dropout
from captioner.model.linear import Linear, linear
from captioner.model.memory import Memory

INITIAL_STD = 0.02  # Radford et al. 2019 (GPT-2)
READS_THE_IMAGE = ("feature_", "cross_norm", "cross_attention")
"""Parts of the names of the weights that read the image, which a language model does not have."""


class DecoderOutput(NamedTuple):
    """logits (R, T, V), and the weights (R, L, H, T, N) of every cross-attention, or None unless requested."""

    logits: Tensor
    weights: Tensor | None


class DecoderBlock(nn.Module):
    """GPT-2's pre-norm block with cross-attention: three residual lines."""

    def __init__(self, config: DecoderConfig, dropout: float) -> None:
        super().__init__()
        width, heads = config.width, config.heads
        self.self_norm = nn.LayerNorm(width)
        self.self_attention = SelfAttention(width=width, heads=heads, dropout=dropout)
        self.cross_norm = nn.LayerNorm(width)
        self.cross_attention = CrossAttention(width=width, heads=heads, dropout=dropout, null_patch=config.null_patch)
        self.feed_norm = nn.LayerNorm(width)
        self.feed_forward = nn.Sequential(
            Linear(width, config.feed_forward * width),
            nn.GELU(approximate="tanh"),
            Linear(config.feed_forward * width, width),
            Dropout(dropout),
        )

    def forward(
        self, x: Tensor, memory: KeyValues, cache: LayerCache | None = None, return_weights: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """x (R, T, D) -> (R, T, D), and with `return_weights` the weights (R, H, T, N) of cross-attention."""
        x = x + self.self_attention(self.self_norm(x), cache)
        attended, weights = self.cross_attention(self.cross_norm(x), memory, return_weights)
        x = x + attended
        return x + self.feed_forward(self.feed_norm(x)), weights


class TextDecoder(nn.Module):
    """Token and position embeddings, L blocks that attend to an image's memory, a norm, and tied output embeddings."""

    def __init__(self, config: DecoderConfig, *, vocabulary: int, encoder_width: int, dropout: float = 0.0) -> None:
        super().__init__()
        if not config.feature_projection and encoder_width != config.width:
            raise ConfigError(
                f"decoder.feature_projection: false needs decoder.width {encoder_width}, the encoder's, "
                f"not {config.width}; turn it on or change the width"
            )
        self.config = config
        self.vocabulary = vocabulary
        eps = config.feature_norm_eps
        self.feature_norm = nn.Identity() if eps is None else nn.LayerNorm(encoder_width, eps=eps)
        self.feature_projection = Linear(encoder_width, config.width) if config.feature_projection else nn.Identity()
        self.token_embedding = nn.Embedding(vocabulary, config.width)
        self.position_embedding = nn.Embedding(config.max_length, config.width)
        self.dropout = Dropout(dropout)
        self.blocks = nn.ModuleList(DecoderBlock(config, dropout) for _ in range(config.layers))
        self.final_norm = nn.LayerNorm(config.width)
        self._initialize()

    def project(self, features: Tensor) -> Memory:
        """features (B, N, E) -> the keys and values of every layer, computed once an image; differentiable."""
        projected = self.feature_projection(self.feature_norm(features))
        layers = tuple(block.cross_attention.project(projected) for block in self.blocks)  # type: ignore[operator, union-attr]
        return Memory(layers, ("image",) * features.shape[1] + ("null",) * self.config.null_patch)

    def new_cache(self, capacity: int | None = None) -> CaptionCache:
        """An empty cache for up to `capacity` tokens a row; by default as many as there are positions."""
        return CaptionCache(layers=self.config.layers, capacity=capacity or self.config.max_length)

    def forward(
        self, tokens: Tensor, memory: Memory, cache: CaptionCache | None = None, return_weights: bool = False
    ) -> DecoderOutput:
        """tokens (R, T) int64, the C rows of an image adjacent; with a cache, those that follow the cached ones."""
        states, weights = self.states(tokens, memory, cache, return_weights)
        return DecoderOutput(self.logits(states), weights)

    def states(
        self, tokens: Tensor, memory: Memory, cache: CaptionCache | None = None, return_weights: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """As `forward` up to the last norm, (R, T, D), for callers that need the logits of some tokens only."""
        start = 0 if cache is None else cache.length
        x = self.embed(tokens, start)
        collected = []
        for index, block in enumerate(self.blocks):
            layer_cache = None if cache is None else cache.layers[index]
            x, weights = block(x, memory.layers[index], layer_cache, return_weights)
            collected.append(weights)
        return self.final_norm(x), torch.stack(collected, dim=1) if return_weights else None

    def embed(self, tokens: Tensor, start: int | Tensor = 0) -> Tensor:
        """tokens (R, T) at the positions from `start` on -> the input of the first block (R, T, D)."""
        positions = start + torch.arange(tokens.shape[1], device=tokens.device)
        embedded: Tensor = self.dropout(self.token_embedding(tokens) + self.position_embedding(positions))
        return embedded

    def logits(self, states: Tensor) -> Tensor:
        """states (..., D) -> logits of the next token (..., V), by the token embeddings."""
        return linear(states, self.token_embedding.weight)

    def grow(self, vocabulary: int) -> None:
        """Add embeddings for words appended to the vocabulary, each initialized near the mean of the known ones."""
        known = self.token_embedding.weight.detach()
        noise = torch.randn(vocabulary - len(known), known.shape[1]).to(known)
        new = known.mean(dim=0, keepdim=True) + INITIAL_STD * noise
        self.token_embedding = nn.Embedding.from_pretrained(torch.cat([known, new]), freeze=False)
        self.vocabulary = vocabulary

    def set_dropout(self, rate: float) -> None:
        """Train on with another dropout rate."""
        for module in self.modules():
            if isinstance(module, nn.Dropout):
                module.p = rate

    def set_language(self, language: Literal["train", "freeze"]) -> None:
        """Train everything, or only the weights that read the image."""
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(language == "train" or any(part in name for part in READS_THE_IMAGE))

    def _initialize(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=INITIAL_STD)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
            if isinstance(module, CrossAttention) and module.null is not None:
                nn.init.normal_(module.null, std=INITIAL_STD)
        # Every block adds three times to the residual stream; GPT-2 keeps its variance at depth by shrinking each.
        shrunk = INITIAL_STD / math.sqrt(3 * len(self.blocks))
        for name, parameter in self.named_parameters():
            if name.endswith(("output.weight", "feed_forward.2.weight")):
                nn.init.normal_(parameter, std=shrunk)
        if isinstance(self.feature_projection, nn.Linear):
            nn.init.xavier_uniform_(self.feature_projection.weight)
