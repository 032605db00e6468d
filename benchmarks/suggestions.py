"""Whether suggested photos teach more than random ones: `python -m benchmarks.suggestions --data FOLDER -o WORK`.

The training split of a data set is taken for a folder without captions. A model is fine-tuned on the photos that
`captioner data suggest` chooses from it, and on as many random ones; both are scored on the test split. Prints a
Markdown table with CIDEr-D, and how many random photos would reach the score of those suggested.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import numpy as np

from captioner import Captioner
from captioner.config_files import load_config
from captioner.data.annotations import CaptionedImage, CaptionSet
from captioner.data.formats import load_captions
from captioner.data.splits import coco_annotations
from captioner.evaluation import evaluate_captions
from captioner.files import write_whole
from captioner.metrics.scores import Scores
from captioner.model_files import model_folder
from captioner.suggestion import candidates, suggest
from captioner.training.run import train


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", required=True, help="a data set with the splits train, val and test, which the model has not seen")
    add("--model", default="bundled", help="the model that suggests, and from which fine-tuning starts")
    add("--config", default="finetune", help="how to fine-tune (default: finetune)")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of the configuration")
    add("--photos", type=int, nargs="+", default=[25, 50, 100, 200, 400], help="how many photos to caption")
    add("--seeds", type=int, default=3, help="random choices of each size, and runs of each suggestion (default: 3)")
    add("-o", "--output", type=Path, required=True, help="a folder for the runs")
    arguments = parser.parse_args(argv)
    captions = load_captions(arguments.data)
    pool, val, test = (captions.split(name) for name in ("train", "val", "test"))
    captioner = Captioner.from_pretrained(arguments.model, device="cpu")
    by_path = {str(image.path): image for image in pool.images}
    found = list(candidates(captioner, by_path))
    scores: dict[str, dict[int, float]] = {"suggested": {}, "random": {}}
    print("| photos | suggested | random | random photos for the same score |\n|---|---|---|---|")
    for count in arguments.photos:
        best = [by_path[each.path] for each in suggest(found, count)]
        runs: dict[str, list[float]] = {name: [] for name in scores}
        for seed in range(arguments.seeds):
            drawn = np.random.default_rng([seed, count]).choice(len(pool), min(count, len(pool)), replace=False)
            for name, chosen in (("suggested", best), ("random", [pool.images[place] for place in sorted(drawn)])):
                folder = arguments.output / f"{name}-{count}-{seed}"
                model = fine_tune(arguments, folder, [*chosen, *val.images], pool.root, seed)
                runs[name].append(cider(Captioner.from_pretrained(model, device="cpu"), test))
        for name, values in runs.items():
            scores[name][count] = fmean(values)
    for count, suggested in scores["suggested"].items():
        needed = random_photos(scores["random"], suggested)
        same = f"{needed:.0f}" if np.isfinite(needed) else f"more than {max(arguments.photos)}"
        print(f"| {count} | {suggested:.3f} | {scores['random'][count]:.3f} | {same} |")
    return 0


def fine_tune(
    arguments: argparse.Namespace, folder: Path, images: Sequence[CaptionedImage], root: Path, seed: int
) -> Path:
    """The model trained on images with splits."""
    folder.mkdir(parents=True, exist_ok=True)
    annotations = folder / "captions.json"
    write_whole(annotations, json.dumps(coco_annotations(CaptionSet(tuple(images), root))).encode())
    config = load_config(arguments.config, arguments.set)
    data = replace(config.data, root=str(root), annotations=str(annotations.resolve()), images=str(root.resolve()))
    config = replace(config, data=data, training=replace(config.training, seed=seed))
    model = train(config, folder, init=model_folder(arguments.model))
    assert model is not None
    return model


def cider(captioner: Captioner, captions: CaptionSet) -> float:
    """CIDEr-D of a model's captions."""
    return scores_of(captioner, captions.images).corpus["cider_d"] or 0.0


def scores_of(captioner: Captioner, images: Sequence[CaptionedImage]) -> Scores:
    """CIDEr-D of a model's captions, found by its default search."""
    found = captioner([image.path for image in images])
    captions = {image.image_id: caption for image, caption in zip(images, found, strict=True)}
    references = {image.image_id: image.captions for image in images}
    return evaluate_captions(captions, references, metrics=("cider_d",)).scores


def random_photos(scores: Mapping[int, float], score: float) -> float:
    """How many random photos reach a score, between those measured; infinite if none does."""
    counts = sorted(scores)
    best = np.maximum.accumulate([scores[count] for count in counts])
    reached = int((best < score).sum())
    if reached == len(counts):
        return float("inf")
    start = max(0, reached - 1)
    return float(np.interp(score, best[start : reached + 1], counts[start : reached + 1]))


if __name__ == "__main__":
    sys.exit(main())
