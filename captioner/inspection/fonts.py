"""Fonts for texts in any script: Pillow's own where it has the letters, else one of the system's.

Pillow's own has few letters but those of English: no é, ü or ×.
"""

from collections.abc import Iterator
from contextlib import suppress
from functools import cache

from PIL import ImageFont
from PIL.ImageFont import FreeTypeFont

SYSTEM_FONTS = (
    *("DejaVuSans.ttf", "NotoSans-Regular.ttf", "NotoSansHebrew-Regular.ttf", "NotoSansArabic-Regular.ttf"),
    *("NotoSansCJK-Regular.ttc", "NotoSansCJKsc-Regular.otf", "NotoSansThai-Regular.ttf"),
    *("NotoSansDevanagari-Regular.ttf", "wqy-zenhei.ttc", "wqy-microhei.ttc", "DroidSansFallbackFull.ttf"),
    *("Arial Unicode.ttf", "PingFang.ttc", "Hiragino Sans GB.ttc", "AppleSDGothicNeo.ttc"),  # macOS
    *("arial.ttf", "msyh.ttc", "msgothic.ttc", "malgun.ttf", "Nirmala.ttf", "leelawui.ttf"),  # Windows
)
"""Files that Pillow finds in the folders of fonts of Linux, macOS and Windows."""
NO_CHARACTER = "\U0010fffe"
"""Is never assigned, so every font draws it as a missing letter."""


def font_for(text: str, size: int) -> FreeTypeFont:
    """The first font that has all letters of a text; Pillow's own if none has."""
    default = _default(size)
    letters = {letter for letter in text if not letter.isspace()}
    return next((font for font in (default, *_installed(size)) if has_letters(font, letters)), default)


def has_letters(font: FreeTypeFont, letters: set[str]) -> bool:
    """Whether a font has all of these letters."""
    return all(_has(font, letter) for letter in letters)


@cache
def _has(font: FreeTypeFont, letter: str) -> bool:
    return letter.isascii() or bytes(font.getmask(letter)) != bytes(font.getmask(NO_CHARACTER))


@cache
def _default(size: int) -> FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, FreeTypeFont)
    return font


@cache
def _installed(size: int) -> tuple[FreeTypeFont, ...]:
    def found() -> Iterator[FreeTypeFont]:
        for name in SYSTEM_FONTS:
            with suppress(OSError):
                yield ImageFont.truetype(name, size)

    return tuple(found())
