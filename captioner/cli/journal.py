"""The journal of a run: a JSONL file beside the output with the text of every result, so that a run can be resumed."""

import errno
import hashlib
import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from captioner.cli.formats import Result, encode
from captioner.errors import ConfigError, ResourceError
from captioner.text import printable

FORMAT = 4
DISK_FULL = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))

State: TypeAlias = Literal["pending", "done", "failed"]
Stamp: TypeAlias = list[int] | None
"""Size and modification time (ns) of a file; None where there is none."""


class Entry(NamedTuple):
    """A line of the journal: a finished input, and the text to be written at an offset of the file `target`."""

    path: str
    stamp: Stamp
    sha256: str | None
    failed: bool
    target: str
    offset: int
    text: str

    def is_current(self) -> bool:
        """Whether the input's file is unchanged: its stamp is, or its hash where only the time differs."""
        now = stamp(self.path)
        if now == self.stamp:
            return True
        if now is None or self.stamp is None or self.sha256 is None or now[0] != self.stamp[0]:
            return False
        with suppress(OSError), open(self.path, "rb") as file:  # not of a photo inside another file
            return hashlib.file_digest(file, "sha256").hexdigest() == self.sha256
        return False

    def unwritten(self) -> bytes | None:
        """The part of the text that an interruption kept from `target`; None if something else is there."""
        text = encode(self.text)
        try:
            with open(self.target, "rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(self.offset)
                written = file.read(len(text) + 1)
        except (OSError, ValueError):  # it is gone, or the journal was changed: no file has such a name
            return None
        return text[len(written) :] if size >= self.offset and text.startswith(written) else None


class Journal:
    """A line for each input, written before its output: an interruption leaves at most the last write incomplete.

    With `resume`, an existing file is read. Raises ConfigError if it is not a journal, or of a run with other settings.
    """

    def __init__(self, output: Path, settings: dict[str, str], *, resume: bool) -> None:
        self.path = output.with_name(f".{output.name}.journal.jsonl")
        self.settings = settings
        self.entries: dict[str, Entry] = {}
        """Path -> the entry that was read, without its text."""
        self.last: Entry | None = None
        self.inherited = 0
        """Lines of the interrupted run."""
        self.weights: str | None = None
        """The hash of the model's weights."""
        self.old_entries: int | None = None
        """How many entries the document had to which the run appends."""
        self._file: io.FileIO | None = None
        if resume and self.path.exists():
            self._read()

    def check_weights(self, weights: str) -> None:
        """Raise ConfigError if the run to resume had a model of other weights."""
        if self.entries and self.weights != weights:
            problem = "the weights of the model have changed since the run to resume"
            raise ConfigError(f"{self.path}: {problem}; restore them, or name another output")
        self.weights = weights

    def state(self, path: str) -> State:
        """Whether an input is done; it is pending again once its file has changed."""
        entry = self.entries.get(path)
        if entry is None or not entry.is_current():
            return "pending"
        return "failed" if entry.failed else "done"

    @property
    def started(self) -> bool:
        """Whether anything was written by this run."""
        return self._file is not None

    def start(self) -> io.FileIO:
        """The file, open for writing after the entries that were read; a new one if there are none."""
        if self._file is None and self.entries:
            os.truncate(self.path, sum(map(len, self._lines())))
            self._file = io.FileIO(self.path, "a")
        elif self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.unlink(missing_ok=True)
            self._file = io.FileIO(self.path, "x")
            header = {"journal": FORMAT, "settings": self.settings, "weights": self.weights}
            append(self._file, json.dumps(header | {"old_entries": self.old_entries}).encode() + b"\n")
        return self._file

    def add(self, result: Result, stamp: Stamp, target: Path, offset: int, text: str) -> None:
        """Record that an input, whose file had the stamp, is done and that its text is about to be written."""
        sha256 = result.record.get("sha256")
        entry = Entry(result.path, stamp, sha256, result.failed, str(target), offset, text)
        append(self.start(), json.dumps(entry._asdict()).encode() + b"\n")

    def read(self) -> Iterator[Entry]:
        """The entries in the file, in order."""
        if self._file is not None and not self._file.closed:
            check_unchanged(self._file)
        lines = self._lines()
        next(lines, None)
        for line in lines:
            yield _entry(line)

    def remove(self) -> None:
        """Delete the file, as the run is complete; one that was neither read nor written stays."""
        self.close()
        if self.entries or self._file is not None:
            self.path.unlink(missing_ok=True)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _lines(self) -> Iterator[bytes]:
        """The complete lines: one without an end was being written when the run was interrupted."""
        with self.path.open("rb") as file:
            yield from (line for line in file if line.endswith(b"\n"))

    def _read(self) -> None:
        if not (header := next(self._lines(), None)):
            return  # interrupted before its first line
        try:
            found: dict[str, Any] = json.loads(header)
            before: dict[str, str] = found["settings"]
            self.weights, self.old_entries = found["weights"], found["old_entries"]
            if found["journal"] != FORMAT or not isinstance(before, dict):
                raise ValueError("another format")
            if not isinstance(self.weights, str | None) or not _is_count(self.old_entries or 0):
                raise ValueError("wrong types")
            for entry in self.read():
                self.entries[entry.path] = entry._replace(text="")
                self.last = entry
                self.inherited += 1
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ConfigError(f"{self.path}: not a journal of this program; remove it and start again") from error
        names = sorted({*before, *self.settings})
        changed = [f"{name} {before.get(name)}" for name in names if before.get(name) != self.settings.get(name)]
        if changed:
            problem = f"the run to resume had other settings ({', '.join(changed)})"
            raise ConfigError(f"{self.path}: {problem}; repeat them, or name another output")


def _entry(line: bytes) -> Entry:
    """A line of the journal. Raises ValueError or TypeError for one that this program did not write."""
    entry = Entry(**json.loads(line))
    stamp = entry.stamp if entry.stamp is not None else [0, 0]
    texts = (entry.path, entry.target, entry.text, entry.sha256 or "")
    if not (isinstance(stamp, list) and len(stamp) == 2 and all(isinstance(each, int) for each in stamp)):
        raise ValueError("wrong stamp")
    if not all(isinstance(each, str) and "\0" not in each for each in texts):
        raise ValueError("wrong texts")
    if not (isinstance(entry.failed, bool) and _is_count(entry.offset)):
        raise ValueError("wrong types")
    return entry


def _is_count(value: object) -> bool:
    return isinstance(value, int) and 0 <= value < 2**63


def stamp(path: str) -> Stamp:
    """The stamp of a file, which changes when the file does; of a photo inside another file, that of the outer file."""
    try:
        status = os.stat(path)
    except NotADirectoryError:
        return stamp(os.path.dirname(path))
    except (OSError, ValueError):
        return None
    return [status.st_size, status.st_mtime_ns]


def append(file: io.FileIO, content: bytes) -> None:
    """Write all bytes, unbuffered: a signal comes before or after, and a full disk or a lost file shows here."""
    check_unchanged(file)
    rest = memoryview(content)
    with full_disk_error(Path(os.fsdecode(file.name))):
        while rest:
            rest = rest[file.write(rest) :]


def check_unchanged(file: io.FileIO) -> None:
    """Raise ResourceError if another program removed, replaced or changed the file, which is written up to its end."""
    mine = os.fstat(file.fileno())
    try:
        unchanged = os.path.samestat(mine, os.stat(file.name)) and mine.st_size == file.tell()
    except FileNotFoundError:
        unchanged = False
    if not unchanged:
        name = printable(os.fsdecode(file.name))
        raise ResourceError(f"{name}: removed or changed by another program during the run; start the run again")


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
