"""Measure how well metrics agree with people: `python -m benchmarks.human_judgements --data FLICKR8K`.

FLICKR8K is the folder of the data set. It holds captions in a format that captioner reads, and ExpertAnnotations.txt
and CrowdFlowerAnnotations.txt (Hodosh et al. 2013), either there or in its subfolder human_judgements. Each line of
these files has an image, a caption that may belong to another image, and judgments. Each caption is scored against the
five of the image; captions of the image itself are left out. Prints Kendall's tau x 100 between each metric and the
three experts' grades (1 to 4, each counted), and the share of the crowd that said yes. METEOR is left out if Java or
its jar is missing.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from captioner.data.formats import read_listing
from captioner.errors import ResourceError
from captioner.metrics.bleu import bleu
from captioner.metrics.cider import cider_d
from captioner.metrics.meteor import meteor
from captioner.metrics.metric import Captions
from captioner.metrics.object_words import object_words
from captioner.metrics.ptb import tokenize
from captioner.metrics.rouge import rouge_l

SOURCES = {
    "experts": ("ExpertAnnotations.txt", slice(2, 5)),  # image, caption, three grades
    "crowd": ("CrowdFlowerAnnotations.txt", slice(2, 3)),  # image, caption, share of yes, number of yes, of no
}
"""Group of people -> the file with their judgments, and its columns with grades."""


class Judgements(NamedTuple):
    """Captions judged against images.   P pairs · J judgments per pair"""

    captions: Captions
    """(P,)"""
    grades: NDArray[np.float64]
    """(P, J)"""


def kendall(values: NDArray[np.float64], grades: NDArray[np.float64]) -> tuple[float, float]:
    """Kendall's tau-b and tau-c between values (n,) and grades (n,); fast if there are few distinct grades."""
    count = len(values)
    groups = [np.sort(values[grades == grade]) for grade in np.unique(grades)]
    surplus = 0  # concordant pairs minus discordant ones
    for place, low in enumerate(groups):
        for high in groups[place + 1 :]:
            below, above = np.searchsorted(low, high, "left").sum(), np.searchsorted(low, high, "right").sum()
            surplus += int(below) - (len(low) * len(high) - int(above))
    untied = [count**2 - (np.unique(each, return_counts=True)[1] ** 2).sum() for each in (values, grades)]
    classes = min(len(groups), len(np.unique(values)))
    tau_b = 2 * surplus / np.sqrt(float(untied[0]) * float(untied[1]))
    return float(tau_b), 2 * surplus * classes / (count**2 * (classes - 1))


def read_judgements(path: Path, columns: slice, captions: Mapping[str, Sequence[str]]) -> Judgements:
    """Read the pairs of a file; `captions` maps the file name of each image to its captions, in data set order."""
    candidates: list[str] = []
    references: list[Sequence[str]] = []
    grades: list[list[float]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        image, caption, *_ = fields = line.split("\t")
        source, _, number = caption.partition("#")
        if image != source:
            candidates.append(captions[source][int(number)])
            references.append(captions[image])
            grades.append([float(grade) for grade in fields[columns]])
    words = iter(tokenize([*chain.from_iterable(references), *candidates]))
    tokenized = [[next(words) for _ in others] for others in references]
    return Judgements(Captions(list(words), tokenized), np.array(grades))


def scores(captions: Captions) -> dict[str, NDArray[np.float64]]:
    """Metric -> its values (P,)."""
    found = {f"BLEU-{order + 1}": values for order, values in enumerate(bleu(captions).per_image.T)}
    found["ROUGE-L"] = rouge_l(captions).per_image[:, 0]
    try:
        found["METEOR"] = meteor(captions).per_image[:, 0]
    except ResourceError as error:
        print(f"METEOR left out: {error}", file=sys.stderr)
    found["CIDEr-D"] = cider_d(captions).per_image[:, 0]
    objects = object_words(captions).per_image
    # A caption that names no object has no precision; count it as the worst.
    found["object precision"], found["object recall"] = np.nan_to_num(objects).T
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Measure how well metrics agree with human judgments of Flickr8k captions."
    )
    parser.add_argument("--data", type=Path, required=True, metavar="FLICKR8K", help="folder of the data set")
    arguments = parser.parse_args(argv)
    listing = read_listing(arguments.data)
    captions = {Path(image.file_name).name: [str(each.text) for each in image.captions] for image in listing.images}
    columns: dict[str, dict[str, float]] = {}
    for people, (name, grades) in SOURCES.items():
        paths = [arguments.data / name, arguments.data / "human_judgements" / name]
        path = next((path for path in paths if path.is_file()), None)
        if path is None:
            sys.exit(f"{arguments.data}: no {name}, nor in human_judgements; it comes with Flickr8k's captions")
        judged = read_judgements(path, grades, captions)
        count = judged.grades.shape[1]
        columns[f"{people} tau-b"], columns[f"{people} tau-c"] = tau_b, tau_c = {}, {}
        for metric, values in scores(judged.captions).items():
            tau_b[metric], tau_c[metric] = kendall(np.repeat(values, count), judged.grades.ravel())
        print(f"{people}: {len(judged.grades)} pairs, {judged.grades.size} judgements", file=sys.stderr)
    print(" " * 18, *(f"{column:>14}" for column in columns))
    for metric in next(iter(columns.values())):
        print(f"{metric:18}", *(f"{100 * column[metric]:14.2f}" for column in columns.values()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
