"""How well hallucinated objects are detected: `python -m benchmarks.hallucination --data FOLDER`.

Object words of the model's own captions count as hallucinated where no reference names the object. Areas under the
curve of logistic regressions on the word's log-probability, on that and its position, and on all features of its trace;
each half of the photos is scored by the regression on the other half. Prints Markdown.
"""

import argparse
import sys

import numpy as np

from benchmarks.ranking import area_under_curve
from captioner import Captioner
from captioner.data.formats import load_captions
from captioner.faithfulness import HallucinationExamples, hallucination_examples
from captioner.inspection.hallucination import FEATURES, fit_weights, sigmoid

COLUMNS = {
    "probability": [0],
    "probability and place": [0, len(FEATURES) - 1],
    "trace": list(range(len(FEATURES))),
}
"""Detector -> the features that it has."""


def detection(examples: HallucinationExamples) -> dict[str, float]:
    """Detector -> area under the curve, cross-validated on two halves of the photos."""
    features, hallucinated, photos = examples
    half = photos % 2 == 0
    found = {}
    for name, chosen in COLUMNS.items():
        scores = np.zeros(len(features))
        for part in (half, ~half):
            weights = fit_weights(features[~part][:, chosen], hallucinated[~part])
            scores[part] = sigmoid(np.column_stack([features[part][:, chosen], np.ones(int(part.sum()))]) @ weights)
        found[name] = area_under_curve(scores[hallucinated], scores[~hallucinated])
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--data", required=True, help="a data set's folder")
    parser.add_argument("--annotations", help="its annotation file, where there are several")
    parser.add_argument("--split", default="val")
    parser.add_argument("--captions", type=int, default=500, help="default: 500")
    arguments = parser.parse_args(argv)
    images = load_captions(arguments.data, arguments.annotations).split(arguments.split).images[: arguments.captions]
    examples = hallucination_examples(Captioner.from_pretrained(arguments.model), images)
    words, hallucinated = len(examples.hallucinated), int(examples.hallucinated.sum())
    print(f"{hallucinated} of {words} object words of {len(images)} captions are hallucinated\n")
    print("| detected by | area under the curve |\n|---|---|")
    for name, value in detection(examples).items():
        print(f"| {name} | {value:.3f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
