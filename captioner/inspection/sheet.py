"""A sheet for a caption: a panel for each word, with its map over the photo."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from captioner.inspection.fonts import font_for
from captioner.inspection.legend import (
    BRIGHT,
    COLOR,
    COLORS,
    HALLUCINATION_THRESHOLD,
    factor,
    faint_words,
    format_value,
    percent,
    shared_scale_end,
    why_faint,
)
from captioner.inspection.trace import AttentionTrace
from captioner.text import printable

PANEL = 240
"""Longest side of a photo in a panel, in pixels."""
AREA = 240 * 180
"""Most pixels of a photo in a panel, so that square and portrait photos take no more room than landscape ones."""
MIN_PANEL_WIDTH = 200
"""Smallest width of a panel, in pixels, so that the text above and below it fits."""
MAX_WIDTH = 5 * 240 + 4 * 22
"""Most room for panels side by side, in pixels: five of landscape photos."""
MARGIN, GAP = 28, 22
HEADER, FOOTER = 28, 24
"""Room for the text above and below a photo."""
BAR = 12
"""Height of the color bar; it is as wide as a panel."""
LEGEND = 19
"""Height of a line of the legend."""

PAPER, INK, MUTED = (255, 255, 255), (27, 31, 36), (87, 96, 106)

COVER, FAINT_COVER = (0.35, 0.8), (0.0, 0.5)
"""Opacity of the color where a map is lowest and where it is highest; of faint maps."""
VEIL = 0.8
"""Opacity of white over the parts that were hidden from the model."""


@dataclass(frozen=True)
class _Layout:
    """Positions on a sheet, in pixels."""

    photo: tuple[int, int]
    cell: int
    """Width of a panel."""
    columns: int
    rows: int
    top: int
    """Distance of the first row of panels from the sheet's upper edge, in pixels."""
    bottom: int
    """Height of the legend below the panels."""

    @property
    def width(self) -> int:
        return 2 * MARGIN + self.columns * self.cell + (self.columns - 1) * GAP

    @property
    def row(self) -> int:
        return HEADER + self.photo[1] + FOOTER + GAP

    @property
    def height(self) -> int:
        return self.top + self.rows * self.row + self.bottom + MARGIN

    def corner(self, panel: int) -> tuple[int, int]:
        """Left and top of a panel's photo."""
        row, column = divmod(panel, self.columns)
        return MARGIN + column * (self.cell + GAP), self.top + row * self.row + HEADER


