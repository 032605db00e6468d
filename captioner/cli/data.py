"""captioner data: check and describe data sets."""

import argparse
import json
import math
import re
import sys
from collections import Counter
from statistics import fmean, median

from captioner.data.annotations import CaptionSet, check
from captioner.data.formats import FORMATS, load_captions, read_listing
from captioner.errors import ConfigError
from captioner.images import open_image
from captioner.text import printable

TOP_WORDS = 20
"""Number of the most frequent words to print."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(metavar="ACTION", dest="action", required=True)
    for name, line in (
        ("check", "print each problem on a line (code, place, message); the exit code is 1 if there are any"),
        ("stats", "print counts, caption lengths, words and image sizes as JSON"),
    ):
        action = actions.add_parser(name, help=line, description=line)
        action.add_argument("root", nargs="?", metavar="ROOT", help="a folder with captions and images")
        action.add_argument("--annotations", metavar="FILE", help="the annotation file; default: found in ROOT")
        action.add_argument("--images", metavar="DIR", help="the image folder; default: ROOT/images, else ROOT")
        action.add_argument("--format", choices=FORMATS, default="auto", help="default: detected")
        action.add_argument("--no-decode", action="store_true", help="do not open the images")


def run(arguments: argparse.Namespace) -> int:
    if arguments.root is None and arguments.annotations is None:
        raise ConfigError("no data set given; name a folder, or --annotations FILE and --images DIR")
    source = (arguments.root, arguments.annotations, arguments.images, arguments.format)
    if arguments.action == "check":
        problems = check(read_listing(*source), decode=not arguments.no_decode)
        for problem in problems:
            print(*map(printable, (problem.code, problem.where, problem.message)), sep="\t")
        print(f"problems: {len(problems)}", file=sys.stderr)
        return 1 if problems else 0
    captions = load_captions(*source)
    described = describe(captions)
    if not arguments.no_decode:
        sizes = zip(*(open_image(image.path).image.size for image in captions.images), strict=True)
        described["image_sizes"] = {
            side: {"min": min(values), "median": median(values), "max": max(values)}
            for side, values in zip(("width", "height"), sizes, strict=True)
        }
    print(json.dumps(described, indent=2, ensure_ascii=False))
    return 0


def describe(captions: CaptionSet) -> dict[str, object]:
    """Counts of a data set. Words are runs of letters, digits and apostrophes, in lower case."""
    texts = [text for image in captions.images for text in image.captions]
    words = [re.findall(r"[\w']+", text.lower()) for text in texts]
    lengths = sorted(len(each) for each in words)
    counts = Counter(word for each in words for word in each)
    percentile_95 = lengths[math.ceil(0.95 * len(lengths)) - 1]
    each_image = [len(image.captions) for image in captions.images]
    return {
        "images": len(captions),
        "captions": len(texts),
        "splits": dict(sorted(Counter(image.split or "none" for image in captions.images).items())),
        "captions_per_image": {"min": min(each_image), "mean": fmean(each_image), "max": max(each_image)},
        "caption_words": {"mean": fmean(lengths), "p95": percentile_95, "max": lengths[-1]},
        "vocabulary": len(counts),
        "words_seen_once": sum(count == 1 for count in counts.values()),
        # Ties in alphabetical order, so that the order of the captions does not matter.
        "top_words": dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:TOP_WORDS]),
    }
