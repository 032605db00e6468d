"""Text and JSON from files of any encoding; what is wrong with them is added to a list of problems."""

import json
from pathlib import Path

from captioner.data.annotations import Problem
from captioner.errors import InputError


def read_text(path: Path, where: str, problems: list[Problem]) -> str:
    """Read UTF-8 text. A byte order mark, UTF-16 and invalid bytes, which are replaced, are added to `problems`."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from None
    encoding = text_encoding(data)
    if encoding.startswith("utf-16"):
        problems.append(Problem("encoding", where, "is UTF-16 text; save the file as UTF-8"))
        return data.decode(encoding, errors="replace")
    if encoding == "utf-8-sig":
        problems.append(Problem("bom", where, "starts with a byte order mark; save it as plain UTF-8"))
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        problems.append(Problem("encoding", where, f"byte {error.start} is not UTF-8; save the file as UTF-8"))
        return data.decode("utf-8-sig", errors="replace")


def check_readable(path: Path) -> None:
    """Raise InputError for a file that is missing or cannot be read."""
    try:
        path.open("rb").close()
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: OSError) -> InputError:
    return InputError(f"{path}: cannot be read ({error.strerror}); check its name and permissions")


def text_encoding(data: bytes) -> str:
    """The encoding that a byte order mark or zero bytes show, by Python's name; else `utf-8`."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    if data.count(0) * 4 > len(data):  # as half of the bytes of UTF-16 are for Latin letters
        return "utf-16-le" if data[1::2].count(0) > data[::2].count(0) else "utf-16-be"
    return "utf-8-sig" if data.startswith(b"\xef\xbb\xbf") else "utf-8"


def parse_json(text: str, where: str, problems: list[Problem]) -> object:
    """Parse JSON; None if it is invalid or null. That, and NaN or Infinity, read as null, are added to `problems`."""
    literals: list[str] = []
    try:
        data: object = json.loads(text, parse_constant=literals.append)
    except (ValueError, RecursionError) as error:
        problems.append(Problem("json", where, f"is not JSON: {error}"))
        return None
    if data is None:
        problems.append(Problem("json", where, "is null"))
    if literals:
        names = ", ".join(sorted(set(literals)))
        problems.append(Problem("nan", where, f"holds {names}, which is not valid JSON; read as null"))
    return data
