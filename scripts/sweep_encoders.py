"""Find out which timm backbones work as the encoder.   P prefix tokens · E width

python scripts/sweep_encoders.py                                 two small backbones per family, without weights
python scripts/sweep_encoders.py --names 'vit_*tiny*' 'swin*'     only these
python scripts/sweep_encoders.py --all --limit 2000 --output encoders.md

Prints a Markdown table. The exit code is 1 if a backbone fails with anything but a ConfigError about its size.
"""

from __future__ import annotations

import argparse
import gc
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import timm
import torch

from captioner.config import EncoderConfig
from captioner.errors import ConfigError
from captioner.model.encoder import VisionEncoder

SIZES = (
    *("test", "atto", "femto", "pico", "nano", "xxs", "xx", "xxtiny", "xs", "xtiny", "tiny", "ti", "t", "t0"),
    *("small", "s", "s0", "m0", "b0", "050", "18", "base", "b"),
)
"""Parts of backbone names that say a size, smallest first."""
STEP = 32
"""How many pixels smaller than the first the second size is: the stride of most backbones."""
LOCAL_IMAGES = 2
EDGE = 8
"""Width in pixels of the strips along the bottom and right edges; features must depend on both."""
COLUMNS = (
    *("name", "family", "params (M)", "size", "stride", "grid", "P", "E", "second size", "non-square"),
    *("local", "last layers", "left out", "seconds", "result"),
)


def chosen(patterns: list[str], everything: bool, most: float) -> Iterator[tuple[str, str, float]]:
    """Yield name, family and millions of parameters of each backbone to try, smallest names first within a family."""
    for family in timm.list_modules():
        names = timm.list_models(module=family)
        if patterns:
            matching = set(timm.list_models(patterns, module=family))
            names = [name for name in names if name in matching]
        else:
            names.sort(key=_rank)
        taken = 0
        for name in names:
            with torch.device("meta"):
                millions = sum(each.numel() for each in timm.create_model(name).parameters()) / 1e6
            if millions <= most and (patterns or everything or taken < 2):
                taken += 1
                yield name, family, millions


def _rank(name: str) -> tuple[int, list[int], str]:
    words = name.split("_")
    size = min((SIZES.index(word) for word in words if word in SIZES), default=len(SIZES))
    return size, [int(digits) for digits in re.findall(r"\d+", name)], name


