#!/usr/bin/env python3
"""Calibrate a model folder, as training does at its end: fit the confidence of its words to validation photos, and the
distance at which photos are unlike the training photos. The folder is written anew, with float32 weights.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="a model folder")
    parser.add_argument("--data", action="append", required=True, help="a data set it was trained on; may be repeated")
    parser.add_argument("--also", action="append", default=[], help="another data set, for its validation photos only")
    parser.add_argument("--train-split", default="train", help="default: train")
    parser.add_argument("--val-split", default="val", help="default: val")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    from captioner.calibration import calibrate
    from captioner.checkpoint import load_model, save_model
    from captioner.data.formats import load_captions
    from captioner.model_files import CARD

    model, tokenizer = load_model(arguments.model)
    sets = [load_captions(folder) for folder in (*arguments.data, *arguments.also)]
    train = [image for each in sets[: len(arguments.data)] for image in each.split(arguments.train_split).images]
    val = [image for each in sets for image in each.split(arguments.val_split).images]
    calibrate(model, tokenizer, train, val)
    save_model(arguments.model, model, tokenizer, card=(arguments.model / CARD).read_text(encoding="utf-8"))
    print(f"confidence {model.config.confidence}, familiar distance {model.config.familiar_distance}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
