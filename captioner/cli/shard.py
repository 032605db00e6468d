"""captioner data shard: write a data set into tar files."""

import argparse
import sys
from pathlib import Path

from captioner.cli.flags import number
from captioner.data.formats import load_captions
from captioner.data.shards import SUMS, write_shards

MEGABYTE = 10**6
LINE = "write a split into webdataset tars for data.shards, each with an index, and their checksums"


def add_shard_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `captioner data shard` besides those that name the data set."""
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help="the folder to write to")
    parser.add_argument("--split", default="train", help="default: train")
    size = "largest size of a tar; default: 256"
    parser.add_argument("--megabytes", type=number(int, 1), default=256, metavar="N", help=size)


def shard(arguments: argparse.Namespace) -> int:
    """Write the shards and print their paths."""
    from captioner.data.features import require_space

    source = (arguments.root, arguments.annotations, arguments.images, arguments.format)
    images = load_captions(*source).split(arguments.split).images
    require_space(arguments.output, sum(image.path.stat().st_size for image in images), "shards")
    count = 0
    for path in write_shards(images, arguments.output, max_bytes=arguments.megabytes * MEGABYTE):
        print(path)
        count += 1
    print(f"{len(images)} images in {count} shards; `sha256sum -c {SUMS}` checks copies", file=sys.stderr)
    return 0