def sweep(name: str, family: str, millions: float) -> dict[str, str]:
    """A row of the table; `result` is `ok` or says what is wrong."""
    start = time.perf_counter()
    row = dict.fromkeys(COLUMNS, "") | {"name": name, "family": family, "params (M)": f"{millions:.1f}"}
    try:
        encoder = _built(name, None)
        height, width = encoder.image_size
        strides = sorted({height // encoder.grid[0], width // encoder.grid[1]})
        row |= {"size": _by(encoder.image_size), "stride": "/".join(map(str, strides)), "grid": _by(encoder.grid)}
        row |= {"P": str(encoder.prefix), "E": str(encoder.width), "local": _local(encoder)}
        unused = _unused(encoder)
        row["left out"] = str(sum(not parameter.requires_grad for parameter in encoder.parameters()))
        row["last layers"] = _last_layers(encoder)
        del encoder
        row["second size"] = _accepted(name, (height, width), ((height - STEP, width - STEP), (2 * height, 2 * width)))
        row["non-square"] = _accepted(name, (height, width), ((height - STEP, width), (2 * height, width)))
        row["result"] = f"unused: {', '.join(unused[:3])}" if unused else "ok"
    except Exception as error:  # the table reports whatever a backbone raises
        row["result"] = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
    row["seconds"] = f"{time.perf_counter() - start:.0f}"
    return row


def _built(name: str, size: tuple[int, int] | None) -> VisionEncoder:
    """Build an encoder and assert that its features are as it says."""
    torch.manual_seed(0)
    encoder = VisionEncoder(EncoderConfig(name=name, image_size=size)).eval()
    encoder.freeze("all")
    for parameter in encoder.parameters():
        if not parameter.any():  # many families initialize residual branches to zero, which would hide the pixels
            torch.nn.init.normal_(parameter, std=0.1)
    plain = _images(encoder, 1)
    below, beside = plain.clone(), plain.clone()
    below[..., -EDGE:, :] = 255 - below[..., -EDGE:, :]
    beside[..., -EDGE:] = 255 - beside[..., -EDGE:]
    with torch.inference_mode():
        features = encoder(plain)
        changes = [(encoder(images) - features).abs().max() for images in (below, beside)]
    assert min(changes) > 0, f"the edge of {_by(encoder.image_size)} images is not seen"
    expected = (1, encoder.prefix + encoder.grid[0] * encoder.grid[1], encoder.width)
    assert features.shape == expected, f"features {tuple(features.shape)}, said to be {expected}"
    (rows, columns), (height, width) = encoder.grid, encoder.image_size
    assert (height - width) * (rows - columns) >= 0, f"grid {_by(encoder.grid)} of images {_by(encoder.image_size)}"
    assert features.isfinite().all(), "features are not finite"
    return encoder


def _accepted(name: str, default: tuple[int, int], wishes: tuple[tuple[int, int], ...]) -> str:
    """The first of these sizes that the backbone accepts or that its error recommends, else `no`."""
    for wish in wishes:
        try:
            return _by(_built(name, wish).image_size)
        except ConfigError as error:
            advice = re.search(r"such as (\d+)x(\d+)", str(error))
        if advice:
            size = int(advice[1]), int(advice[2])
            _built(name, size)
            if size != default and (size[0] == size[1]) == (wish[0] == wish[1]):
                return _by(size)
    return "no"


def _unused(encoder: VisionEncoder) -> list[str]:
    """Trained parameters that get no gradient from a loss over all features."""
    encoder.train()
    encoder(_images(encoder, 2)).square().mean().backward()
    return [key for key, parameter in encoder.named_parameters() if parameter.requires_grad and parameter.grad is None]


def _last_layers(encoder: VisionEncoder) -> str:
    """Whether the last layers can be trained alone."""
    try:
        encoder.freeze(1)
    except ConfigError:
        return "no"
    trained = [parameter.requires_grad for parameter in encoder.parameters()]
    assert any(trained), "encoder.train: 1 trains nothing"
    return "yes"


def _local(encoder: VisionEncoder) -> str:
    """Where features change most if pixels under a corner patch change: that patch (`yes`), `next` to it, or `no`."""
    (rows, columns), (height, width) = encoder.grid, encoder.image_size
    high, wide = height // rows, width // columns
    worst = 0
    for place, (row, column) in (
        ((..., slice(high), slice(-wide, None)), (0, columns - 1)),
        ((..., slice(-high, None), slice(wide)), (rows - 1, 0)),
    ):
        plain = _images(encoder, LOCAL_IMAGES)
        changed = plain.clone()
        changed[place] = 255 - changed[place]
        with torch.inference_mode():
            change = (encoder(changed) - encoder(plain))[:, encoder.prefix :].norm(dim=-1).mean(dim=0)
        found = divmod(int(change.argmax()), columns)
        worst = max(worst, abs(found[0] - row), abs(found[1] - column))
    return ("yes", "next")[worst] if worst < 2 else "no"


def _images(encoder: VisionEncoder, count: int) -> torch.Tensor:
    return torch.randint(256, (count, 3, *encoder.image_size), dtype=torch.uint8)


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _printer(output: Path | None) -> Callable[[str], None]:
    lines: list[str] = []

    def write(line: str) -> None:
        print(line, flush=True)
        lines.append(line)
        if output:
            output.write_text("\n".join(lines) + "\n", encoding="utf-8")

    return write


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Try timm backbones as the encoder and print a table.")
    parser.add_argument(
        "--names", nargs="+", default=[], metavar="PATTERN", help="only these, instead of two per family"
    )
    parser.add_argument("--all", action="store_true", help="every member of every family")
    parser.add_argument(
        "--limit", type=float, default=60, metavar="M", help="largest number of parameters, in millions (%(default)s)"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write the table to this file")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (%(default)s)")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")  # timm's own deprecations
    write = _printer(arguments.output)
    write(f"| {' | '.join(COLUMNS)} |")
    write("|---" * len(COLUMNS) + "|")
    total = failed = 0
    for backbone in chosen(arguments.names, arguments.all, arguments.limit):
        row = sweep(*backbone)
        total, failed = total + 1, failed + (row["result"] != "ok")
        write(f"| {' | '.join(row.values())} |")
        gc.collect()
    write(f"\n{total} backbones, {total - failed} ok, {failed} not; timm {timm.__version__}, torch {torch.__version__}")
    return 1 if failed or not total else 0


if __name__ == "__main__":
    sys.exit(main())
