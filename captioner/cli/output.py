"""Where results of all inputs go: a stream or a file. What is written is never lost."""

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TextIO

from captioner.cli.inputs import Input
from captioner.cli.journal import Journal, Stamp, disk, write_all, write_whole
from captioner.cli.records import Speller, coco_document
from captioner.errors import ConfigError, ImageError
from captioner.text import printable

if TYPE_CHECKING:
    import io

    from captioner.pipeline import Captioned

Existing = Literal["skip", "overwrite", "append", "error"]
State = Literal["pending", "done", "failed"]


class Output(Protocol):
    """What all of them do."""

    def state(self, item: Input) -> State:
        """Whether an input is to be captioned; ConfigError where it may not be."""

    def add(self, item: Input, stamp: Stamp, outcome: "Captioned | ImageError") -> None:
        """Write the outcome for an input whose file had the stamp."""

    def finish(self) -> None:
        """All inputs are done."""

    def close(self) -> None:
        """Let go of files, however the run ended."""


class StreamOutput:
    """Standard output, a pipe or a device."""

    def __init__(self, stream: TextIO, speller: Speller) -> None:
        self.stream, self.speller = stream, speller
        self.entries: list[dict[str, Any]] = []
        self.lead = speller.header()

    def state(self, item: Input) -> State:
        return "pending"

    def add(self, item: Input, stamp: Stamp, outcome: "Captioned | ImageError") -> None:
        text = self.speller.spell(item.path, outcome)
        if self.speller.format == "coco":
            self.entries += map(json.loads, text.splitlines())
        else:
            self._write(text)

    def finish(self) -> None:
        self._write(coco_document(self.entries) if self.speller.format == "coco" else "")

    def close(self) -> None:
        if self.stream is not sys.stdout:
            self.stream.close()

    def _write(self, text: str) -> None:
        self.stream.write(self.lead + text)
        self.lead = ""
        self.stream.flush()


class FileOutput:
    """A file that grows by whole records; COCO's is written at the end, from the journal.

    Nothing of an existing file is touched before the first result.
    """

    def __init__(self, path: Path, speller: Speller, existing: Existing, journal: Journal) -> None:
        self.path, self.speller, self.existing, self.journal = path, speller, existing, journal
        self.file: io.FileIO | None = None
        self.lead = b""
        self.at = 0
        self.begun = False
        self.before: list[dict[str, Any]] = []
        if existing == "append" and path.exists():
            self._check_kind()
        if journal.last is not None and speller.format != "coco":
            self._missing(journal.last)

    def state(self, item: Input) -> State:
        if not self.journal.is_done(item.path):
            return "pending"
        return "failed" if self.journal.entries[item.path].failed else "done"

    def add(self, item: Input, stamp: Stamp, outcome: "Captioned | ImageError") -> None:
        self._begin()
        text = self.lead + self.speller.spell(item.path, outcome).encode()
        self.lead = b""
        self.journal.add(item.path, stamp, outcome, {"at": self.at, "text": text.decode()})
        self._write(text)

    def finish(self) -> None:
        if self.journal.entries or not self.path.exists():
            self._begin()
        if self.begun:
            if self.speller.format == "coco":
                write_whole(self.path, self._coco())
            else:
                self._write(self.lead)
            self.journal.remove()

    def close(self) -> None:
        if self.file is not None:
            self.file.close()
        self.journal.close()

    def _begin(self) -> None:
        if self.begun:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        last = self.journal.last
        if self.speller.format != "coco":
            anew = last is None and self.existing == "overwrite"
            if anew:
                # Else the old journal would be taken for one of the file's new content.
                self.journal.path.unlink(missing_ok=True)
            self.file = self.path.open("wb" if anew else "ab", buffering=0)
            self.at = self.file.seek(0, os.SEEK_END)
            if last is not None:
                self._write(self._missing(last))
            elif self.at == 0:
                self.lead = self.speller.header().encode()
            elif self._read(self.at - 1, 1) != b"\n":
                self.lead = b"\n"
        self.journal.start()
        self.begun = True

    def _write(self, content: bytes) -> None:
        if self.file is not None:
            with disk(self.path):
                write_all(self.file, content)
            self.at += len(content)

    def _missing(self, last: dict[str, Any]) -> bytes:
        """What the interrupted run did not get to write of its last record."""
        text: bytes = last["text"].encode()
        at: int = last["at"]
        there = self.path.is_file() and self.path.stat().st_size >= at
        written = self._read(at, len(text) + 1) if there else b""
        if not there or not text.startswith(written):
            raise ConfigError(
                f"{printable(str(self.path))}: not as the interrupted run left it; name another output, or remove "
                f"{printable(str(self.journal.path))}"
            )
        return text[len(written) :]

    def _read(self, at: int, count: int) -> bytes:
        with self.path.open("rb") as file:
            file.seek(at)
            return file.read(count)

    def _check_kind(self) -> None:
        """Refuse to append to what is something else."""
        header = self.speller.header().encode()
        if self.speller.format == "coco":
            try:
                before = json.loads(self.path.read_bytes())
            except ValueError:
                before = None
            fits = isinstance(before, list)
            self.before = before if isinstance(before, list) else []
        else:
            fits = not header or self._read(0, len(header)) in (b"", header)
        if not fits:
            what = f"not {self.speller.format} of this program, so nothing can be appended"
            raise ConfigError(f"{printable(str(self.path))}: {what}; name another output")

    def _coco(self) -> bytes:
        # An input that changed between runs is there twice: the later one counts.
        texts = {entry["path"]: entry["text"] for entry in self.journal.read_back()}
        entries = [json.loads(line) for text in texts.values() for line in text.splitlines()]
        return coco_document(self.before + entries).encode()
