"""Captions as text files, one for each photo: beside it, or in a folder that mirrors its tree."""

import os
from collections.abc import Callable
from pathlib import Path

from captioner.cli.formats import Format, Result
from captioner.cli.inputs import Input
from captioner.cli.journal import Journal, Line, Stamp, State, write_whole
from captioner.cli.output import Existing, Output, encode
from captioner.errors import ConfigError
from captioner.text import printable


class SidecarOutput(Output):
    """A text file for each photo: beside it, or below the folder `root`, whose runs have a journal."""

    def __init__(
        self,
        root: Path | None,
        extension: str,
        format: Format,
        existing: Existing,
        journal: Journal | None,
        note: Callable[[str], None],
    ) -> None:
        super().__init__(format, existing, journal)
        self.root, self.extension, self.note = root, extension, note
        self.claimed: set[int] = set()
        if journal and journal.last and not self._is_written(journal.last):
            del journal.entries[journal.last.result.path]  # its input is treated as new

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
        if (state := super().state(item)) != "pending":
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
        target, content = self.target(item), encode(self.format.render(result))
        old = _content(target) if content and self.existing == "append" else b""
        if old and not old.endswith(b"\n"):
            old += b"\n"
        if self.journal:
            self.journal.add(Line(stamp, str(target), len(old), result))
        if content:
            target.parent.mkdir(parents=True, exist_ok=True)
            write_whole(target, old + content)

    def _is_written(self, line: Line) -> bool:
        content = encode(self.format.render(line.result))
        return not content or _content(Path(line.target))[line.at :] == content


def _content(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""
