"""Mutations of a file: bytes are changed, cut and repeated; the values of JSON are replaced by odd ones."""

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from hypothesis import strategies as st

DEEP = "@deep"
"""A JSON string that stands for lists nested deeper than Python's recursion."""
ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 2**31, 2**64, 10**400, 0.5, 1e999, -1e999, float("nan")),
    *("", "a", "\0", "\ud800", "/etc/passwd", "../up", "a" * 3000, "\x1b[31m", DEEP),
    *([], {}, [[]], [None], [1, "2"], {"": None}, [DEEP]),
)
ODD_BYTES = (
    b"",
    b"\0",
    b"\xff\xff\xff\xff",
    b"\n",
    b'"',
    b"[" * 9000,
    b"{",
    b"-1",
    b"1e999",
    b"NaN",
    b"null",
    b"&a *a",
)

Place = tuple[str | int, ...]


def mutants(seeds: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """Files that are like one of the seeds."""
    return st.sampled_from(list(seeds)).flatmap(
        lambda seed: _changed_bytes(seed) | _changed_values(seed) if _lines(seed) else _changed_bytes(seed)
    )


@st.composite
def _changed_bytes(draw: Callable[..., Any], seed: bytes) -> bytes:
    data = seed
    for _ in range(draw(st.integers(1, 4))):
        # The square prefers headers.
        at = int(draw(st.floats(0, 1)) ** 2 * len(data))
        length = draw(st.integers(0, 40))
        match draw(st.sampled_from(("set", "insert", "cut", "end", "repeat"))):
            case "set":
                data = data[:at] + bytes([draw(st.integers(0, 255))]) + data[at + 1 :]
            case "insert":
                data = data[:at] + draw(st.sampled_from(ODD_BYTES) | st.binary(max_size=8)) + data[at:]
            case "cut":
                data = data[:at] + data[at + length :]
            case "end":
                data = data[:at]
            case "repeat":
                data = data[:at] + data[at : at + length] * draw(st.integers(2, 50)) + data[at + length :]
    return data


@st.composite
def _changed_values(draw: Callable[..., Any], seed: bytes) -> bytes:
    values = _lines(seed)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(values) - 1))
        place = draw(st.sampled_from(list(_places(values[at]))))
        odd = draw(st.sampled_from(ODD_VALUES))
        values[at] = _replaced(values[at], place, odd, remove=draw(st.integers(0, 3)) == 0)
    text = "\n".join(map(json.dumps, values))
    return text.replace(f'"{DEEP}"', "[" * 9000).encode() + b"\n"


def _lines(data: bytes) -> list[Any]:
    """The JSON values of a file, one or one a line; none if it is not JSON."""
    for parts in ([data], data.splitlines()):
        try:
            return [json.loads(part) for part in parts]
        except ValueError:
            continue
    return []


def _places(value: Any, before: Place = ()) -> Iterator[Place]:
    yield before
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, each in items:
            yield from _places(each, (*before, key))


def _replaced(value: Any, place: Place, odd: Any, remove: bool) -> Any:
    if not place:
        return odd
    key, rest = place[0], place[1:]
    changed = dict(value) if isinstance(value, dict) else list(value)
    if not rest and remove:
        del changed[key]  # type: ignore[arg-type]
    else:
        changed[key] = _replaced(value[key], rest, odd, remove)  # type: ignore[index, call-overload]
    return changed
