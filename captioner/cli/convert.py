"""captioner convert: convert captioners of transformers to model folders."""

import argparse
from pathlib import Path

from captioner.cli.files import check_new_folder
from captioner.errors import CheckpointError, ConfigError

FROM = "transformers:"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Convert a captioner of transformers (a VisionEncoderDecoderModel: ViT, DeiT or BEiT with GPT-2) to a model "
        "folder, which gives the same captions faster, and can be inspected and trained further."
    )
    parser.add_argument("source", metavar="transformers:DIR", help="a folder that save_pretrained wrote")
    parser.add_argument("-o", "--output", metavar="MODEL", required=True, type=Path, help="the model folder to write")


def run(arguments: argparse.Namespace) -> int:
    if not arguments.source.startswith(FROM):
        raise ConfigError(f"{arguments.source}: name the source as {FROM}DIR")
    check_new_folder("-o", arguments.output)
    source = Path(arguments.source.removeprefix(FROM))
    if not source.is_dir():
        problem = "not a complete transformers captioner (no such folder)"
        raise CheckpointError(f"{source}: {problem}; give a folder with what save_pretrained wrote")

    from captioner.checkpoint import save_model
    from captioner.convert import from_transformers

    model, tokenizer = from_transformers(source)
    save_model(arguments.output, model, tokenizer, card=f"# {source.name}\n\nConverted from transformers.\n")
    print(arguments.output)
    return 0
