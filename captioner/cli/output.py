"""Outputs of `captioner caption`: a stream, a file, or one text file per photo. Written results are never lost."""

import argparse
import io
import json
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Literal, TextIO, TypeAlias

from captioner import files
from captioner.cli.flags import UNRELATED
from captioner.cli.formats import Format, Result, coco_document, encode
from captioner.cli.inputs import Input
from captioner.cli.journal import Journal, Stamp, State, append, check_unchanged, full_disk_error
from captioner.errors import ConfigError, ResourceError
from captioner.text import printable

Existing: TypeAlias = Literal["skip", "overwrite", "append", "error"]


class Output(ABC):
    """Writes the results of a run, which can be resumed if there is a journal."""

    def __init__(self, format: Format, existing: Existing = "error", journal: Journal | None = None) -> None:
        self.format, self.existing, self.journal = format, existing, journal

    def claim(self, item: Input) -> str | None:
        """A description of what no two inputs may share: a path in COCO's results, or a sidecar; or None."""
        return f"the path {os.path.normpath(item.path)}" if self.format.name == "coco" else None

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
        self.stream, self.lead = stream, format.header
        self.entries: list[str] = []

    def add(self, item: Input, stamp: Stamp, result: Result) -> None:
        text = self.format.render(result)
        if self.format.document:
            self.entries.append(text)
        else:
            self._write(text)

    def finish(self) -> None:
        self._write(self.format.document(self.entries).decode() if self.format.document else "")

    def close(self) -> None:
        if self.stream is not sys.stdout:
            self.stream.close()

    def _write(self, text: str) -> None:
        self.stream.write(self.lead + text)
        self.lead = ""
        self.stream.flush()


class FileOutput(Output):
    """A file that grows by whole results; a document is written at the end, from the journal.

    An existing file stays as it is until the first result. Raises ConfigError for a file to append to that is of
    another format, and for one to resume that has changed.
    """

    journal: Journal

    def __init__(self, path: Path, format: Format, existing: Existing, journal: Journal) -> None:
        super().__init__(format, existing, journal)
        self.path = path
        self.file: io.FileIO | None = None
        self.lead = format.header if journal.last is None else ""
        self.old_entries: list[str] = []
        if existing == "append" and path.exists():
            self._read_old(path)
        unwritten = b"" if format.document or journal.last is None else journal.last.unwritten()
        if unwritten is None:
            remedy = f"name another output, or remove {printable(str(journal.path))}"
            raise ConfigError(f"{printable(str(path))}: not as the interrupted run left it; {remedy}")
        self.unwritten = unwritten

    def add(self, item: Input, stamp: Stamp, result: Result) -> None:
        self._begin()
        text = self.lead + self.format.render(result)
        self.journal.add(result, stamp, self.path, self.file.tell() if self.file else 0, text)
        if self.file:
            append(self.file, encode(text))
        self.lead = ""

    def finish(self) -> None:
        self._begin()
        if self.format.document:
            # An input that changed between runs has two entries; the later one counts.
            entries = {entry.path: entry.text for entry in self.journal.read()}
            with full_disk_error(self.path):
                document = self.format.document([*self.old_entries, *entries.values()])
                files.write_whole(self.path.resolve(), document)  # the file behind a link
        elif self.file and self.file.tell() == 0:
            append(self.file, encode(self.lead))
        elif self.file:
            check_unchanged(self.file)
        super().finish()

    def close(self) -> None:
        if self.file:
            self.file.close()
        super().close()

    def _begin(self) -> None:
        """Open the files, unless they are open."""
        self.journal.start()  # first, so that an old journal never stands beside new content
        if self.format.document or self.file:
            return
        resumed = self.journal.last is not None
        self.file = io.FileIO(self.path, "w" if self.existing == "overwrite" and not resumed else "a")
        append(self.file, self.unwritten)

    def _read_old(self, path: Path) -> None:
        """Read the start and end of a file to append to. Raises ConfigError if it is of another format."""
        header = self.format.header.encode()
        with path.open("rb") as file, suppress(ValueError):
            if self.format.document:
                entries = json.load(file)
                if isinstance(entries, list):
                    self.old_entries = [json.dumps(each, ensure_ascii=False) for each in self._without_new(entries)]
                    self.journal.old_entries = len(self.old_entries)
                    return
            elif self.journal.last is not None or os.fstat(file.fileno()).st_size == 0:
                return
            elif file.read(len(header)) == header:
                file.seek(-1, os.SEEK_END)
                self.lead = "" if file.read() == b"\n" else "\n"
                return
        problem = f"not {self.format.name} of this program, so nothing can be appended"
        raise ConfigError(f"{printable(str(path))}: {problem}; name another output")

    def _without_new(self, entries: list[object]) -> list[object]:
        """The entries that a document had before this run, which may have been killed just after it was written."""
        if self.journal.last is None or self.journal.old_entries is None:
            return entries
        new = {entry.path: entry.text for entry in self.journal.read()}
        appended = entries[self.journal.old_entries :]
        written = appended == json.loads(coco_document(new.values()))
        return entries[: self.journal.old_entries] if written else entries


