"""Files that are written as a whole or not at all, and locks between processes."""

import hashlib
import importlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

MAX_NAME = 255
"""Longest file name, in bytes, that file systems take."""
NO_LINK = getattr(os, "O_NOFOLLOW", 0)
"""Flag of `os.open` that refuses a link in the place of the file."""


@dataclass(frozen=True, kw_only=True)
class Inner(ABC):
    """A file inside another file."""

    name: str
    """How messages refer to it."""

    @abstractmethod
    def read(self, most: int | None = None) -> bytes:
        """Its bytes, or the first `most` of them."""


@dataclass(frozen=True)
class Member(Inner):
    """A member of a tar file."""

    path: Path
    offset: int
    size: int

    def read(self, most: int | None = None) -> bytes:
        """Its bytes, or the first `most` of them."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size if most is None else min(self.size, most))


@dataclass(frozen=True)
class Value(Inner):
    """A value of a table, which is in memory."""

    content: bytes

    def read(self, most: int | None = None) -> bytes:
        """Its bytes, or the first `most` of them."""
        return self.content[:most]


fcntl: Any = importlib.import_module("fcntl") if os.name == "posix" else None


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold a lock file while the block runs; the lock of a killed process is released. Windows has no such
    locks: there the block just runs.

    Waits while another process holds it; with `wait=False`, raises BlockingIOError instead. Raises OSError for a link.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with open(path, "w", opener=lambda name, flags: os.open(name, flags | NO_LINK, 0o666)) as file:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
                try:
                    removed = not os.path.samestat(os.fstat(file.fileno()), path.stat())
                except FileNotFoundError:
                    removed = True
                if removed:  # by the last holder
                    continue
            try:
                yield
            finally:
                with suppress(OSError):  # Windows removes no open files
                    path.unlink()
            return


def partial(path: Path) -> Path:
    """The temporary file beside `path`, in which it is written."""
    name = f".{path.name}.partial"
    if len(os.fsencode(name)) > MAX_NAME:
        name = f".{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:32]}.partial"
    return path.with_name(name)


def write_whole(path: Path, content: bytes | Callable[[BinaryIO], object], *, sync: bool = False) -> None:
    """Write bytes, or what a function writes, to a temporary file and rename it to `path`; if that fails, an old file
    stays. `sync` waits until the content and the name would survive a power failure.
    """
    temporary = partial(path)
    temporary.unlink(missing_ok=True)  # of a killed process, or a link that was planted there
    try:
        with temporary.open("xb") as file:
            if isinstance(content, bytes):
                file.write(content)
            else:
                content(file)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    with suppress(OSError):  # Windows cannot open folders
        if sync:
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