def draw_sheet(
    trace: AttentionTrace,
    *,
    layer: int | None = None,
    head: int | None = None,
    heads: Sequence[tuple[int, int]] | None = None,
    title: str | None = None,
) -> Image.Image:
    """The caption, the photo, and a panel with the map of each word.

    Words that do not need the photo are drawn faintly, each on its own scale; all others share one. Layers and heads
    are chosen as in `AttentionTrace.select`; `title` goes above the caption. The same trace gives the same pixels.
    """
    chosen = trace.select(layer, head, heads)
    faint = faint_words(trace)
    photo = _panel_size(*trace.photo.size)
    cell = max(photo[0], MIN_PANEL_WIDTH)
    panels = 1 + len(trace.words)
    rows = math.ceil(panels / ((MAX_WIDTH + GAP) // (cell + GAP)))
    columns = max(2, math.ceil(panels / rows))
    room = columns * cell + (columns - 1) * GAP
    large = font_for(trace.text, 26)
    caption = _wrap(trace.text, large, room)
    legend = [
        line for text in _legend(trace, layer, head, heads) for line in _wrap(text, font_for("", 13), room - cell - GAP)
    ]
    top = MARGIN + (24 if title else 0)
    layout = _Layout(photo, cell, columns, rows, top + 34 * len(caption) + 16, max(2, len(legend)) * LEGEND)

    sheet = Image.new("RGB", (layout.width, layout.height), PAPER)
    draw = ImageDraw.Draw(sheet)
    if title:
        font = font_for(title, 15)
        draw.text((MARGIN, MARGIN + 8), _shorten(title, font, room), MUTED, font, "lm")
    for number, line in enumerate(caption):
        draw.text((MARGIN, top + 34 * number + 15), line, INK, large, "lm")
    small = trace.photo.resize(photo, Image.Resampling.LANCZOS)
    heat = [trace.geometry.heatmap(chosen.patches(word), size=photo) for word in range(len(trace.words))]
    peaks = [float(each.max()) for each in heat]
    share = math.prod(chosen.weights.shape[1:3]) / math.prod(trace.weights.shape[1:3])
    end = shared_scale_end(peaks, trace, share)
    bits = chosen.entropy
    if trace.visible is not None:
        small = _veiled(small, trace)
    _panel(draw, sheet, layout, 0, small, ("photo", f"{trace.photo.width} x {trace.photo.height}"), ("", ""))
    for word, text in enumerate(trace.words):
        above, below = (text, percent(math.exp(trace.log_probs[word]))), _notes(trace, word, float(bits[word]))
        strength = heat[word] / ((peaks[word] or 1.0) if faint[word] else end)
        _panel(draw, sheet, layout, word + 1, _overlay(small, strength, bool(faint[word])), above, below)
    exceeded = any(peak > end for peak, own in zip(peaks, faint, strict=True) if not own)
    low, middle, high = (format_value(value, trace.method) for value in (0.0, end / 2, end))
    _color_bar(draw, layout, (low, middle, f"{high}{'+' if exceeded else ''}"))
    for number, line in enumerate(legend):
        place = MARGIN + cell + GAP, layout.height - MARGIN - layout.bottom + LEGEND * number + BAR // 2
        draw.text(place, line, MUTED, font_for(line, 13), "lm")
    return sheet


def _notes(trace: AttentionTrace, word: int, bits: float) -> tuple[str, str]:
    """The texts below the panel of a word: on the left and on the right."""
    if (chance := trace.hallucination.get(word, 0.0)) > HALLUCINATION_THRESHOLD:
        return f"may not be in the photo: {percent(chance)}", ""
    if note := why_faint(trace, word):
        return note, ""
    return f"{factor(trace.needs[word])} likelier with the photo" if trace.needs else "", f"{2**bits:.0f}"


def _veiled(photo: Image.Image, trace: AttentionTrace) -> Image.Image:
    """The photo, pale where it was hidden from the model."""
    assert trace.visible is not None
    visible = trace.geometry.heatmap(trace.visible.astype(np.float32), size=photo.size, nearest=True)
    veil = Image.fromarray(np.round(255 * (1 - VEIL * (visible < 0.5))).astype(np.uint8))
    return Image.composite(photo, Image.new("RGB", photo.size, PAPER), veil)


def _overlay(photo: Image.Image, heat: NDArray[np.float32], faint: bool) -> Image.Image:
    """heat (height, width) as color over the grayscale photo; values above 1 have the color of 1."""
    strength = np.clip(heat, 0, 1)
    gray = np.asarray(photo.convert("L").convert("RGB"), dtype=np.float32)
    color = COLORS[np.round(255 * strength).astype(np.uint8)]
    lowest, highest = FAINT_COVER if faint else COVER
    cover = lowest + (highest - lowest) * strength[:, :, None]
    return Image.fromarray(np.round(gray * (1 - cover) + color * cover).astype(np.uint8))


def _panel(
    draw: ImageDraw.ImageDraw,
    sheet: Image.Image,
    layout: _Layout,
    number: int,
    picture: Image.Image,
    above: tuple[str, str],
    below: tuple[str, str],
) -> None:
    """Draw a picture with texts above and below it, each on the left and on the right."""
    left, top = layout.corner(number)
    right, bottom = left + layout.cell, top + picture.height
    sheet.paste(picture, (left, top))
    room = layout.cell - font_for(above[1], 14).getlength(above[1]) - 10
    font = font_for(above[0], 19)
    draw.text((left, top - 8), _shorten(above[0], font, room), INK, font, "ls")
    draw.text((right, top - 8), above[1], MUTED, font_for(above[1], 14), "rs")
    for (x, anchor), note in zip(((left, "ls"), (right, "rs")), below, strict=True):
        draw.text((x, bottom + 18), note, MUTED, font_for(note, 13), anchor)


def _color_bar(draw: ImageDraw.ImageDraw, layout: _Layout, numbers: tuple[str, str, str]) -> None:
    """Draw the shared color scale with the numbers at its start, middle and end."""
    left, top, last = MARGIN, layout.height - MARGIN - layout.bottom, layout.cell - 1
    for x in range(layout.cell):
        draw.line((left + x, top, left + x, top + BAR - 1), tuple(COLORS[round(255 * x / last)].tolist()))
    for share, number, anchor in zip((0.0, 0.5, 1.0), numbers, ("la", "ma", "ra"), strict=True):
        draw.text((left + share * last, top + BAR + 6), number, MUTED, font_for(number, 13), anchor)


def _legend(
    trace: AttentionTrace, layer: int | None, head: int | None, heads: Sequence[tuple[int, int]] | None
) -> tuple[str, ...]:
    """The lines of the legend, which explain the colors and the numbers."""
    layers, width = trace.weights.shape[1:3]
    kind = "mean" if trace.evidence is None else "sum"
    shown = f"layer {layer}" if layer is not None else f"{kind} of {layers} layers" if layers > 1 else "one layer"
    of = f"head {head}" if head is not None else f"{kind} of {width} heads" if width > 1 else "one head"
    if heads is not None:
        shown, of = f"{kind} of the best heads", ", ".join(f"layer {each} head {number}" for each, number in heads)
    where = "" if trace.method == "perturbation" else f" · {shown} · {of}"
    high, wide = trace.map_grid
    hidden = "" if trace.visible is None else " · White: hidden from the model"
    faint = (
        ("Faint on gray: the word does not need the photo; each such panel has a scale of its own",)
        if faint_words(trace).any()
        else ()
    )
    return (
        f"Bright: {BRIGHT[trace.method]}{hidden}",
        *faint,
        f"Above: the word's probability · Below, right: how many of {high * wide} patches the map covers (2^entropy)",
        f"Color: {COLOR[trace.method]} · {high} x {wide} patches{where} · Definitions: docs/overlays.md",
    )


def _panel_size(width: int, height: int) -> tuple[int, int]:
    """The size of a photo in a panel; its aspect ratio is kept."""
    scale = min(PANEL / width, PANEL / height, math.sqrt(AREA / (width * height)))
    return max(1, round(width * scale)), max(1, round(height * scale))


def _shorten(text: str, font: ImageFont.FreeTypeFont, room: float) -> str:
    """The text on one line, cut with an ellipsis if it is wider than the room."""
    text = printable(" ".join(text.split()))  # Pillow measures no line breaks, and FreeType fails on surrogates
    if font.getlength(text) <= room:
        return text
    return f"{text[: _fitting_length(text, font, room - font.getlength('…'))]}…"


def _wrap(text: str, font: ImageFont.FreeTypeFont, room: float) -> list[str]:
    """The lines of the text, broken at spaces and inside words that are wider than a line."""
    lines = [""]
    for word in map(printable, text.split()):
        joined = f"{lines[-1]} {word}".lstrip()
        if font.getlength(joined) <= room:
            lines[-1] = joined
            continue
        while word:
            count = max(1, _fitting_length(word, font, room))
            lines.append(word[:count])
            word = word[count:]
    return [line for line in lines if line]


def _fitting_length(text: str, font: ImageFont.FreeTypeFont, room: float) -> int:
    """The number of characters that fit."""
    count = min(len(text), int(room))  # no character is narrower than a pixel
    while count and font.getlength(text[:count]) > room:
        count -= 1
    return count
