"""Fonts: Pillow's own for what it has, one of the system's for other scripts."""

import pytest
from PIL import ImageFont

from captioner.inspection import fonts
from captioner.inspection.fonts import font_for, has_letters

TEXTS = {
    "Greek": "σκύλος",
    "Cyrillic": "собака",
    "Hebrew": "כלב",
    "Arabic": "كلب",
    "Chinese": "一只狗",
    "Japanese": "犬が走る",
}


def test_latin_text_keeps_the_font() -> None:
    default = ImageFont.load_default(20)
    for text in ("a dog", "12 % · “quoted”…", ""):
        assert font_for(text, 20).getname() == default.getname()  # type: ignore[union-attr]


@pytest.mark.parametrize("script", TEXTS)
def test_a_font_of_the_system_has_the_letters(script: str) -> None:
    text = TEXTS[script]
    if not any(has_letters(font, set(text) - {" "}) for font in fonts._installed(20)):
        pytest.skip(f"no font with {script} letters is installed")
    assert has_letters(font_for(text, 20), set(text) - {" "})
    assert len({bytes(font_for(text, 20).getmask(letter)) for letter in text}) > 1


def test_without_such_a_font_there_is_still_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "_installed", lambda size: ())
    assert font_for("一只狗", 20) is font_for("a dog", 20)
    assert not has_letters(font_for("一只狗", 20), set("一只狗"))
