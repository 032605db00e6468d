"""A sheet for a caption: a panel for each word, with its map over the photo."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from captioner.inspection.trace import AttentionTrace, Method
from captioner.text import printable

PANEL = 240
"""Longest side of a photo in a panel, in pixels."""
AREA = 240 * 180
"""Most pixels of a photo in a panel, so that square and portrait photos take no more room than landscape ones."""
MIN_PANEL_WIDTH = 150
"""In pixels, for the text above and below."""
MAX_WIDTH = 5 * 240 + 4 * 22
"""Most room for panels side by side, in pixels: five of landscape photos."""
MARGIN, GAP = 28, 22
HEADER, FOOTER = 28, 24
"""Room for the text above and below a photo."""
BAR = 12
"""Height of the color bar; it is as wide as a panel."""
LEGEND = 19
"""Height of a line of the legend."""
SCALE_END = 0.9
"""Quantile of the words' peaks at which the scale ends, so that one sharp map does not leave all others dark."""

PAPER, INK, MUTED = (255, 255, 255), (27, 31, 36), (87, 96, 106)

RAMP = ((0.16, 0.05, 285.0), (0.38, 0.17, 305.0), (0.58, 0.21, 360.0), (0.77, 0.17, 410.0), (0.96, 0.10, 465.0))
"""Evenly spaced anchors in Oklab (lightness, chroma, hue in degrees), lightness rising steadily."""
FAINTEST, STRONGEST = 0.35, 0.8
"""Opacity of the color where a map is lowest and where it is highest."""

MEANING: dict[Method, str] = {
    "raw": "the share of a word's attention on one patch",
    "relevance": "what a patch added to the word's log-odds, in nats, to first order; only values above 0",
    "refined": "relevance in nats, on the finer grid of an earlier encoder stage, where that stage contributed too",
    "perturbation": "what the word's log-probability loses when 3 x 3 patches are hidden, in nats",
}
"""Method -> the meaning of a map's values."""
PLAIN_MEANING: dict[Method, str] = {
    "raw": "the model looked here when it chose the word",
    "relevance": "this part of the photo made the word more likely",
    "refined": "this part of the photo made the word more likely",
    "perturbation": "the word is less likely without this part of the photo",
}
"""The same in plain words."""
MIN_SCALE_END: dict[Method, float] = {"raw": 0.0, "relevance": 0.15, "refined": 0.1, "perturbation": 0.15}
"""Least end of the color scale, so that tiny values stay dark."""
HALLUCINATION_THRESHOLD = 0.5
"""Objects with a higher hallucination probability get a question mark."""
VEIL = 0.8
"""Opacity of white over the parts that were hidden from the model."""

# From Oklab to the cube roots of cone responses, and from their cubes to linear sRGB (Ottosson 2020).
TO_CONES = ((1, 0.3963377774, 0.2158037573), (1, -0.1055613458, -0.0638541728), (1, -0.0894841775, -1.2914855480))
TO_LINEAR = (
    (4.0767416621, -3.3077115913, 0.2309699292),
    (-1.2684380046, 2.6097574011, -0.3413193965),
    (-0.0041960863, -0.7034186147, 1.7076147010),
)


def _colors() -> NDArray[np.uint8]:
    """(256, 3) sRGB, from the lowest value to the highest."""
    anchors = np.array(RAMP)
    steps = np.linspace(0, len(RAMP) - 1, 256)
    lightness, chroma, degrees = (np.interp(steps, np.arange(len(RAMP)), column) for column in anchors.T)
    hue = np.radians(degrees)
    oklab = np.stack([lightness, chroma * np.cos(hue), chroma * np.sin(hue)])
    linear = np.clip(np.array(TO_LINEAR) @ (np.array(TO_CONES) @ oklab) ** 3, 0, 1)
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.asarray(np.round(255 * srgb.T), np.uint8)


COLORS = _colors()


