#!/usr/bin/env python3
"""Run the Python in docs/cross_attention.md, compare its output with the article, and draw the figures."""

import argparse
import contextlib
import io
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

DOCS = Path(__file__).resolve().parent.parent / "docs"
ARTICLE = DOCS / "cross_attention.md"
BLOCK = re.compile(r"^```(python|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CELL, MARGIN = 64, 96


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--figures", type=Path, default=DOCS / "figures", help="output folder (docs/figures)")
    arguments = parser.parse_args(argv)
    names, problems = run(ARTICLE.read_text(encoding="utf-8"))
    for problem in problems:
        print(problem, file=sys.stderr)
    if not problems:
        arguments.figures.mkdir(parents=True, exist_ok=True)
        matrix(names["alignment"].tolist(), names["french"], names["english"]).save(arguments.figures / "alignment.png")
        print(f"the article matches its output; figures in {arguments.figures}")
    return 1 if problems else 0


def run(text: str) -> tuple[dict[str, Any], list[str]]:
    """Run the Python blocks of `text`: the variables they define, and a message for each block whose output differs."""
    names: dict[str, Any] = {}
    problems, printed, start = [], "", 0
    for found in BLOCK.finditer(text):
        kind, content = found.groups()
        line = text.count("\n", 0, found.start()) + 2
        if kind == "text":
            if printed != content:
                problems.append(f"{ARTICLE.name}:{line}: says\n{content}but line {start} prints\n{printed}")
            continue
        output, start = io.StringIO(), line
        code = compile("\n" * (line - 1) + content, str(ARTICLE), "exec")
        with contextlib.redirect_stdout(output):
            exec(code, names)
        printed = output.getvalue()
    return names, problems


def matrix(values: Sequence[Sequence[float]], rows: Sequence[str], columns: Sequence[str]) -> Image.Image:
    """Draw weights as a matrix; larger is darker."""
    font = ImageFont.load_default(15)
    picture = Image.new("RGB", (MARGIN + CELL * len(columns) + 8, 40 + CELL * len(rows) + 8), "white")
    draw = ImageDraw.Draw(picture)
    for column, word in enumerate(columns):
        draw.text((MARGIN + CELL * (column + 0.5), 20), word, "black", font, "mm")
    for row, (word, weights) in enumerate(zip(rows, values, strict=True)):
        top = 40 + CELL * row
        draw.text((MARGIN - 10, top + CELL / 2), word, "black", font, "rm")
        for column, weight in enumerate(weights):
            left = MARGIN + CELL * column
            shade = tuple(round(255 + (dark - 255) * weight) for dark in (8, 81, 156))
            draw.rectangle((left, top, left + CELL - 2, top + CELL - 2), shade, "#d0d7de")
            draw.text(
                (left + CELL / 2, top + CELL / 2), f"{weight:.2f}", "white" if weight > 0.5 else "black", font, "mm"
            )
    return picture


if __name__ == "__main__":
    sys.exit(main())
