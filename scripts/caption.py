#!/usr/bin/env python3
"""Caption images: the same as `captioner caption`."""

import sys
from collections.abc import Sequence

from captioner.cli import main as captioner


def main(argv: Sequence[str] | None = None) -> int:
    return captioner(["caption", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    sys.exit(main())
