"""Parameter groups, optimizer and learning-rate schedule."""

import math

import torch
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from captioner.config import OptimizationConfig
from captioner.model.caption_model import CaptionModel


def parameter_groups(model: CaptionModel, config: OptimizationConfig) -> list[dict[str, object]]:
    """Trained parameters by learning rate and weight decay; gains, biases and the null patch do not decay."""
    groups: list[dict[str, object]] = []
    for part, rate in ((model.encoder, config.encoder_learning_rate), (model.decoder, config.learning_rate)):
        trained = [(name, parameter) for name, parameter in part.named_parameters() if parameter.requires_grad]
        for decays, decay in ((True, config.weight_decay), (False, 0.0)):
            parameters = [each for name, each in trained if _decays(name, each) == decays]
            if parameters:
                groups.append({"params": parameters, "lr": rate, "weight_decay": decay})
    return groups


def _decays(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim > 1 and not name.endswith(".null")


def warmup_cosine(step: int, *, warmup: int, total: int, final: float) -> float:
    """The learning-rate factor at a step: linear warmup to 1, then cosine decay to `final`."""
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))


def optimizer_and_schedule(
    model: CaptionModel, config: OptimizationConfig, *, total_steps: int, fused: bool = True
) -> tuple[torch.optim.Optimizer, LambdaLR]:
    """AdamW over the parameter groups, and the schedule over `total_steps` steps."""
    optimizer = AdamW(parameter_groups(model, config), betas=config.betas, fused=fused)
    warmup = min(config.warmup_steps, max(1, total_steps // 10))

    def factor(step: int) -> float:
        return warmup_cosine(step, warmup=warmup, total=total_steps, final=config.final_learning_rate)

    return optimizer, LambdaLR(optimizer, factor)
