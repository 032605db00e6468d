#!/usr/bin/env python3
"""Make a trained model the bundled one: store its matrices in float16, keep the existing model card, and record the
caption that `captioner doctor` expects.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

BUNDLED = Path(__file__).resolve().parent.parent / "captioner" / "bundled"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="a model folder or a .ckpt")
    parser.add_argument("--output", type=Path, default=BUNDLED, help="default: captioner/bundled")
    arguments = parser.parse_args(argv)

    from captioner.checkpoint import load_model, save_model
    from captioner.cli.doctor import KNOWN, PICTURE
    from captioner.model_files import CARD
    from captioner.pipeline import Captioner

    model, tokenizer = load_model(arguments.model)
    card = arguments.output / CARD
    text = card.read_text(encoding="utf-8") if card.exists() else "# Bundled model\n"
    save_model(arguments.output, model, tokenizer, card=text, half=True)
    caption = Captioner.from_pretrained(arguments.output, device="cpu")(BUNDLED / PICTURE)
    known = {"caption": caption.text, "log_prob": round(caption.log_prob, 4)}
    (arguments.output / KNOWN).write_text(json.dumps(known) + "\n", encoding="utf-8")
    for file in sorted(arguments.output.iterdir()):
        print(f"{file.stat().st_size:>12,d}  {file.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
