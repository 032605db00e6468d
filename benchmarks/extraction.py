"""How much reading photos adds to the encoder's own time when the features of a data set are extracted.

python -m benchmarks.extraction                             the demo photos, repeated
python -m benchmarks.extraction --images 512 --folder DIR

The encoder has random weights, which take the same time as trained ones.
"""

import argparse
import itertools
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

from captioner.config import EncoderConfig
from captioner.data.annotations import CaptionedImage, CaptionSet
from captioner.data.dataset import view_pixels
from captioner.extraction import extract_features
from captioner.images import IMAGE_EXTENSIONS, open_image
from captioner.model.encoder import VisionEncoder

PHOTOS = Path(__file__).resolve().parent.parent / "docs" / "photos"
GOAL = 0.85


def photos(folder: Path, count: int) -> CaptionSet:
    """`count` photos from a folder, repeated if there are too few."""
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_EXTENSIONS)
    if not paths:
        sys.exit(f"{folder}: no photos in this folder")
    repeated = itertools.islice(itertools.cycle(paths), count)
    return CaptionSet(tuple(CaptionedImage(i, path, ("a photo",), None) for i, path in enumerate(repeated)), folder)


def extraction_seconds(encoder: VisionEncoder, captions: CaptionSet, batch: int) -> float:
    """Seconds from files to a finished feature store."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        store = extract_features(encoder, captions, Path(folder), batch_size=batch)
        seconds = time.perf_counter() - start
        del store  # closes the mapped file, which Windows could not delete otherwise
    return seconds


def encoder_seconds(encoder: VisionEncoder, batches: tuple[torch.Tensor, ...]) -> float:
    """Seconds from pixels in memory to features."""
    start = time.perf_counter()
    with torch.inference_mode():
        for pixels in batches:
            encoder(pixels.to(encoder.mean.device)).cpu()
    return time.perf_counter() - start


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Compare feature extraction with the encoder alone.")
    parser.add_argument("--images", type=int, default=128, metavar="N", help="photos per round (%(default)s)")
    parser.add_argument("--folder", type=Path, default=PHOTOS, metavar="DIR", help="folder with the photos")
    parser.add_argument(
        "--encoder", default="tf_efficientnet_lite2", metavar="NAME", help="timm model name (%(default)s)"
    )
    parser.add_argument("--batch", type=int, default=32, metavar="B", help="images per batch (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, metavar="R", help="number of rounds (%(default)s)")
    parser.add_argument("--threads", type=int, metavar="T", help="CPU threads of the encoder (PyTorch's default)")
    arguments = parser.parse_args(argv)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    encoder = VisionEncoder(EncoderConfig(name=arguments.encoder)).eval().to(device)
    captions = photos(arguments.folder, arguments.images)
    pixels = [torch.from_numpy(view_pixels(open_image(i.path).image, encoder.config, i)) for i in captions.images]
    batches = torch.stack(pixels).split(arguments.batch)
    encoder_seconds(encoder, batches[:1])
    whole, alone = [], []
    for _ in range(arguments.rounds):
        whole.append(extraction_seconds(encoder, captions, arguments.batch))
        alone.append(encoder_seconds(encoder, batches))
    print(f"{arguments.encoder}, {device}, {torch.get_num_threads()} threads, {os.cpu_count()} cores")
    print(f"{'':20}{'seconds':>10}{'images/s':>10}   of {arguments.images} images, median of {arguments.rounds}")
    for name, seconds in (("extraction", median(whole)), ("encoder alone", median(alone))):
        print(f"{name:20}{seconds:10.2f}{arguments.images / seconds:10.1f}")
    print(f"{'ratio':20}{median(alone) / median(whole):10.2f}             goal: at least {GOAL}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
