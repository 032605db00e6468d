"""Text for people: names and errors on one line."""


def printable(text: str) -> str:
    """The text with everything escaped that would break a line or steer a terminal: control characters, surrogates."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def first_line(error: BaseException) -> str:
    """The first line of an error's message; its type's name where it has no message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
