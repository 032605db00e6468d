"""captioner data: check, describe and prepare data sets."""

import argparse
import json
import math
import re
import shlex
import sys
from collections import Counter
from pathlib import Path
from statistics import fmean, median

from tqdm import tqdm

from captioner.data import archives
from captioner.data.annotations import CaptionSet, check
from captioner.data.formats import FORMATS, load_captions, read_listing
from captioner.errors import ConfigError, InputError
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
    line = "verify and unpack the archives of a published data set; for missing ones, print how to fetch them"
    action = actions.add_parser("prepare", help=line, description=line)
    action.add_argument("name", choices=archives.DATA_SETS, help="coco is Karpathy's split of COCO 2014")
    action.add_argument("root", nargs="?", type=Path, metavar="ROOT", help="where to unpack to; default: data/NAME")
    action.add_argument("--archives", type=Path, metavar="DIR", help="where the archives are; default: ROOT/archives")


def run(arguments: argparse.Namespace) -> int:
    if arguments.action == "prepare":
        root = arguments.root or Path("data", arguments.name)
        return prepare(archives.DATA_SETS[arguments.name], root, arguments.archives or root / "archives")
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
        sizes = zip(*(open_image(image.path).size for image in captions.images), strict=True)
        described["image_sizes"] = {
            side: {"min": min(values), "median": median(values), "max": max(values)}
            for side, values in zip(("width", "height"), sizes, strict=True)
        }
    print(json.dumps(described, indent=2, ensure_ascii=False))
    return 0


def prepare(data_set: archives.Published, root: Path, folder: Path) -> int:
    """Unpack a published data set from the archives in `folder` and print `root`, ready for training.

    Where archives are missing or incomplete, prints a shell script that fetches them and raises InputError.
    """
    needed = [archive for archive in data_set.archives if not archive.is_unpacked(root)]
    sizes = {archive: archives.fetched(archive, folder) for archive in needed}
    missing = [archive for archive in needed if sizes[archive] < archive.size]
    for archive in missing:
        print(f"# {archive.name}: {sizes[archive]:,} of {archive.size:,} bytes are there; SHA-256 {archive.sha256}")
        target = shlex.quote((folder / archive.name).as_posix())
        print(f"curl --fail --location --create-dirs --continue-at - --output {target} {archive.url}")
    if missing:
        names = ", ".join(archive.name for archive in missing)
        raise InputError(f"{folder}: missing or incomplete: {names}; fetch them as printed above, then run this again")
    with tqdm(total=sum(sizes.values()), desc="verifying", unit="B", unit_scale=True, disable=None) as bar:
        for archive in needed:
            archives.verify(archive, folder, bar.update)
    with tqdm(total=sum(archive.count for archive in needed), desc="unpacking", unit="file", disable=None) as bar:
        archives.unpack(needed, folder, root, bar.update)
    archives.check_splits(data_set, root)
    print(root)
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