@dataclass(frozen=True)
class _Layout:
    """Positions on a sheet, in pixels."""

    photo: tuple[int, int]
    cell: int
    """Width of a panel."""
    columns: int
    rows: int
    top: int
    """Where the first row of panels begins."""
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
    """The caption, the photo, and a panel with the map of each word, all on one color scale.

    Layers and heads are chosen as in `AttentionTrace.select`; `title` goes above the caption. Objects that are probably
    hallucinated get a question mark. The same trace gives the same pixels.
    """
    chosen = trace.select(layer, head, heads)
    hallucinated = {word for word, value in trace.hallucination.items() if value > HALLUCINATION_THRESHOLD}
    photo = _panel_size(*trace.photo.size)
    cell = max(photo[0], MIN_PANEL_WIDTH)
    panels = 1 + len(trace.words)
    rows = math.ceil(panels / ((MAX_WIDTH + GAP) // (cell + GAP)))
    columns = max(2, math.ceil(panels / rows))
    room = columns * cell + (columns - 1) * GAP
    caption = _wrap(trace.text, _font(26), room)
    texts = _legend(trace, layer, head, heads)
    texts += ("?: probably not in the photo",) if hallucinated else ()
    legend = [line for text in texts for line in _wrap(text, _font(13), room - cell - GAP)]
    top = MARGIN + (24 if title else 0)
    layout = _Layout(photo, cell, columns, rows, top + 34 * len(caption) + 16, max(2, len(legend)) * LEGEND)

    sheet = Image.new("RGB", (layout.width, layout.height), PAPER)
    draw = ImageDraw.Draw(sheet)
    if title:
        draw.text((MARGIN, MARGIN + 8), _shorten(title, _font(15), room), MUTED, _font(15), "lm")
    for number, line in enumerate(caption):
        draw.text((MARGIN, top + 34 * number + 15), line, INK, _font(26), "lm")
    small = trace.photo.resize(photo, Image.Resampling.LANCZOS)
    heat = [trace.geometry.heatmap(chosen.patches(word), size=photo) for word in range(len(trace.words))]
    peaks = [float(each.max()) for each in heat] or [0.0]
    share = math.prod(chosen.weights.shape[1:3]) / math.prod(trace.weights.shape[1:3])  # fewer heads have less evidence
    end = max(float(np.quantile(peaks, SCALE_END)) or 1.0, share * MIN_SCALE_END[trace.method])
    bits = chosen.entropy
    if trace.visible is not None:
        small = _veiled(small, trace)
    _panel(draw, sheet, layout, 0, small, ("photo", f"{trace.photo.width} x {trace.photo.height}"), ("", ""))
    for word, text in enumerate(trace.words):
        need = f"needs photo {round(trace.needs[word], 1) + 0.0:+.1f}" if trace.needs else ""  # no -0.0
        shown = f"{text} ?" if word in hallucinated else text
        above, below = (shown, _percent(math.exp(trace.log_probs[word]))), (need, f"{bits[word]:.1f} bits")
        _panel(draw, sheet, layout, word + 1, _overlay(small, heat[word] / end), above, below)
    _color_bar(draw, layout, end, max(peaks) > end, _percent if trace.evidence is None else _nats)
    for number, line in enumerate(legend):
        place = MARGIN + cell + GAP, layout.height - MARGIN - layout.bottom + LEGEND * number + BAR // 2
        draw.text(place, line, MUTED, _font(13), "lm")
    return sheet


def _veiled(photo: Image.Image, trace: AttentionTrace) -> Image.Image:
    """The photo, pale where it was hidden from the model."""
    assert trace.visible is not None
    visible = trace.geometry.heatmap(trace.visible.astype(np.float32), size=photo.size, nearest=True)
    veil = Image.fromarray(np.round(255 * (1 - VEIL * (visible < 0.5))).astype(np.uint8))
    return Image.composite(photo, Image.new("RGB", photo.size, PAPER), veil)


def _overlay(photo: Image.Image, heat: NDArray[np.float32]) -> Image.Image:
    """heat (height, width) as color over the grayscale photo; values above 1 have the color of 1."""
    strength = np.clip(heat, 0, 1)
    gray = np.asarray(photo.convert("L").convert("RGB"), dtype=np.float32)
    color = COLORS[np.round(255 * strength).astype(np.uint8)]
    cover = FAINTEST + (STRONGEST - FAINTEST) * strength[:, :, None]
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
    room = layout.cell - _font(14).getlength(above[1]) - 10
    draw.text((left, top - 8), _shorten(above[0], _font(19), room), INK, _font(19), "ls")
    draw.text((right, top - 8), above[1], MUTED, _font(14), "rs")
    draw.text((left, bottom + 18), below[0], MUTED, _font(13), "ls")
    draw.text((right, bottom + 18), below[1], MUTED, _font(13), "rs")


def _color_bar(
    draw: ImageDraw.ImageDraw, layout: _Layout, end: float, exceeded: bool, format_value: Callable[[float], str]
) -> None:
    """Draw the color scale of all panels with its numbers."""
    left, top, last = MARGIN, layout.height - MARGIN - layout.bottom, layout.cell - 1
    for x in range(layout.cell):
        draw.line((left + x, top, left + x, top + BAR - 1), tuple(COLORS[round(255 * x / last)].tolist()))
    numbers = (format_value(0), format_value(end / 2), f"{format_value(end)}{'+' if exceeded else ''}")
    for share, number, anchor in zip((0.0, 0.5, 1.0), numbers, ("la", "ma", "ra"), strict=True):
        draw.text((left + share * last, top + BAR + 6), number, MUTED, _font(13), anchor)


def _legend(
    trace: AttentionTrace, layer: int | None, head: int | None, heads: Sequence[tuple[int, int]] | None
) -> tuple[str, ...]:
    """What the colors and the numbers mean."""
    layers, width = trace.weights.shape[1:3]
    kind = "mean" if trace.evidence is None else "sum"
    shown = f"layer {layer}" if layer is not None else f"{kind} of {layers} layers" if layers > 1 else "one layer"
    of = f"head {head}" if head is not None else f"{kind} of {width} heads" if width > 1 else "one head"
    if heads is not None:
        shown, of = f"{kind} of the best heads", ", ".join(f"layer {each} head {number}" for each, number in heads)
    where = "" if trace.method == "perturbation" else f" · {shown} · {of}"
    high, wide = trace.map_grid
    most = math.log2(high * wide)
    need = " · needs photo: log p with the photo minus without, in nats" if trace.needs else ""
    hidden = "" if trace.visible is None else " · Pale: patches hidden from the model"
    return (
        f"Bright: {PLAIN_MEANING[trace.method]}{hidden}",
        f"Color: {MEANING[trace.method]} · {high} x {wide} patches{where}",
        f"Above: the word's probability · Below: entropy over the patches, {most:.1f} bits if even{need}",
    )


def _panel_size(width: int, height: int) -> tuple[int, int]:
    """The size of a photo in a panel; its aspect ratio is kept."""
    scale = min(PANEL / width, PANEL / height, math.sqrt(AREA / (width * height)))
    return max(1, round(width * scale)), max(1, round(height * scale))


def _percent(share: float) -> str:
    if 0 < share < 0.0005:
        return "< 0.1 %"
    return f"{100 * share:.1f} %" if 0 < share < 0.0995 else f"{100 * share:.0f} %"


def _nats(value: float) -> str:
    return f"{value:.2g}" if value else "0"


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


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
