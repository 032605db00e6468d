"""How well unfamiliar pictures are told from photos: `python -m benchmarks.familiarity --data FOLDER --unlike FOLDER`.

--data names data sets, whose validation photos should be familiar; --unlike is a folder with a folder of pictures for
each kind, such as those of benchmarks.unlike_pictures. Prints a Markdown table: the area under the curve of each kind
against the photos of all data sets, its 95 % bootstrap interval over pictures and photos, and the share that is marked.
"""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.ranking import area_under_curve
from captioner import Captioner
from captioner.data.formats import load_captions
from captioner.errors import ConfigError
from captioner.images import ImageSource
from captioner.prefetch import prefetch

RESAMPLES = 1000


@torch.inference_mode()
def unfamiliarity(captioner: Captioner, pictures: Iterable[ImageSource]) -> NDArray[np.float64]:
    """(B,) above 1 for pictures that the captioner marks. Raises ConfigError if it has no measure of it."""
    found: list[float] = []
    for photos in prefetch(pictures, captioner.prepare, 16):
        pixels = torch.from_numpy(np.stack([photo.pixels for photo in photos]))
        features = captioner.model.encoder(pixels.to(captioner.device))
        found += [each for each in captioner.model.unfamiliarity(features) if each is not None]
    if not found:
        raise ConfigError(f"{captioner.name}: has no familiar distance; fit one with scripts/calibrate.py")
    return np.array(found)


def area_interval(unlike: NDArray[np.float64], photos: NDArray[np.float64]) -> tuple[float, float]:
    """The 95 % bootstrap interval of the area under the curve."""
    random = np.random.default_rng(0)
    areas = [
        area_under_curve(random.choice(unlike, len(unlike)), random.choice(photos, len(photos)))
        for _ in range(RESAMPLES)
    ]
    low, high = np.quantile(areas, [0.025, 0.975])
    return float(low), float(high)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--data", action="append", required=True, help="a data set's folder; may be repeated")
    parser.add_argument("--split", default="val")
    parser.add_argument("--unlike", type=Path, required=True, help="a folder with a folder of pictures for each kind")
    arguments = parser.parse_args(argv)
    captioner = Captioner.from_pretrained(arguments.model)
    print("| pictures | number | area under the curve | 95 % interval | marked |\n|---|---|---|---|---|")
    parts = []
    for folder in arguments.data:
        parts.append(
            unfamiliarity(captioner, (each.content for each in load_captions(folder).split(arguments.split).images))
        )
        print(f"| {folder}, {arguments.split} | {len(parts[-1])} | | | {(parts[-1] > 1).mean():.1%} |")
    photos = np.concatenate(parts)
    for kind in sorted(each for each in arguments.unlike.iterdir() if each.is_dir()):
        found = unfamiliarity(captioner, sorted(kind.iterdir()))
        low, high = area_interval(found, photos)
        area = area_under_curve(found, photos)
        print(f"| {kind.name} | {len(found)} | {area:.3f} | {low:.3f} to {high:.3f} | {(found > 1).mean():.0%} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
