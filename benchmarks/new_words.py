"""Whether a few photos teach a word: `python -m benchmarks.new_words --data FOLDER --words ball=borlo -o WORK`.

In the captions of a data set, a word is replaced by one that no model knows. The model is fine-tuned on `--with` photos
that most of their captions describe by the new word, and `--without` photos that none does. Then it captions other
photos of both kinds. Prints a Markdown table: recall is the share of photos with the word whose caption has it,
precision the share of captions with the word whose photo has it. `before` is the recall of the old word by the model
before: a caption need not name everything that is in a photo.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.suggestions import fine_tune
from captioner import Captioner
from captioner.data.annotations import CaptionedImage
from captioner.data.formats import load_captions

VAL_SHARE = 0.1


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", required=True, help="a data set that the model has not seen")
    add("--splits", nargs="+", default=["val", "test"], help="the splits of it to draw from (default: val test)")
    add("--words", nargs="+", required=True, metavar="OLD=NEW", help="words of the captions, and what they become")
    add("--with", dest="having", type=int, default=20, help="photos with the word to train on (default: 20)")
    add("--without", type=int, default=180, help="photos without it to train on (default: 180)")
    add("--test", type=int, default=40, help="most photos of each kind to caption (default: 40)")
    add("--model", default="bundled", help="the model to start from")
    add("--config", default="finetune", help="how to fine-tune (default: finetune)")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of the configuration")
    add("--seeds", type=int, default=3, help="random choices of photos (default: 3)")
    add("-o", "--output", type=Path, required=True, help="a folder for the runs")
    arguments = parser.parse_args(argv)
    captions = load_captions(arguments.data)
    images = [image for split in arguments.splits for image in captions.split(split).images]
    print("| word | seed | photos with it | before | recall | precision |\n|---|---|---|---|---|---|")
    for pair in arguments.words:
        old, new = pair.split("=")
        with_word, without = by_word(images, old)
        for seed in range(arguments.seeds):
            generator = np.random.default_rng(seed)
            having = [with_word[place] for place in generator.permutation(len(with_word))]
            lacking = [without[place] for place in generator.permutation(len(without))]
            known = [*having[: arguments.having], *lacking[: arguments.without]]
            val = {known[place].image_id for place in generator.permutation(len(known))[: int(VAL_SHARE * len(known))]}
            own = [renamed(image, old, new, "val" if image.image_id in val else "train") for image in known]
            model = fine_tune(arguments, arguments.output / f"{new}-{seed}", own, captions.root, seed)
            right = having[arguments.having :][: arguments.test]
            wrong = lacking[arguments.without :][: len(right)]
            before = sum(says(arguments.model, old, right))
            found, false = (sum(says(str(model), new, images)) for images in (right, wrong))
            precision = f"{found / (found + false):.2f}" if found + false else "—"
            shares = f"{before / len(right):.2f} | {found / len(right):.2f}"
            print(f"| {new} ({old}) | {seed} | {len(right)} | {shares} | {precision} |", flush=True)
    return 0


def says(model: str, word: str, images: Sequence[CaptionedImage]) -> list[bool]:
    """Whether a model's captions of images have a word."""
    captioner = Captioner.from_pretrained(model, device="cpu")
    return [word in caption.text.split() for caption in captioner([image.path for image in images])]


def by_word(images: Sequence[CaptionedImage], word: str) -> tuple[list[CaptionedImage], list[CaptionedImage]]:
    """The images that more than half of their captions describe by a word, and those that none does."""
    counts = [sum(word in caption.lower().split() for caption in image.captions) for image in images]
    having = [image for image, count in zip(images, counts, strict=True) if 2 * count > len(image.captions)]
    return having, [image for image, count in zip(images, counts, strict=True) if not count]


def renamed(image: CaptionedImage, old: str, new: str, split: str) -> CaptionedImage:
    """The image in a split, with a word replaced in its captions."""
    pattern = re.compile(rf"\b{re.escape(old)}\b", re.IGNORECASE)
    return replace(image, captions=tuple(pattern.sub(new, caption) for caption in image.captions), split=split)


if __name__ == "__main__":
    sys.exit(main())
