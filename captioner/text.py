"""Text for people: names and errors on one line, and suggestions."""

from collections.abc import Iterable
from difflib import get_close_matches


def printable(text: str) -> str:
    """The text with everything escaped that would break a line or steer a terminal: control characters, surrogates."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def printable_lines(text: str) -> str:
    """The text as `printable` gives it, with its line ends."""
    return "\n".join(map(printable, text.split("\n")))


def first_line(error: BaseException) -> str:
    """The first line of an error's message; its type's name where it has no message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def did_you_mean(word: str, known: Iterable[str], most: int = 1) -> str:
    """The end of an error message that suggests up to `most` similar words; empty where none is similar."""
    close = get_close_matches(word, known, n=most)
    return f"; did you mean {' or '.join(close)}?" if close else ""
