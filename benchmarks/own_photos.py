"""Fine-tuning on photos that a model has not seen:
`python -m benchmarks.own_photos --data FOLDER --other FOLDER -o WORK`.

Photos of a data set's split stand for a user's own: some to train on (a tenth of them for validation), others to score.
`--other` is a data set that the model knew before, and may have forgotten. Prints a Markdown table with seconds,
CIDEr-D, and differences to the model before, in points with 95 % intervals over the same photos.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.suggestions import fine_tune, scores_of
from captioner import Captioner
from captioner.data.annotations import CaptionedImage
from captioner.data.formats import load_captions
from captioner.metrics.scores import Scores

VAL_SHARE = 0.1


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", required=True, help="a data set")
    add("--split", default="test", help="the split of it to draw from (default: test)")
    add("--other", required=True, help="another data set")
    add("--other-split", default="val", help="its split to score (default: val)")
    add("--photos", type=int, default=300, help="photos to train on, with their validation (default: 300)")
    add("--captions", type=int, help="at most this many captions of each; default: all")
    add("--test", type=int, default=300, help="photos of each data set to score (default: 300)")
    add("--model", default="bundled", help="the model to start from")
    add("--configs", nargs="+", default=["finetune"], help="ways to fine-tune (default: finetune)")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of the configurations")
    add("--seed", type=int, default=0, help="seed of the choice and of training (default: 0)")
    add("-o", "--output", type=Path, required=True, help="a folder for the runs")
    arguments = parser.parse_args(argv)
    own, other = (load_captions(root) for root in (arguments.data, arguments.other))
    drawn = shuffled(own.split(arguments.split).images, arguments.seed)
    known, test = drawn[: arguments.photos], drawn[arguments.photos :][: arguments.test]
    old = shuffled(other.split(arguments.other_split).images, arguments.seed)[: arguments.test]
    count = int(VAL_SHARE * len(known))
    images = [
        replace(image, split="val" if place < count else "train", captions=image.captions[: arguments.captions])
        for place, image in enumerate(known)
    ]
    before = [scores(arguments.model, each) for each in (test, old)]
    print(
        "| configuration | seconds | own photos | difference | other photos | difference |\n|---|---|---|---|---|---|"
    )
    print(f"| before | | {cider(before[0])} | | {cider(before[1])} | |", flush=True)
    for config in arguments.configs:
        start = time.perf_counter()
        setting = argparse.Namespace(**vars(arguments) | {"config": config})
        model = fine_tune(setting, arguments.output / Path(config).stem, images, own.root, arguments.seed)
        seconds = time.perf_counter() - start
        after = [scores(str(model), each) for each in (test, old)]
        cells = [f"{cider(new)} | {difference(new, each)}" for new, each in zip(after, before, strict=True)]
        print(f"| {config} | {seconds:.0f} | {' | '.join(cells)} |", flush=True)
    return 0


def shuffled(images: Sequence[CaptionedImage], seed: int) -> list[CaptionedImage]:
    """The images in random order."""
    return [images[place] for place in np.random.default_rng(seed).permutation(len(images))]


def scores(model: str, images: Sequence[CaptionedImage]) -> Scores:
    """CIDEr-D of the captions of a model, given by its name or folder."""
    return scores_of(Captioner.from_pretrained(model, device="cpu"), images)


def cider(found: Scores) -> str:
    """CIDEr-D with three digits."""
    return f"{found.corpus['cider_d']:.3f}"


def difference(new: Scores, old: Scores) -> str:
    """By how many points a score changed, with its interval."""
    compared = new.compare(old)["cider_d"]
    low, high = (100 * value for value in compared["interval"])
    return f"{100 * compared['difference']:+.1f} ({low:+.1f} to {high:+.1f})"


if __name__ == "__main__":
    sys.exit(main())
