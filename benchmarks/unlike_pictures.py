"""Pictures unlike everyday photos: `python -m benchmarks.unlike_pictures --packages FOLDER -o FOLDER`.

Diagrams and documents are drawn. The others come from Debian packages and from the wheel of scikit-image, each of which
`dpkg-deb -x` or `unzip` unpacked into a folder of its name; the kind of a missing package is left out. Writes JPEGs of
at most 640 pixels on a white ground, a folder a kind, the same ones each time.
"""

import argparse
import random
import sys
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

SIZE = 640, 480
SIDE = 640, 640
MIN_SIDE = 100
"""Smaller pictures are left out."""
SOURCES = {
    "icons": (60, "oxygen-icon-theme/usr/share/icons/oxygen/base/256x256/**/*.png"),
    "screenshots": (60, "gimp-help-en/usr/share/gimp/**/*.png"),
    "clip art": (60, "openclipart-png/usr/share/openclipart/png/[afoprtu]*/**/*.png"),
    "cartoons": (40, "scratch/usr/share/scratch/Media/Costumes/[AF]*/*"),
    "constellation figures": (40, "stellarium-data/usr/share/stellarium/skycultures/**/*.png"),
    "night sky": (80, "stellarium-data/usr/share/stellarium/nebulae/default/*.png"),
    "rockets": (1, "scikit-image/skimage/data/rocket.jpg"),
    "scanned text": (2, "scikit-image/skimage/data/[pt][ae][gx][et].png"),
}
"""Kind -> the number of pictures, and where they are."""
WORDS = (
    "the",
    "report",
    "of",
    "a",
    "year",
    "on",
    "water",
    "and",
    "energy",
    "use",
    "shows",
    "that",
    "costs",
    "rose",
    "by",
)
COLORS = ("black", "firebrick", "royalblue", "seagreen", "darkorange", "purple")


def diagram(random: random.Random) -> Image.Image:
    """Bars, lines, points, a pie, or boxes with arrows."""
    picture = Image.new("RGB", SIZE, "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(16)
    kind = random.choice(("bars", "lines", "points", "pie", "boxes"))
    if kind in ("bars", "lines", "points"):
        draw.line([(60, 40), (60, 430), (610, 430)], "black", 2)
        for mark in range(1, 6):
            draw.text((25, 430 - 70 * mark), str(mark * 10), "black", font)
    if kind == "bars":
        for bar in range(6):
            draw.rectangle([90 + 85 * bar, random.randint(60, 400), 145 + 85 * bar, 430], random.choice(COLORS))
            draw.text((92 + 85 * bar, 440), random.choice(WORDS), "black", font)
    elif kind == "lines":
        for color in random.sample(COLORS, 3):
            draw.line([(60 + 27 * step, random.randint(80, 400)) for step in range(21)], color, 2)
    elif kind == "points":
        for _ in range(100):
            draw.circle((random.gauss(330, 90), random.gauss(240, 60)), 4, random.choice(COLORS))
    elif kind == "pie":
        cuts = sorted(random.sample(range(20, 340), 4))
        for start, end, color in zip([0, *cuts], [*cuts, 360], COLORS, strict=False):
            draw.pieslice([150, 70, 490, 410], start, end, color, "white", 2)
    else:
        places = [(random.randint(80, 560), 50 + 75 * row) for row in range(6)]
        draw.line(places, "black", 2)
        for x, y in places:
            draw.rounded_rectangle(
                [x - 70, y - 20, x + 70, y + 20], 8, random.choice(("white", "khaki", "lightblue")), "black"
            )
            draw.text((x - 40, y - 10), " ".join(random.sample(WORDS, 2)), "black", font)
    draw.text((200, 8), " ".join(random.sample(WORDS, 3)), "black", ImageFont.load_default(22))
    return picture


def document(random: random.Random) -> Image.Image:
    """A page of text with a title, in one or two columns."""
    width, height = random.choice(((620, 877), SIZE, (500, 700)))
    picture = Image.new("RGB", (width, height), random.choice(("white", "#fbf7ea", "#f0f0f0")))
    size, columns, margin = random.randint(9, 16), random.choice((1, 2)), random.randint(20, 60)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size)
    draw.text((margin, margin), " ".join(random.sample(WORDS, 4)), "black", ImageFont.load_default(2 * size))
    letters = (width - margin * (columns + 1)) // columns * 2 // size
    for column in range(columns):
        for line in range(3, int((height - 2 * margin) / size / 1.4)):
            text = " ".join(random.choices(WORDS, k=40))[: letters // (3 if random.random() < 0.1 else 1)]
            draw.text((margin + column * (width // columns), margin + line * size * 1.4), text, "#222", font)
    return picture


def taken(random: random.Random, files: list[Path], count: int) -> Iterator[Image.Image]:
    """So many of the files, on white."""
    for path in random.sample(sorted(files), len(files)):
        if count and path.suffix in (".png", ".jpg", ".gif"):
            with Image.open(path) as opened:
                if min(opened.size) >= MIN_SIDE:
                    opened.thumbnail(SIDE)
                    picture = opened.convert("RGBA")
                    yield Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
                    count -= 1


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, required=True, help="the folder with the unpacked packages")
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args(argv)
    kinds = {
        "diagrams": [diagram(random.Random(number)) for number in range(50)],
        "documents": [document(random.Random(number)) for number in range(50)],
    }
    for kind, (count, pattern) in SOURCES.items():
        kinds[kind] = list(taken(random.Random(0), [*arguments.packages.glob(pattern)], count))
    for kind, pictures in kinds.items():
        for number, picture in enumerate(pictures):
            (arguments.output / kind).mkdir(parents=True, exist_ok=True)
            picture.save(arguments.output / kind / f"{number:03d}.jpg", quality=90)
        print(f"{len(pictures):4d} {kind}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
