"""Where results of all inputs go: a stream or a file. What is written is never lost."""

import io
import json
import os
import sys
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Literal, TextIO, TypeAlias

from captioner.cli.formats import Format, Result, coco_document
from captioner.cli.inputs import Input
from captioner.cli.journal import Journal, Line, Stamp, State, full_disk_error, write_all, write_whole
from captioner.errors import ConfigError
from captioner.text import printable

Existing: TypeAlias = Literal["skip", "overwrite", "append", "error"]


class Output(ABC):
    """Where results go; with a journal, a run can be resumed."""

    def __init__(self, format: Format, existing: Existing = "error", journal: Journal | None = None) -> None:
        self.format, self.existing, self.journal = format, existing, journal

    def state(self, item: Input) -> State:
        """Whether an input has to be captioned. Raises ConfigError where it must not be."""
        return "pending" if self.journal is None else self.journal.state(item.path)

    @abstractmethod
    def add(self, item: Input, stamp: Stamp, result: Result) -> None:
        """Write the result of an input whose file had the stamp."""

    def finish(self) -> None:
        """Complete the output: all inputs are done."""
        if self.journal:
            self.journal.remove()

    def close(self) -> None:
        """Close files, however the run ended."""
        if self.journal:
            self.journal.close()


class StreamOutput(Output):
    """Standard output, a pipe or a device."""

    def __init__(self, stream: TextIO, format: Format) -> None:
        super().__init__(format)
        self.stream = stream
        self.lead = format.header
        self.entries: list[str] = []

    def add(self, item: Input, stamp: Stamp, result: Result) -> None:
        text = self.format.render(result)
        if self.format.is_document:
            self.entries.append(text)
        else:
            self._write(text)

    def finish(self) -> None:
        self._write(coco_document(self.entries) if self.format.is_document else "")

    def close(self) -> None:
        if self.stream is not sys.stdout:
            self.stream.close()

    def _write(self, text: str) -> None:
        self.stream.write(self.lead + text)
        self.lead = ""
        self.stream.flush()


class FileOutput(Output):
    """A file that grows by whole records; a document is written at the end, from the journal.

    Nothing of an existing file is touched before the first result. Raises ConfigError for a file to append to that is
    of another format, and for one to resume that has changed.
    """

    journal: Journal

    def __init__(self, path: Path, format: Format, existing: Existing, journal: Journal) -> None:
        super().__init__(format, existing, journal)
        self.path = path
        self.file: io.FileIO | None = None
        self.lead = ""
        self.at = 0
        self.old_entries = self._old_entries() if existing == "append" and path.exists() else []
        if journal.last is not None and not format.is_document:
            self._missing(journal.last)

    def add(self, item: Input, stamp: Stamp, result: Result) -> None:
        self._begin()
        self.journal.add(Line(stamp, str(self.path), self.at, result))
        self._write(encode(self.lead + self.format.render(result)))
        self.lead = ""

    def finish(self) -> None:
        if self.journal.entries or not self.path.exists():
            self._begin()
        if not self.journal.is_open:
            return
        if self.format.is_document:
            # An input that changed between runs is there twice: the later one counts.
            entries = {line.result.path: self.format.render(line.result) for line in self.journal.lines()}
            write_whole(self.path, encode(coco_document([*self.old_entries, *entries.values()])))
        else:
            self._write(self.lead.encode())
        super().finish()

    def close(self) -> None:
        if self.file is not None:
            self.file.close()
        super().close()

    def _begin(self) -> None:
        if self.journal.is_open:
            return
        self.journal.start()  # first: an old journal would be taken for that of the file's new content
        if self.format.is_document:
            return
        last = self.journal.last
        self.file = io.FileIO(self.path, "w" if last is None and self.existing == "overwrite" else "a")
        self.at = self.file.seek(0, os.SEEK_END)
        if last is None:
            self.lead = self._lead(self.at)
        else:
            self._write(self._missing(last))

    def _write(self, content: bytes) -> None:
        if self.file is not None:
            with full_disk_error(self.path):
                write_all(self.file, content)
            self.at += len(content)

    def _lead(self, at: int) -> str:
        """What has to precede a record at a position: the header of a new file, the end of a line without one."""
        if at == 0:
            return self.format.header
        return "" if self._read(at - 1, 1) == b"\n" else "\n"

    def _missing(self, last: Line) -> bytes:
        """What the interrupted run did not write of its last record."""
        if self.path.is_file() and self.path.stat().st_size >= last.at:
            expected = encode(self._lead(last.at) + self.format.render(last.result))
            written = self._read(last.at, len(expected) + 1)
            if expected.startswith(written):
                return expected[len(written) :]
        raise ConfigError(
            f"{printable(str(self.path))}: not as the interrupted run left it; name another output, or remove "
            f"{printable(str(self.journal.path))}"
        )

    def _read(self, at: int, count: int) -> bytes:
        with self.path.open("rb") as file:
            file.seek(at)
            return file.read(count)

    def _old_entries(self) -> list[str]:
        """The entries of a document to append to. Raises ConfigError for a file of another format."""
        if self.format.is_document:
            try:
                entries = json.loads(self.path.read_bytes())
            except ValueError:
                entries = None
            if isinstance(entries, list):
                return [json.dumps(each, ensure_ascii=False) for each in entries]
        elif self._read(0, len(self.format.header)) in (b"", self.format.header.encode()):
            return []
        problem = f"not {self.format.name} of this program, so nothing can be appended"
        raise ConfigError(f"{printable(str(self.path))}: {problem}; name another output")


def encode(text: str) -> bytes:
    """UTF-8, in which bytes of a path that are no text are escaped as in JSON."""
    return text.encode("utf-8", "backslashreplace")
