"""The journal of a run: a JSONL file beside the output that holds every result, so that a run can be resumed."""

import errno
import hashlib
import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from captioner import files
from captioner.cli.formats import Result, Row
from captioner.errors import ConfigError, ResourceError
from captioner.text import printable

FORMAT = 2
DISK_FULL = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))

State: TypeAlias = Literal["pending", "done", "failed"]
Stamp: TypeAlias = tuple[int, int] | None
"""Size and modification time (ns) of a file; None where there is none."""


class Entry(NamedTuple):
    """A finished input. Its file is unchanged if the stamp is, or if the hash is where only the time differs."""

    stamp: Stamp
    sha256: str | None
    failed: bool


class Line(NamedTuple):
    """A line of the journal: a result that is about to be written to a file of the size `at`."""

    stamp: Stamp
    target: str
    at: int
    result: Result

    @classmethod
    def parse(cls, line: bytes) -> "Line":
        """The inverse of `encode`. Raises ValueError, KeyError or TypeError for anything else."""
        data = json.loads(line)
        stamp = data["stamp"] and (data["stamp"][0], data["stamp"][1])
        return cls(stamp, data["target"], data["at"], Result(data["record"], tuple(Row(*row) for row in data["rows"])))

    def encode(self) -> bytes:
        data = {"stamp": self.stamp, "target": self.target, "at": self.at}
        return json.dumps({**data, "record": self.result.record, "rows": self.result.rows}).encode() + b"\n"


class Journal:
    """A line for each input, written before its output: an interruption leaves at most the last write incomplete.

    With `resume`, an existing file is read. Raises ConfigError where it is none, or of a run with other settings.
    """

    def __init__(self, output: Path, settings: dict[str, str], *, resume: bool) -> None:
        self.path = output.with_name(f".{output.name}.journal.jsonl")
        self.settings = settings
        self.entries: dict[str, Entry] = {}
        self.last: Line | None = None
        self._file: io.FileIO | None = None
        if resume and self.path.exists():
            self._read()

    def state(self, path: str) -> State:
        """Whether an input is done; it is pending again once its file has changed."""
        entry = self.entries.get(path)
        if entry is None or not self._is_unchanged(path, entry):
            return "pending"
        return "failed" if entry.failed else "done"

    @property
    def is_open(self) -> bool:
        """Whether writing has begun."""
        return self._file is not None

    def start(self) -> None:
        """Begin to write: after the entries that were read, or from scratch where there are none."""
        if self.entries:
            self._file = self.path.open("r+b", buffering=0)
            # A line without an end was being written when the run was interrupted.
            self._file.truncate(sum(map(len, self._whole_lines())))
            self._file.seek(0, os.SEEK_END)
        else:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.unlink(missing_ok=True)
            self._file = self.path.open("wb", buffering=0)
            self._append(json.dumps({"journal": FORMAT, "settings": self.settings}).encode() + b"\n")

    def add(self, line: Line) -> None:
        """Record that an input is done and about to be written."""
        if not self.is_open:
            self.start()
        self._append(line.encode())

    def lines(self) -> Iterator[Line]:
        """The lines of the file, in order."""
        for number, line in enumerate(self._whole_lines()):
            if number:
                yield Line.parse(line)

    def remove(self) -> None:
        """Delete the file, as the run is complete; one that was neither read nor written stays."""
        self.close()
        if self.entries or self.is_open:
            self.path.unlink(missing_ok=True)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _is_unchanged(self, path: str, entry: Entry) -> bool:
        now = stamp(path)
        if now == entry.stamp:
            return True
        if now is None or entry.stamp is None or entry.sha256 is None or now[0] != entry.stamp[0]:
            return False
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == entry.sha256

    def _append(self, line: bytes) -> None:
        assert self._file is not None
        with full_disk_error(self.path):
            write_all(self._file, line)

    def _whole_lines(self) -> Iterator[bytes]:
        with self.path.open("rb") as file:
            yield from (line for line in file if line.endswith(b"\n"))

    def _read(self) -> None:
        header = next(self._whole_lines(), b"")
        if not header:
            return
        try:
            found: dict[str, Any] = json.loads(header)
            if found["journal"] != FORMAT:
                raise ValueError(f"format {found['journal']}")
            for line in self.lines():
                result = line.result
                self.entries[result.path] = Entry(line.stamp, result.record.get("sha256"), result.failed)
                self.last = line
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{self.path}: not a journal of this program; remove it and start again") from error
        names = {*found["settings"], *self.settings}
        changed = sorted(each for each in names if found["settings"].get(each) != self.settings.get(each))
        if changed:
            were = ", ".join(f"{name} {found['settings'].get(name)}" for name in changed)
            raise ConfigError(
                f"{self.path}: the run to resume had other settings ({were}); repeat them, or name another output"
            )


def stamp(path: str) -> Stamp:
    """The stamp of a file, which changes when the file does."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_size, status.st_mtime_ns


def write_all(file: io.FileIO, data: bytes) -> None:
    """Write unbuffered: a signal comes before or after, and a full disk shows here."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def write_whole(path: Path, content: bytes) -> None:
    """Write a file as a whole or not at all; a full disk is reported as by `full_disk_error`."""
    with full_disk_error(path):
        files.write_whole(path, content)


@contextmanager
def full_disk_error(path: Path) -> Iterator[None]:
    """Turn a full disk into a ResourceError that says how to continue."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        name = printable(str(path))
        raise ResourceError(f"{name}: the disk is full; free some space and continue with --resume") from error