class SidecarOutput(Output):
    """A text file for each photo: beside it, or in the folder `root`, which mirrors its tree and has a journal."""

    def __init__(
        self, root: Path | None, ext: str, format: Format, existing: Existing, journal: Journal | None
    ) -> None:
        super().__init__(format, existing, journal)
        self.root, self.ext = root, ext
        if journal and (last := journal.last) and last.text and last.unwritten() != b"":
            del journal.entries[last.path]  # its input is treated as new

    def target(self, item: Input) -> Path:
        """The file for the captions of an input."""
        if item.inner is not None and self.root is None:
            raise ConfigError(
                f"{printable(item.path)}: inside another file, which holds no sidecars; name a folder with -o"
            )
        path = item.path if self.root is None else self.root / item.relative
        return Path(os.path.splitext(path)[0] + self.ext)

    def claim(self, item: Input) -> str | None:
        # photo.jpg and photo.png both want photo.txt.
        return None if self.existing == "append" else f"the sidecar {os.path.normcase(self.target(item))}"

    def state(self, item: Input) -> State:
        if (state := super().state(item)) != "pending":
            return state
        target = self.target(item)
        if self.existing in ("append", "overwrite"):
            _refuse_image(target)
            return state
        if (self.journal and item.path in self.journal.entries) or not target.exists():
            return "pending"
        if self.existing == "skip":
            return "done"
        problem = "exists; continue an interrupted run with --resume, or choose --existing skip, overwrite or append"
        raise ConfigError(f"{printable(str(target))}: {problem}")

    def add(self, item: Input, stamp: Stamp, result: Result) -> None:
        target, text = self.target(item), self.format.render(result)
        old = target.read_bytes() if text and self.existing == "append" and target.exists() else b""
        if old and not old.endswith(b"\n"):
            old += b"\n"
        if self.journal:
            self.journal.add(result, stamp, target, len(old), text)
        if text:
            target.parent.mkdir(parents=True, exist_ok=True)
            with full_disk_error(target):
                files.write_whole(target, old + encode(text))

    def finish(self) -> None:
        if self.journal and self.journal.started:
            written = (
                entry.target for entry in islice(self.journal.read(), self.journal.inherited, None) if entry.text
            )
            lost = [target for target in written if not os.path.exists(target)]
            if lost:
                names = printable(lost[0]) + (f" and {len(lost) - 1} more" if len(lost) > 1 else "")
                raise ResourceError(f"{names}: removed by another program during the run; caption these photos again")
        super().finish()


@contextmanager
def exclusive(arguments: argparse.Namespace) -> Iterator[None]:
    """Keep other runs from the file or folder OUT. Raises ResourceError if another run is writing it."""
    path = None if arguments.output is None or arguments.dry_run else Path(arguments.output)
    with ExitStack() as stack:
        if path is not None and (path.is_file() or path.is_dir() or not path.exists()):
            try:
                stack.enter_context(files.locked(path.with_name(f".{path.name}.lock"), wait=False))
            except BlockingIOError as error:
                problem = "another run is writing it; wait for it, or name another output"
                raise ResourceError(f"{printable(str(path))}: {problem}") from error
        yield


def open_output(arguments: argparse.Namespace, format: Format) -> Output | None:
    """The output that the flags name; None for a file to be kept. Raises ConfigError where it must not be written."""
    path, existing = None if arguments.output is None else Path(arguments.output), arguments.existing
    name = printable(str(path))
    settings = {flag: str(value) for flag, value in vars(arguments).items() if flag not in UNRELATED}
    if format.name == "sidecar" or arguments.embed:
        if path is not None and path.exists() and not path.is_dir():
            raise ConfigError(f"{name}: not a folder; {'--embed' if arguments.embed else '--format sidecar'} needs one")
        journal = None if path is None else Journal(path, settings, resume=arguments.resume)
        if arguments.resume and not (journal and journal.entries) and existing == "error":
            # The run is complete, or was interrupted at its first sidecar; without OUT there is no journal.
            existing = "skip"
        if arguments.embed:
            from captioner.cli.embedding import EmbeddedOutput

            return EmbeddedOutput(path, arguments.embed, existing, journal)
        return SidecarOutput(path, arguments.ext, format, existing, journal)
    if format.name == "parquet" and (path is None or existing == "append" or (path.exists() and not path.is_file())):
        raise ConfigError("--format parquet: writes a whole new file; name it with -o, and do not append")
    if path is None:
        return StreamOutput(sys.stdout, format)
    if path.is_dir():
        raise ConfigError(f"{name}: a folder; name a file, or use --format sidecar")
    if path.exists() and not path.is_file():
        return StreamOutput(path.open("w", encoding="utf-8", errors="backslashreplace", newline="\n"), format)
    if path.exists() and existing != "skip":
        _refuse_image(path)
        lists = (argument[1:] for argument in arguments.inputs if argument.startswith("@"))
        if any(os.path.exists(each) and os.path.samefile(each, path) for each in lists):
            raise ConfigError(f"{name}: the list of inputs; name another output")
    journal = Journal(path, settings, resume=arguments.resume)
    if arguments.resume and not journal.path.exists() and path.exists():
        return None
    if not journal.entries and existing != "overwrite":
        if journal.path.exists() and not arguments.resume:
            problem = "of a run that was interrupted"
            raise ConfigError(f"{name}: {problem}; continue it with --resume, or replace it with --existing overwrite")
        if existing != "append" and path.exists() and path.stat().st_size > 0:
            if existing == "skip":
                return None
            raise ConfigError(f"{name}: exists; choose --existing skip, overwrite or append, or name another file")
    return FileOutput(path, format, existing, journal)


def _refuse_image(path: Path) -> None:
    from captioner.images import is_image

    if path.is_file() and is_image(path):
        raise ConfigError(f"{printable(str(path))}: an image, which would be overwritten; name another output or --ext")
