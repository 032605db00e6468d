#!/usr/bin/env python3
"""Caption the photos in docs/photos and show where each word came from, in interactive reports."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

PHOTOS = Path(__file__).resolve().parent.parent / "docs" / "photos"
INDEX = "report.html"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="bundled", help="a model folder or a .ckpt (bundled)")
    parser.add_argument("--output", type=Path, default=Path("demo-output"), help="output folder (demo-output)")
    arguments = parser.parse_args(argv)

    from captioner import BeamSearch, Captioner, CaptionerError
    from captioner.inspection.report import IndexEntry, render_index, render_report
    from captioner.records import UNFAMILIAR_SENTENCE

    try:
        captioner = Captioner.from_pretrained(arguments.model)
        arguments.output.mkdir(parents=True, exist_ok=True)
        entries = []
        for photo in sorted(PHOTOS.glob("*.jpg")):
            trace = captioner.inspect(photo, search=BeamSearch(captions=3))
            note = UNFAMILIAR_SENTENCE.capitalize() if trace.unfamiliar else ""
            print(f"{photo.name}: {trace.text}{note and f' ({UNFAMILIAR_SENTENCE})'}", flush=True)
            page = render_report(trace, name=photo.name, model=captioner.name, index=INDEX)
            (arguments.output / f"{photo.stem}.html").write_bytes(page.encode())
            entries.append(IndexEntry(photo, trace.text, trace.confidence, f"{photo.stem}.html", note=note))
    except CaptionerError as error:
        print(f"demo: error: {error}", file=sys.stderr)
        return error.exit_code
    report = arguments.output / INDEX
    report.write_bytes(render_index(entries, measure="confidence", model=captioner.name).encode())
    print(f"Where each word came from: {report}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
