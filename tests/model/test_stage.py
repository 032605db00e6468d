"""What the cells of an earlier stage contribute, over the layouts of timm's families."""

import pytest
import torch
from torch.testing import assert_close

from captioner.config import EncoderConfig
from captioner.model.encoder import VisionEncoder
from captioner.model.stage import Stage

# Name -> the stage, its grid, its module, and the order of the module's output as (B, C, h, w).
FAMILIES = {
    "test_efficientnet": (3, (8, 6), "blocks.3", (0, 1, 2, 3)),
    "test_convnext": (2, (8, 6), "stages.2", (0, 1, 2, 3)),
    "test_resnet": (3, (8, 6), "layer3", (0, 1, 2, 3)),
    "test_vit": (3, (8, 6), "blocks.3", None),
    "swin_tiny_patch4_window7_224": (2, (14, 14), "layers.2", (0, 3, 1, 2)),
}


def encoder(name: str) -> VisionEncoder:
    torch.manual_seed(0)
    size = (224, 224) if name.startswith("swin") else (128, 96)
    return VisionEncoder(EncoderConfig(name=name, image_size=size)).eval()


@pytest.mark.parametrize("name", FAMILIES)
def test_contributions_are_the_positive_channels_of_gradient_times_activation(name: str) -> None:
    """A forward hook gives the activation and its gradient in whatever order the family keeps them."""
    number, grid, module, order = FAMILIES[name]
    model = encoder(name)
    assert model.stage == number
    images = torch.randint(0, 256, (2, 3, *model.image_size), dtype=torch.uint8)
    outputs: list[torch.Tensor] = []
    hook = model.backbone.get_submodule(module).register_forward_hook(lambda *found: outputs.append(found[2]))
    features, stage = model.with_stage(images)
    hook.remove()
    assert stage is not None
    flow = torch.randn_like(features)
    [gradient] = torch.autograd.grad(features, outputs, flow, retain_graph=True)
    if order is None:
        gradient, activation = (
            each[:, model.prefix :].transpose(1, 2).unflatten(2, grid) for each in (gradient, outputs[0])
        )
    else:
        gradient, activation = gradient.permute(order), outputs[0].permute(order)
    assert_close(stage.values, activation)
    by_channel = (gradient * (activation - activation.mean(dim=(2, 3), keepdim=True))).detach()
    assert by_channel.min() < 0
    expected = by_channel.clamp(min=0).sum(dim=1)
    found = stage.contributions([features], [flow])
    assert found.shape == (2, *grid)
    assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.max()))
    assert_close(stage.contributions([features], [2 * flow]), 2 * found)  # the graph is still there


@pytest.mark.parametrize("name", FAMILIES)
def test_features_are_those_of_a_plain_pass(name: str) -> None:
    model = encoder(name)
    images = torch.randint(0, 256, (1, 3, *model.image_size), dtype=torch.uint8)
    with torch.inference_mode():
        plain = model(images)
        features, _ = model.with_stage(images)  # in inference mode too
    assert_close(features.detach(), plain)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_an_encoder_without_an_earlier_stage_has_features_alone() -> None:
    model = encoder("test_resnet")
    images = torch.randint(0, 256, (1, 3, *model.image_size), dtype=torch.uint8)
    model.stage = None
    features, stage = model.with_stage(images)
    assert stage is None
    assert_close(features.detach(), model(images))


def test_a_map_that_nothing_depends_on_is_no_stage() -> None:
    first = torch.randn(1, 2, 3, 3, requires_grad=True) * 2
    last = first * 2
    assert Stage.of(first.permute(0, 1, 3, 2).contiguous(), last) is not None
    assert Stage.of(torch.randn(1, 2, 3, 3, requires_grad=True) * 2, last) is None
    assert Stage.of(first * 3 + first, last) is None  # no mere copy
