#!/usr/bin/env python3
"""Show where each word of a caption looked: the same as `captioner inspect`."""

import sys
from collections.abc import Sequence

from captioner.cli import main as captioner


def main(argv: Sequence[str] | None = None) -> int:
    return captioner(["inspect", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    sys.exit(main())
