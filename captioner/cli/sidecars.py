"""Captions as text files, one for each photo: beside it, or in a folder that mirrors its tree."""

import os
from collections.abc import Callable
from pathlib import Path

from captioner.cli.formats import Format, Result
from captioner.cli.inputs import Input
from captioner.cli.journal import Journal, Line, Stamp, State, write_whole
from captioner.cli.output import Existing, encode
from captioner.errors import ConfigError
from captioner.text import printable


class SidecarOutput:
    """A text file for each photo: beside it, or below `root`, whose runs have a journal."""

    def __init__(
        self,
        root: Path | None,
        extension: str,
        format: Format,
        existing: Existing,
        journal: Journal | None,
        note: Callable[[str], None],
    ) -> None:
        self.root, self.extension, self.format, self.existing = root, extension, format, existing
        self.journal, self.note = journal, note
        self.claimed: set[int] = set()
        last = journal.last if journal else None
        # If the last sidecar was not written, its input is treated as new.
        if journal and last and not self._is_written(last):
            del journal.entries[last.result.path]

    def target(self, item: Input) -> Path:
        """Where the captions of an input go."""
        path = item.path if self.root is None else self.root / item.relative
        return Path(os.path.splitext(path)[0] + self.extension)

    def state(self, item: Input) -> State:
        target = self.target(item)
        # photo.jpg and photo.png both want photo.txt; hashes are smaller than paths.
        claim = hash(os.path.normcase(target))
        taken, known = claim in self.claimed, self.journal is not None and item.path in self.journal.entries
        self.claimed.add(claim)
        if self.journal and (state := self.journal.state(item.path)) != "pending":
            return state
        if taken and self.existing != "append":
            problem = f"{printable(str(target))} belongs to another input already"
            self.note(f"{printable(item.path)}: {problem}; caption it separately, or use another --format")
            return "failed"
        if known or self.existing in ("append", "overwrite") or not target.exists():
            return "pending"
        if self.existing == "skip":
            return "done"
        raise ConfigError(f"{printable(str(target))}: exists; choose --existing skip, overwrite or append")

    def add(self, item: Input, stamp: Stamp, result: Result) -> None:
        target, old = self.target(item), b""
        content = encode(self.format.render(result))
        if content and self.existing == "append":
            old = _with_line_end(_content(target))
        if self.journal:
            self.journal.add(Line(stamp, str(target), len(old), result))
        if content:
            target.parent.mkdir(parents=True, exist_ok=True)
            write_whole(target, old + content)

    def finish(self) -> None:
        if self.journal:
            self.journal.remove()

    def close(self) -> None:
        if self.journal:
            self.journal.close()

    def _is_written(self, line: Line) -> bool:
        content = encode(self.format.render(line.result))
        return not content or _content(Path(line.target))[line.at :] == content


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def _with_line_end(content: bytes) -> bytes:
    return content if not content or content.endswith(b"\n") else content + b"\n"
