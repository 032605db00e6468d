"""What a trace costs over captioning: `python -m benchmarks.inspection`.

Captioning with beam 5 and inspecting the same photos take turns; medians and their ratios. Rendering is apart.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

from captioner import Captioner
from captioner.inspection.sheet import draw_sheet
from captioner.inspection.trace import METHODS

PHOTOS = Path(__file__).resolve().parent.parent / "docs" / "photos"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--rounds", type=int, default=5, help="of all photos; default: 5")
    arguments = parser.parse_args(argv)

    captioner = Captioner.from_pretrained(arguments.model)
    photos = sorted(PHOTOS.glob("*.jpg"))
    traces = [captioner.inspect(photo) for photo in photos]
    work: dict[str, Callable[[int], object]] = {"caption": lambda number: captioner(photos[number])}
    for method in METHODS:
        work[method] = lambda number, method=method: captioner.inspect(photos[number], method=method)  # type: ignore[misc]
    work["draw"] = lambda number: draw_sheet(traces[number])
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(arguments.rounds):
        for number in range(len(photos)):
            for name, call in work.items():
                start = time.perf_counter()
                call(number)
                seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print(
        json.dumps(
            {
                "photos": len(photos),
                "caption_seconds": round(medians["caption"], 4),
                "trace_over_captioning": {name: round(medians[name] / medians["caption"] - 1, 3) for name in METHODS},
                "drawing_over_captioning": round(medians["draw"] / medians["caption"], 3),
            },
            indent=2,
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
