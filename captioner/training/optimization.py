"""Parameter groups, optimizer and learning-rate schedule."""

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from captioner.config import OptimizationConfig
from captioner.errors import ConfigError
from captioner.model.caption_model import CaptionModel
from captioner.model.encoder import VisionEncoder


def parameter_groups(model: CaptionModel, config: OptimizationConfig) -> list[dict[str, object]]:
    """Trained parameters by learning rate and weight decay; gains, biases and the null patch do not decay.

    Raises ConfigError for `encoder_layer_decay` where timm does not group the backbone's layers.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    rates = _encoder_rates(model.encoder, config)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            rate = rates.get(name, config.learning_rate)
            decay = config.weight_decay if _decays(name, parameter) else 0.0
            groups.setdefault((rate, decay), []).append(parameter)
    # The decoder's first: the first group's learning rate is the one that is logged.
    order = sorted(groups, key=lambda key: (config.learning_rate != key[0], -key[0], -key[1]))
    return [{"params": groups[key], "lr": key[0], "weight_decay": key[1]} for key in order]


def _encoder_rates(encoder: VisionEncoder, config: OptimizationConfig) -> dict[str, float]:
    """The learning rate of each of the encoder's parameters; the last layer group has `encoder_learning_rate`."""
    names = [name for name, _ in encoder.named_parameters()]
    rates = dict.fromkeys((f"encoder.{name}" for name in names), config.encoder_learning_rate)
    if config.encoder_layer_decay == 1:
        return rates
    layers = encoder.layer_groups()
    if layers is None:
        raise ConfigError(
            f"optimization.encoder_layer_decay: timm does not say how the layers of {encoder.config.name} follow each "
            "other; write 1"
        )
    for depth, layer in enumerate(reversed(layers)):
        for name in layer:
            rates[f"encoder.backbone.{name}"] *= config.encoder_layer_decay**depth
    return rates


def _decays(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim > 1 and not name.endswith(".null")


def warmup_cosine(step: int, *, warmup: int, total: int, final: float) -> float:
    """The learning-rate factor at a step: linear warmup to 1, then cosine decay to `final`."""
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))


def optimizer_and_schedule(
    model: CaptionModel,
    config: OptimizationConfig,
    *,
    total_steps: int,
    shift: Callable[[], int] = lambda: 0,
    fused: bool = True,
) -> tuple[torch.optim.Optimizer, LambdaLR]:
    """AdamW over the parameter groups, and the schedule over `total_steps` steps; `shift` is added to each step."""
    optimizer = AdamW(parameter_groups(model, config), betas=config.betas, fused=fused)
    warmup = min(config.warmup_steps, max(1, total_steps // 10))

    def factor(step: int) -> float:
        place = max(0, step + shift())
        return warmup_cosine(place, warmup=warmup, total=total_steps, final=config.final_learning_rate)

    return optimizer, LambdaLR(optimizer, factor)
