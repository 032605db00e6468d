#!/usr/bin/env python3
"""Draw a tiny captioned data set: colored shapes on plain or striped backgrounds, with captions, splits and boxes.

The same seed and number of images give the same bytes. The images and captions are free for any use.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image, ImageDraw

COLORS = {
    "red": (214, 39, 40),
    "green": (44, 140, 60),
    "blue": (31, 90, 200),
    "orange": (245, 140, 20),
    "purple": (130, 60, 170),
    "black": (25, 25, 25),
}
GROUNDS = {"white": (252, 252, 252), "gray": (200, 200, 200), "beige": (240, 224, 196)}
SHAPES = ("circle", "square", "triangle", "star", "diamond", "cross")
DIAMETERS = {"small": (18, 24), "large": (34, 40)}  # pixels
CANVASES = ((96, 96),) * 8 + ((128, 96), (96, 128))
FINER = 4  # supersampling factor, for smooth edges
RELATIONS = {
    "left": ("{a} to the left of {b}", "{b} to the right of {a}", "{b} has {a} on its left"),
    "above": ("{a} above {b}", "{b} below {a}", "{b} under {a}"),
    "on": ("{a} on top of {b}", "{a} sits on {b}", "{b} with {a} on it"),
    "next": ("{a} next to {b}", "{a} beside {b}", "{b} and {a} side by side"),
}
ONE = ("{a}", "there is {a}", "a picture of {a}", "the {kind} is {size} and {color}", "{a} on a {ground} background")
TWO = ("{a} and {b}", "two shapes: {a} and {b}", "{a} and {b} on a {ground} background")


@dataclass(frozen=True)
class Shape:
    """A shape in a picture, with its center `x`, `y` and its `diameter` in pixels."""

    kind: str
    color: str
    size: str
    diameter: int
    x: float = 0.0
    y: float = 0.0

    @property
    def noun(self) -> str:
        return f"a {self.size} {self.color} {self.kind}"

    @property
    def corners(self) -> list[tuple[float, float]]:
        return [(self.x + self.diameter / 2 * x, self.y + self.diameter / 2 * y) for x, y in outline(self.kind)]

    @property
    def box(self) -> tuple[float, float, float, float]:
        """(left, top, right, bottom) in pixels."""
        xs, ys = zip(*self.corners, strict=True)
        return min(xs), min(ys), max(xs), max(ys)


def outline(kind: str) -> list[tuple[float, float]]:
    """The corners of a shape in the square from -1 to 1, with y pointing down."""
    if kind == "circle":
        return [(math.cos(math.tau * i / 40), math.sin(math.tau * i / 40)) for i in range(40)]
    if kind == "star":
        points = [(1.0 if i % 2 == 0 else 0.4, math.tau * (i / 10 - 0.25)) for i in range(10)]
        return [(radius * math.cos(turn), radius * math.sin(turn)) for radius, turn in points]
    if kind == "cross":
        arm = [(-0.35, -1.0), (0.35, -1.0), (0.35, -0.35)]
        quarters = [arm, *([(-y, x) for x, y in arm], [(-x, -y) for x, y in arm], [(y, -x) for x, y in arm])]
        return [corner for quarter in quarters for corner in quarter]
    return {
        "square": [(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)],
        "triangle": [(0.0, -1.0), (1.0, 1.0), (-1.0, 1.0)],
        "diamond": [(0.0, -1.0), (0.7, 0.0), (0.0, 1.0), (-0.7, 0.0)],
    }[kind]


def arrange(relation: str | None, width: int, height: int, rng: random.Random) -> list[Shape]:
    """One shape, or two shapes with the first in the given relation to the second, placed wholly on the canvas."""
    shapes = []
    for kind, color in zip(rng.sample(SHAPES, 2), rng.sample(sorted(COLORS), 2), strict=True):
        size = rng.choice(sorted(DIAMETERS))
        shapes.append(Shape(kind, color, size, rng.randint(*DIAMETERS[size])))
    first, second = shapes
    gap = rng.uniform(6, 12) if relation in ("left", "above") else 0.0
    if relation in ("left", "next"):
        right = replace(second, x=first.box[2] - second.box[0] + gap, y=rng.uniform(-4, 4) if gap else 0.0)
        mirrored = relation == "next" and rng.random() < 0.5
        shapes = [first, replace(right, x=first.box[0] - second.box[2]) if mirrored else right]
    elif relation is not None:
        shapes = [first, replace(second, x=rng.uniform(-4, 4), y=first.box[3] - second.box[1] + gap)]
    else:
        shapes = [first]
    left, top = (min(shape.box[side] for shape in shapes) for side in (0, 1))
    right_edge, bottom = (max(shape.box[side] for shape in shapes) for side in (2, 3))
    dx = rng.uniform(1, width - 1 - (right_edge - left)) - left
    dy = rng.uniform(1, height - 1 - (bottom - top)) - top
    return [replace(shape, x=shape.x + dx, y=shape.y + dy) for shape in shapes]


def draw(shapes: list[Shape], colors: list[tuple[int, int, int]], width: int, height: int) -> Image.Image:
    """Draw the shapes on a background of one color, or of stripes in two."""
    image = Image.new("RGB", (width * FINER, height * FINER), colors[0])
    pen = ImageDraw.Draw(image)
    if len(colors) > 1:
        for top in range(0, height, 12):
            pen.rectangle((0, top * FINER, width * FINER, (top + 6) * FINER - 1), fill=colors[1])
    for shape in shapes:
        pen.polygon([(x * FINER, y * FINER) for x, y in shape.corners], fill=COLORS[shape.color])
    return image.reduce(FINER)


def describe(shapes: list[Shape], relation: str | None, ground: str, rng: random.Random) -> list[str]:
    """Three to five different captions, in random order."""
    templates = ONE if relation is None else (*RELATIONS[relation], *TWO)
    first, last = shapes[0], shapes[-1]
    fields = {"a": first.noun, "b": last.noun, "ground": ground}
    fields |= {"kind": first.kind, "size": first.size, "color": first.color}
    return [template.format(**fields) for template in rng.sample(templates, rng.randint(3, 5))]


def instance(shape: Shape) -> dict[str, object]:
    """Box, outline and area in pixels, in the format of COCO's instances files."""
    left, top, right, bottom = shape.box
    corners = shape.corners
    pairs = zip(corners, corners[1:] + corners[:1], strict=True)
    return {
        "category_id": SHAPES.index(shape.kind) + 1,
        "bbox": [round(value, 2) for value in (left, top, right - left, bottom - top)],
        "segmentation": [[round(value, 2) for corner in corners for value in corner]],
        "area": round(abs(sum(x * v - u * y for (x, y), (u, v) in pairs)) / 2, 2),
        "iscrowd": 0,
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--output", type=Path, default=Path("data/shapes"), metavar="DIR", help="output folder (data/shapes)"
    )
    parser.add_argument("--images", type=int, default=400, metavar="N", help="number of images, at least 10 (400)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    if arguments.images < 10:
        parser.error(f"--images {arguments.images}: at least 10, so that every split has one")

    rng = random.Random(arguments.seed)
    (arguments.output / "images").mkdir(parents=True, exist_ok=True)
    images: list[dict[str, object]] = []
    captions: list[dict[str, object]] = []
    instances: list[dict[str, object]] = []
    for number in range(1, arguments.images + 1):
        width, height = rng.choice(CANVASES)
        relation = rng.choice([None, None, *RELATIONS])
        shapes = arrange(relation, width, height, rng)
        grounds = rng.sample(sorted(GROUNDS), rng.choice((1, 1, 2)))
        picture = draw(shapes, [GROUNDS[name] for name in grounds], width, height)
        picture.save(arguments.output / "images" / f"{number:06}.png")

        split = {9: "val", 0: "test"}.get(number % 10, "train")
        images.append({"id": number, "file_name": f"{number:06}.png", "width": width, "height": height, "split": split})
        for caption in describe(shapes, relation, grounds[0] if len(grounds) == 1 else "striped", rng):
            captions.append({"id": len(captions) + 1, "image_id": number, "caption": caption})
        for shape in shapes:
            instances.append({"id": len(instances) + 1, "image_id": number, **instance(shape)})

    info = {"description": f"Drawn shapes, seed {arguments.seed}"}
    categories = [{"id": number, "name": kind} for number, kind in enumerate(SHAPES, start=1)]
    files = {
        "captions.json": {"info": info, "images": images, "annotations": captions},
        "instances.json": {"info": info, "images": images, "annotations": instances, "categories": categories},
    }
    for name, content in files.items():
        (arguments.output / name).write_bytes(json.dumps(content, indent=1).encode())
    print(f"{len(images)} images with {len(captions)} captions in {arguments.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
