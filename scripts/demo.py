#!/usr/bin/env python3
"""Caption the photos in docs/photos and show where each word looked, on an HTML page."""

import argparse
import sys
from collections.abc import Sequence
from html import escape
from pathlib import Path

PHOTOS = Path(__file__).resolve().parent.parent / "docs" / "photos"
OUT_OF_DOMAIN = {"astronaut.jpg", "coffee.jpg", "koala.jpg", "rocket.jpg"}
NOTE = """
<p class="note">Out of domain: the model was trained on everyday scenes of people and dogs and has seen nothing like
this, so the caption is unlikely to be right.</p>"""
PAGE = """<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Where each word looked</title>
<style>
body {{ max-width: 84rem; margin: 2rem auto; padding: 0 1rem; font: 1rem/1.5 system-ui, sans-serif; color: #1b1f24 }}
section {{ margin: 2.5rem 0; border-top: 1px solid #d0d7de }}
h2 {{ margin-bottom: 0; font-size: 1.2rem }}
p {{ margin: .4rem 0 }}
.note {{ padding: .4rem .8rem; border-left: .3rem solid #d97706; background: #fff7ed }}
img {{ max-width: 100% }}
</style>
<h1>Where each word looked</h1>
<p>These captions were written by the model “{model}”. Each panel shows one word: the brighter the color, the more
the patch under it raised the odds of the word through cross-attention. docs/overlays.md explains how far such pictures
can be trusted and what they cannot show.</p>
{sections}
</html>
"""
SECTION = """<section>
<h2>{caption}</h2>
<p>{name}</p>{note}
<a href="{sheet}"><img src="{sheet}" alt="Attention of each word of the caption: {caption}"></a>
</section>"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="bundled", help="a model folder or a .ckpt (bundled)")
    parser.add_argument("--output", type=Path, default=Path("demo-output"), help="output folder (demo-output)")
    arguments = parser.parse_args(argv)

    from captioner import Captioner, CaptionerError

    try:
        captioner = Captioner.from_pretrained(arguments.model)
        photos = sorted(PHOTOS.glob("*.jpg"))
        captions = captioner([str(photo) for photo in photos])
        arguments.output.mkdir(parents=True, exist_ok=True)
        sections = []
        for photo, caption in zip(photos, captions, strict=True):
            print(f"{photo.name}: {caption.text}", flush=True)
            sheet = f"{photo.stem}.png"
            captioner.inspect(photo, caption=caption.text).save_png(arguments.output / sheet)
            sections.append(
                SECTION.format(
                    caption=escape(caption.text),
                    name=escape(photo.name),
                    note=NOTE if photo.name in OUT_OF_DOMAIN else "",
                    sheet=escape(sheet),
                )
            )
    except CaptionerError as error:
        print(f"demo: error: {error}", file=sys.stderr)
        return error.exit_code
    report = arguments.output / "report.html"
    page = PAGE.format(model=escape(captioner.name), sections="\n".join(sections))
    report.write_text(page, encoding="utf-8")
    print(f"Where each word looked: {report}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
