"""The journal of a run, beside its output: what is done, and what the last write was, so that a run can go on."""

import errno
import hashlib
import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from captioner import files
from captioner.errors import ConfigError, ImageError, ResourceError
from captioner.text import printable

if TYPE_CHECKING:
    from captioner.pipeline import Captioned

FORMAT = 1
FULL = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))

Stamp = tuple[int, int] | None
"""Size and time of change (ns) of a file; None where there is none."""


class Entry(NamedTuple):
    """An input that is done; its file is known again by its stamp, or by its hash where only the time differs."""

    stamp: Stamp
    sha256: str | None
    failed: bool


class Journal:
    """A line an input, written before the output is: an interruption leaves at most the last write to be completed.

    An existing file is read at once. Raises ConfigError where it is none, or of a run with other settings.
    """

    def __init__(self, output: Path, settings: dict[str, str], *, resume: bool) -> None:
        self.path = output.with_name(f".{output.name}.journal.jsonl")
        self.settings = settings
        self.entries: dict[str, Entry] = {}
        self.last: dict[str, Any] | None = None
        self._file: io.FileIO | None = None
        if resume and self.path.exists():
            self._read()

    def is_done(self, path: str) -> bool:
        """Whether the input is done and its file unchanged."""
        entry = self.entries.get(path)
        if entry is None:
            return False
        now = stamp(path)
        if now == entry.stamp:
            return True
        if now is None or entry.stamp is None or entry.sha256 is None or now[0] != entry.stamp[0]:
            return False
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == entry.sha256

    def start(self) -> None:
        """Begin to write: on after the entries that were read, or anew where there are none."""
        if self.entries:
            self._file = self.path.open("r+b", buffering=0)
            # A line without an end was being written when the run was interrupted.
            self._file.truncate(sum(len(line) for line in self._lines()))
            self._file.seek(0, os.SEEK_END)
        else:
            self.path.unlink(missing_ok=True)
            self._file = self.path.open("wb", buffering=0)
            self._append({"journal": FORMAT, "settings": self.settings})

    def add(self, path: str, seen: Stamp, outcome: "Captioned | ImageError", write: dict[str, Any]) -> None:
        """An input, whose file was `seen` with a stamp, is done; `write` says what is about to be written of it."""
        failed = isinstance(outcome, ImageError)
        entry = Entry(seen, None if isinstance(outcome, ImageError) else outcome.sha256, failed)
        self._append({"path": path, **entry._asdict(), **write})

    def read_back(self) -> Iterator[dict[str, Any]]:
        """The entries of the file, in their order."""
        for number, line in enumerate(self._lines()):
            if number:
                yield json.loads(line)

    def remove(self) -> None:
        """The run has come to its end."""
        self.close()
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _append(self, content: dict[str, Any]) -> None:
        assert self._file is not None, "start first"
        with disk(self.path):
            write_all(self._file, json.dumps(content).encode() + b"\n")

    def _lines(self) -> Iterator[bytes]:
        with self.path.open("rb") as file:
            yield from (line for line in file if line.endswith(b"\n"))

    def _read(self) -> None:
        header = next(self._lines(), b"")
        if not header:
            return
        try:
            found = json.loads(header)
            if found["journal"] != FORMAT:
                raise ValueError(f"format {found['journal']}")
            for content in self.read_back():
                place = content["stamp"] and (content["stamp"][0], content["stamp"][1])
                self.entries[content["path"]] = Entry(place, content["sha256"], content["failed"])
                self.last = content
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{self.path}: not a journal of this program; remove it and begin anew") from error
        names = {*found["settings"], *self.settings}
        changed = sorted(each for each in names if found["settings"].get(each) != self.settings.get(each))
        if changed:
            was = ", ".join(f"{name} {found['settings'].get(name)}" for name in changed)
            raise ConfigError(
                f"{self.path}: the run to resume had other settings ({was}); repeat them, or name another output"
            )


def stamp(path: str) -> Stamp:
    """What tells whether a file has changed."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_size, status.st_mtime_ns


def write_all(file: io.FileIO, data: bytes) -> None:
    """Write without a buffer: a signal comes before or after, and a full disk is told here."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def write_whole(path: Path, content: bytes) -> None:
    """A file appears whole or not at all; a full disk is told as `disk` does."""
    with disk(path):
        files.write_whole(path, content)


@contextmanager
def disk(path: Path) -> Iterator[None]:
    """Turn a full disk into a ResourceError that says how to go on."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        name = printable(str(path))
        raise ResourceError(f"{name}: the disk is full; free some space and go on with --resume") from error
