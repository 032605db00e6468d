"""Weights between those of the model that a run started from and its own (WiSE-FT, Wortsman et al. 2022).

A model in between forgets less of what it knew, and has learned less of the training photos by heart.
"""

import logging
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from captioner.data.dataset import CaptionDataset
from captioner.data.sampler import evenly_spaced
from captioner.model.caption_model import CaptionModel
from captioner.training.caption_states import caption_states

log = logging.getLogger(__name__)

SHARES = (1.0, 0.75, 0.5, 0.25)
"""The shares of the run's own weights to choose from."""
IMAGES = 500
"""Most validation images that the loss is measured on, evenly spaced."""


def interpolate(model: CaptionModel, start: Mapping[str, Tensor], data: CaptionDataset) -> float:
    """Set the model to the average of its weights and those of the start that has the least loss on validation data.

    Returns the share of the model's own weights.
    """
    model.eval()
    own = {name: value.clone() for name, value in model.state_dict().items()}
    losses = {}
    for share in SHARES:
        model.load_state_dict(between(start, own, share))
        losses[share] = mean_loss(model, data)
    best = min(losses, key=losses.__getitem__)
    model.load_state_dict(between(start, own, best))
    each = ", ".join(f"{share:.0%}: {loss:.3f}" for share, loss in losses.items())
    log.info("validation loss by the share of the new weights: %s; taking %d %%", each, 100 * best)
    return best


def between(start: Mapping[str, Tensor], own: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Each weight's average; whole numbers are those of the run's own."""
    return {
        name: torch.lerp(start[name], value, share) if value.is_floating_point() else value
        for name, value in own.items()
    }


@torch.inference_mode()
def mean_loss(model: CaptionModel, data: CaptionDataset) -> float:
    """The cross-entropy of the captions of images, in nats a token."""
    total, tokens = 0.0, 0
    for image in evenly_spaced(range(len(data.images)), IMAGES):
        states, targets = caption_states(model, data, image)
        total += float(F.cross_entropy(model.decoder.logits(states), targets, reduction="sum"))
        tokens += len(targets)
    return total / tokens
