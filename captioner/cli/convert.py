"""captioner convert: captioners of other programs as model folders."""

import argparse
from pathlib import Path

from captioner.errors import ConfigError

FROM = "transformers:"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Make a model folder of a captioner that transformers saved: a VisionEncoderDecoderModel of ViT, DeiT or BEiT "
        "with GPT-2. It gives the same captions, faster, and can be inspected and trained on."
    )
    parser.add_argument("source", metavar="transformers:DIR", help="a folder that save_pretrained wrote")
    parser.add_argument("-o", "--output", metavar="MODEL", required=True, type=Path, help="the model folder to write")


def run(arguments: argparse.Namespace) -> int:
    if not arguments.source.startswith(FROM):
        raise ConfigError(f"{arguments.source}: name the source as {FROM}DIR")
    if arguments.output.is_file() or (arguments.output.exists() and any(arguments.output.iterdir())):
        raise ConfigError(f"-o {arguments.output}: is there already; name another folder")

    from captioner.checkpoint import save_model
    from captioner.convert import from_transformers

    source = Path(arguments.source.removeprefix(FROM))
    model, tokenizer = from_transformers(source)
    save_model(arguments.output, model, tokenizer, card=f"# {source.name}\n\nConverted from transformers.\n")
    print(arguments.output)
    return 0
