"""Captions as text files, one for each photo: beside it, or in a folder that mirrors its tree."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from captioner.cli.inputs import Input
from captioner.cli.journal import Journal, Stamp, write_whole
from captioner.cli.output import Existing, State
from captioner.cli.records import Speller
from captioner.errors import ConfigError, ImageError
from captioner.text import printable

if TYPE_CHECKING:
    from captioner.pipeline import Captioned


class SidecarOutput:
    """A text file for each photo: beside it, or in a folder that mirrors its tree."""

    def __init__(
        self,
        root: Path | None,
        extension: str,
        speller: Speller,
        existing: Existing,
        journal: Journal | None,
        complain: Callable[[str], None],
    ) -> None:
        self.root, self.extension, self.speller, self.existing = root, extension, speller, existing
        self.journal, self.complain = journal, complain
        self.begun = False
        self.claimed: set[int] = set()
        last = journal.last if journal else None
        # The last write may not have come about: then that input is as if it were new.
        if journal and last and last["text"] and _content(Path(last["sidecar"])) != last["text"].encode():
            del journal.entries[last["path"]]

    def target(self, item: Input) -> Path:
        """Where the captions of an input go."""
        path = item.path if self.root is None else self.root / item.relative
        return Path(os.path.splitext(path)[0] + self.extension)

    def state(self, item: Input) -> State:
        target = self.target(item)
        # Hashes, as they are small: photo.jpg and photo.png both want photo.txt.
        claim = hash(os.path.normcase(target))
        taken, known = claim in self.claimed, self.journal is not None and item.path in self.journal.entries
        self.claimed.add(claim)
        if self.journal and known and self.journal.is_done(item.path):
            return "failed" if self.journal.entries[item.path].failed else "done"
        if taken and self.existing != "append":
            other = f"{printable(str(target))} is another input's already"
            self.complain(f"{printable(item.path)}: {other}; caption it apart, or take another --format")
            return "failed"
        if known or self.existing in ("append", "overwrite") or not target.exists():
            return "pending"
        if self.existing == "skip":
            return "done"
        raise ConfigError(f"{printable(str(target))}: exists; choose --existing skip, overwrite or append")

    def add(self, item: Input, stamp: Stamp, outcome: "Captioned | ImageError") -> None:
        target, content = self.target(item), self.speller.spell(item.path, outcome).encode()
        if content and self.existing == "append" and (old := _content(target)):
            content = old + (b"" if old.endswith(b"\n") else b"\n") + content
        if self.journal:
            self._begin(self.journal)
            text = content.decode(errors="replace")
            self.journal.add(item.path, stamp, outcome, {"sidecar": str(target), "text": text})
        if content:
            target.parent.mkdir(parents=True, exist_ok=True)
            write_whole(target, content)

    def finish(self) -> None:
        if self.journal and (self.begun or self.journal.entries):
            self.journal.remove()

    def close(self) -> None:
        if self.journal:
            self.journal.close()

    def _begin(self, journal: Journal) -> None:
        if not self.begun:
            journal.path.parent.mkdir(parents=True, exist_ok=True)
            journal.start()
            self.begun = True


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
