"""captioner export: write a model for use without PyTorch."""

import argparse
import importlib
import sys
from pathlib import Path

from captioner.cli.files import check_new_folder
from captioner.errors import ResourceError
from captioner.model_files import BUNDLED, CARD, existing_model, model_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    formats = parser.add_subparsers(metavar="FORMAT", dest="format", required=True)
    description = (
        "Write a folder with a model as ONNX graphs and a small command line, run.py, that captions photos and draws "
        "attention with NumPy, Pillow, tokenizers and ONNX Runtime alone."
    )
    onnx = formats.add_parser("onnx", help="ONNX graphs, and a runner for ONNX Runtime", description=description)
    onnx.add_argument(
        "--model", type=existing_model, default=BUNDLED, metavar="M", help="a model folder or a .ckpt; default: bundled"
    )
    onnx.add_argument("-o", "--output", metavar="DIR", required=True, type=Path, help="the folder to write")
    onnx.add_argument("--int8", action="store_true", help="8-bit weights: smaller and faster, but some captions change")


def run(arguments: argparse.Namespace) -> int:
    check_new_folder("-o", arguments.output)

    try:
        for package in ("onnxruntime", "onnxscript"):  # PyTorch's exporter needs the latter
            importlib.import_module(package)
    except ImportError as error:
        raise ResourceError(f'{error.name} is not installed; pip install "captioner[onnx]"') from error

    from captioner.checkpoint import load_model
    from captioner.export.folder import export_onnx

    source = model_folder(arguments.model)
    model, tokenizer = load_model(source)
    card = source / CARD
    text = card.read_text(encoding="utf-8") if card.is_file() else f"# {source.stem}\n\nAn image captioner.\n"
    if tokenizer.controls("style") or tokenizer.controls("length"):
        note = "the exported folder captions without the styles and lengths that the model has learned"
        print(f"captioner: {note}", file=sys.stderr)
    export_onnx(model, tokenizer, arguments.output, card=text, int8=arguments.int8)
    print(arguments.output)
    return 0
