"""Limits on the segments and scans of a JPEG and the chunks of a PNG, checked before the file is decoded."""

import re

MAX_PARTS = 20_000
"""Most JPEG segments or PNG chunks, those with pixels aside. Cameras write fewer than a hundred."""
MAX_SCANS = 100
"""Most scans of a progressive JPEG, each of which passes over all pixels. Encoders write about ten."""
MAX_JUNK = 2**16
"""Most bytes between two segments of a JPEG."""

_NEXT_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_ALONE = frozenset((0x01, *range(0xD0, 0xD9)))
"""Markers without a length: TEM, restarts and the start of the image."""


def excess(data: bytes, kind: str) -> str | None:
    """Why a file of this kind would take too long to decode; None if it would not."""
    if kind == "JPEG":
        return _excess_of_jpeg(data)
    return _excess_of_png(data) if kind == "PNG" else None


def _excess_of_jpeg(data: bytes) -> str | None:
    """Checks the first image of the file only; embedded videos and further images after it are not decoded."""
    place, parts, scans = 2, 0, 0
    while found := _NEXT_MARKER.search(data, place):
        if found.start() - place > MAX_JUNK and not scans:
            return f"{found.start() - place:,} bytes between two segments"
        marker = data[found.start() + 1]
        if marker == _END_OF_IMAGE:
            return None
        parts, scans = parts + 1, scans + (marker == _START_OF_SCAN)
        if scans > MAX_SCANS:
            return f"more than {MAX_SCANS} scans"
        if parts > MAX_PARTS:
            return f"more than {MAX_PARTS:,} segments"
        length = 0 if marker in _ALONE else int.from_bytes(data[found.start() + 2 : found.start() + 4], "big")
        place = found.start() + 2 + length
    junk = 0 if scans else len(data) - place
    return f"{junk:,} bytes after its last segment" if junk > MAX_JUNK else None


def _excess_of_png(data: bytes) -> str | None:
    place, parts = 8, 0
    while place < len(data):
        parts += data[place + 4 : place + 8] != b"IDAT"
        if parts > MAX_PARTS:
            return f"more than {MAX_PARTS:,} chunks"
        place += 12 + int.from_bytes(data[place : place + 4], "big")
    return None
