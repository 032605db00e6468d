"""captioner data: check, describe, split and prepare data sets."""

import argparse
import json
import math
import re
import shlex
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median

from tqdm import tqdm

from captioner.cli import suggestion
from captioner.cli.files import check_output, write_whole
from captioner.cli.flags import number
from captioner.cli.shard import LINE, add_shard_flags, shard
from captioner.data import archives
from captioner.data.annotations import CaptionSet, Listing, Problem, image_name
from captioner.data.checks import check, split_anew, unread_texts, usable
from captioner.data.duplicates import Fingerprint, fingerprint, grouped, look_alike, same_bytes
from captioner.data.formats import FORMATS, read_listing
from captioner.data.repairs import apply_repair, find_repairs
from captioner.data.review import Look, review
from captioner.data.splits import TRAIN, coco_annotations, split_names, with_splits
from captioner.errors import AnnotationError, ConfigError, ImageError, InputError
from captioner.images import open_image
from captioner.text import printable

UNUSABLE_CODES = frozenset(
    ("empty", "truncated", "corrupt", "too_many_pixels", "not_an_image", "needs_extra", "unreadable")
)
"""Codes of images that cannot be opened, which training can leave out."""
ANNOTATIONS = "captions.json"
TOP_WORDS = 20
"""Number of the most frequent words to print."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(metavar="ACTION", dest="action", required=True)
    for name, line in (
        ("check", "print each problem on a line (severity, code, place, message), and whether training can start"),
        ("split", "divide the usable images into train, val and test, with copies of a picture in one split"),
        ("stats", "print counts, caption lengths, words and image sizes of what is usable, as JSON"),
        ("shard", LINE),
        ("fix", "convert text files to UTF-8, and move empty and broken files of a folder into quarantine"),
    ):
        action = actions.add_parser(name, help=line, description=line)
        action.add_argument("root", nargs="?", metavar="ROOT", help="a folder with captions and images")
        action.add_argument("--annotations", metavar="FILE", help="the annotation file; default: found in ROOT")
        action.add_argument("--images", metavar="DIR", help="the image folder; default: ROOT/images, else ROOT")
        action.add_argument("--format", choices=FORMATS, default="auto", help="default: detected")
        if name == "shard":
            add_shard_flags(action)
        elif name == "fix":
            action.add_argument("--write", action="store_true", help="do it; default: print what would be done")
            where = "folder for originals and unusable files; default: ROOT-quarantine"
            action.add_argument("--quarantine", type=Path, metavar="DIR", help=where)
        else:
            action.add_argument("--no-decode", action="store_true", help="do not open the images")
        if name == "check":
            action.add_argument("--html", type=Path, metavar="FILE", help="also write a page of the problems")
        if name == "split":
            where = (
                "the annotations with splits, in COCO's format; images that the file already has keep their splits; "
                "default: ROOT/captions.json, if there is none"
            )
            action.add_argument("-o", "--output", type=Path, metavar="FILE", help=where)
            for split in ("val", "test"):
                share = f"share of the images for {split}; default: 0.1"
                action.add_argument(f"--{split}", type=number(float, 0, 0.9), default=0.1, metavar="P", help=share)
            action.add_argument("--keep", metavar="COLUMN", help="also write this column, such as that of styles")
            action.add_argument("--seed", type=int, default=0, metavar="N", help="another seed gives other splits")
    line = "name the photos of a folder worth captioning next: those the model is least sure of, unlike each other"
    suggestion.add_arguments(actions.add_parser("suggest", help=line, description=line))
    line = "verify and unpack the archives of a published data set; for missing ones, print how to fetch them"
    action = actions.add_parser("prepare", help=line, description=line)
    action.add_argument("name", choices=archives.DATA_SETS, help="coco is Karpathy's split of COCO 2014")
    action.add_argument("root", nargs="?", type=Path, metavar="ROOT", help="where to unpack to; default: data/NAME")
    action.add_argument("--archives", type=Path, metavar="DIR", help="where the archives are; default: ROOT/archives")


def run(arguments: argparse.Namespace) -> int:
    if arguments.action == "suggest":
        return suggestion.run(arguments)
    if arguments.action == "prepare":
        root = arguments.root or Path("data", arguments.name)
        return prepare(archives.DATA_SETS[arguments.name], root, arguments.archives or root / "archives")
    if arguments.root is None and arguments.annotations is None:
        raise ConfigError("no data set given; name a folder, or --annotations FILE and --images DIR")
    if arguments.action == "shard":
        return shard(arguments)
    keep = arguments.keep if arguments.action == "split" else None
    listing = read_listing(arguments.root, arguments.annotations, arguments.images, arguments.format, keep)
    if arguments.action == "fix":
        return fix(listing, arguments.quarantine, write=arguments.write)
    decode = not arguments.no_decode
    if arguments.action == "check":
        unread = unread_texts(listing.source) if arguments.annotations is None and listing.source.is_file() else None
        return print_problems(listing, decode, arguments.html, [unread] if unread else [])
    if arguments.action == "split":
        output = arguments.output or Path(arguments.root or listing.source.parent) / ANNOTATIONS
        if arguments.output is None and output.exists():
            message = f"{output}: exists; name the file to write with -o, or read the text files anew: "
            raise ConfigError(message + split_anew(output))
        check_output("-o", output)
        shares = {"test": arguments.test, "val": arguments.val}
        known = known_splits(listing, output, shares)
        return write_splits(listing, decode, output, shares, arguments.seed, keep, known)
    captions = usable(listing, decode)
    if not len(captions):
        raise AnnotationError(f"{listing.source}: no image is usable; `captioner data check` says why")
    if left_out := sum(bool(image.captions) for image in listing.images) - len(captions):
        print(f"captioner: {left_out} unusable images are left out; see captioner data check", file=sys.stderr)
    described = describe(captions)
    if decode:
        sizes = zip(*(open_image(image.path).size for image in captions.images), strict=True)
        described["image_sizes"] = {
            side: {"min": min(values), "median": median(values), "max": max(values)}
            for side, values in zip(("width", "height"), sizes, strict=True)
        }
    print(json.dumps(described, indent=2, ensure_ascii=False))
    return 0


def print_problems(listing: Listing, decode: bool, html: Path | None, known: Sequence[Problem] = ()) -> int:
    """Print all problems of a data set, those already `known` first, and write a page of them; 1 if there are any."""
    if html is not None:
        check_output("--html", html, [listing.source])
    looks: dict[str, Look] = {}
    problems = [*known, *check(listing, decode, lambda name, opened: looks.update({name: Look.at(opened)}))]
    problems += review(listing, looks, problems)
    for problem in problems:
        print(*map(printable, (problem.severity, problem.code, problem.where, problem.message)), sep="\t")
    summary = verdict(listing, problems)
    if html is not None:
        from captioner.cli.data_page import page

        write_whole(html, page(listing, problems, summary))
    print(f"problems: {len(problems)}; {summary}", file=sys.stderr)
    return 1 if problems else 0


def known_splits(listing: Listing, output: Path, shares: Mapping[str, float]) -> dict[str, str]:
    """Name -> split of the images that a file already has, so that none kept aside for a test is ever trained on.

    Empty where the file lacks one of the splits that are asked for.
    """
    written = read_listing(None, output, listing.root, "coco").images if output.exists() else []
    wanted = {TRAIN, *(split for split, share in shares.items() if share)}
    known = {image_name(image): image.split for image in written if image.split in wanted}
    return known if wanted == set(known.values()) else {}


def write_splits(
    listing: Listing,
    decode: bool,
    output: Path,
    shares: Mapping[str, float],
    seed: int,
    keep: str | None,
    known: Mapping[str, str],
) -> int:
    """Write the usable images with new splits, and print how many each has; those `known` keep theirs."""
    captions = usable(listing, decode=False)
    paths = {image.path.relative_to(captions.root).as_posix(): image.path for image in captions.images}
    prints: dict[str, Fingerprint] = {}
    for name, path in list(paths.items()) if decode else ():
        try:
            if (found := fingerprint(open_image(path).image)) is not None:
                prints[name] = found
        except ImageError as error:
            print(f"captioner: left out: {error}", file=sys.stderr)
            del paths[name]
    copies = grouped([*same_bytes(paths), *look_alike(prints)])
    split = with_splits(captions, split_names(paths, shares, copies, seed, known))
    write_whole(output, json.dumps(coco_annotations(split, keep), ensure_ascii=False, indent=1) + "\n")
    counts = Counter(image.split for image in split.images)
    together = f"; {sum(map(len, copies))} copies in {len(copies)} groups" if copies else ""
    print(output)
    print(
        f"{', '.join(f'{name} {counts[name]}' for name in (TRAIN, *shares) if counts[name])}{together}", file=sys.stderr
    )
    return 0


def verdict(listing: Listing, problems: Sequence[Problem]) -> str:
    """How many images are usable, and whether training can start with them."""
    names = {image_name(image) for image in listing.images}
    errors = [problem for problem in problems if problem.severity == "error"]
    unusable = {each.where for each in errors if each.code in UNUSABLE_CODES} & names
    sound = (image.path.relative_to(listing.root).as_posix() for image in usable(listing, decode=False).images)
    count = sum(name not in unusable for name in sound)
    captioned = sum(bool(image.captions) for image in listing.images)
    usable_images = f"{count} images usable" if count == captioned else f"{count} of {captioned} images usable"
    if not count or any(each.where not in unusable for each in errors):
        remedy = "; `captioner data fix` corrects encodings" if any(each.code == "encoding" for each in errors) else ""
        return f"{usable_images}; training cannot start before the errors are corrected{remedy}"
    if errors:
        return f"{usable_images}; training can start with --skip-bad, or after `captioner data fix`"
    return f"{usable_images}; training can start"


def fix(listing: Listing, quarantine: Path | None, *, write: bool) -> int:
    """Print the repairs of a data set and, with `write`, do them."""
    root = listing.source if listing.source.is_dir() else listing.source.parent
    quarantine = quarantine or root.resolve().with_name(f"{root.resolve().name}-quarantine")
    if quarantine.resolve().is_relative_to(root.resolve()):
        raise ConfigError(f"--quarantine {quarantine}: is in {root}, where images are looked for; name another folder")
    repairs = list(find_repairs(listing))
    for repair in repairs:
        if write:
            apply_repair(repair, root, quarantine)
        action = "move" if repair.encoding is None else "convert"
        print(action, printable(str(repair.path)), printable(repair.reason), sep="\t")
    done = f"done; originals are in {quarantine}" if write else "nothing done yet; --write does it"
    print(f"repairs: {len(repairs)}" + (f"; {done}" if repairs else ""), file=sys.stderr)
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
