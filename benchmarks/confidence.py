"""How well calibrated a model's confidence is: `python -m benchmarks.confidence --model FOLDER --data FOLDER ...`.

A word is right where a human caption of its photo has it. The table has the expected calibration error of the bare
probability, and of the confidence of words, of object words, and of captions (the outcome is the share of right words):
first by a temperature and by regressions fitted on half of the photos of all data sets, for the other half, then by
what the model stores. The area is that of right above wrong words. Prints Markdown.
"""

import argparse
import sys
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from benchmarks.ranking import area_under_curve
from captioner import Captioner
from captioner.calibration import WordOutcomes
from captioner.caption import Captioned
from captioner.data.formats import load_captions
from captioner.inspection.hallucination import sigmoid

Weights = tuple[tuple[float, float, float, float], ...]
BINS = 10
COLUMNS = ("words", "right", "probability", "words", "object words", "captions", "area under the curve")


def calibration_error(confidence: NDArray[np.float64], outcomes: NDArray[np.generic]) -> float:
    """Expected calibration error: the mean gap between confidence and outcome, in ten bins of equal count."""
    bins = np.array_split(np.argsort(confidence, kind="stable"), BINS)
    gaps = [abs(confidence[each].mean() - outcomes[each].mean()) * len(each) for each in bins if len(each)]
    return float(sum(gaps) / len(confidence))


def row(outcomes: WordOutcomes, confidence: NDArray[np.float64]) -> tuple[float, ...]:
    """The columns for words with these calibrated confidences."""
    right, objects = outcomes.right, outcomes.is_object
    _, caption, count = np.unique(outcomes.captions, return_inverse=True, return_counts=True)
    means = [np.bincount(caption, values) / count for values in (confidence, right)]
    return (
        len(right),
        float(right.mean()),
        calibration_error(sigmoid(outcomes.features[:, 0]), right),
        calibration_error(confidence, right),
        calibration_error(confidence[objects], right[objects]),
        calibration_error(*means),
        area_under_curve(confidence[right], confidence[~right]),
    )


def temperature(words: WordOutcomes) -> Weights:
    """The weights of a temperature alone: the likeliest one."""
    candidates = [((slope, 0.0, 0.0, 0.0),) * 2 for slope in np.linspace(0.1, 2, 191).tolist()]
    chances = (np.where(words.right, chance, 1 - chance) for chance in map(words.confidence, candidates))
    return candidates[int(np.argmax([np.log(chance).mean() for chance in chances]))]


def cross_validated(
    tables: list[WordOutcomes], fit: Callable[[WordOutcomes], Weights] = WordOutcomes.fit
) -> list[NDArray[np.float64]]:
    """The confidence of the words of each data set, by weights fitted to the other half of the photos of all."""
    found = [np.zeros(len(each.right)) for each in tables]
    for half in (0, 1):
        others = [each.take(each.captions % 2 != half) for each in tables]
        weights = fit(WordOutcomes(*map(np.concatenate, zip(*others, strict=True))))
        for each, confidence in zip(tables, found, strict=True):
            part = each.captions % 2 == half
            confidence[part] = each.take(part).confidence(weights)
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--data", action="append", required=True, help="a data set's folder; may be repeated")
    parser.add_argument("--split", default="val")
    parser.add_argument("--captions", type=int, default=1000, help="of each data set; default: 1000")
    arguments = parser.parse_args(argv)
    captioner, tables = Captioner.from_pretrained(arguments.model), []
    for folder in arguments.data:
        images = load_captions(folder).split(arguments.split).images[: arguments.captions]
        stream = captioner.stream([image.content for image in images])
        pairs = [
            (each.caption, image.captions)
            for each, image in zip(stream, images, strict=True)
            if isinstance(each, Captioned)
        ]
        tables.append(WordOutcomes.of(pairs))
    print(f"| data | fitted on | {' | '.join(COLUMNS)} |\n|---|---|{'---|' * len(COLUMNS)}")
    rows = {
        "the other half, temperature alone": cross_validated(tables, temperature),
        "the other half": cross_validated(tables),
    }
    if weights := captioner.model.config.confidence:
        rows["stored"] = [each.confidence(weights) for each in tables]
    for name, confidences in rows.items():
        for folder, outcomes, confidence in zip(arguments.data, tables, confidences, strict=True):
            words, *shares = row(outcomes, confidence)
            print(f"| {folder} | {name} | {words} | {' | '.join(f'{share:.3f}' for share in shares)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
