"""Inputs on a command line: files, folders, globs, @lists and standard input, found one by one in a fixed order."""

import fnmatch
import io
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, dropwhile, islice
from pathlib import PurePath
from typing import TYPE_CHECKING, BinaryIO

from captioner.errors import AnnotationError, ConfigError, InputError
from captioner.text import printable

if TYPE_CHECKING:
    from captioner.files import Inner

STDIN = "-"
TAR, PARQUET = ".tar", ".parquet"
CHUNK = 2**16
WATCH_SECONDS = 1.0
"""Time between two looks at watched folders; a file that has not changed in between is complete."""
BOM = b"\xef\xbb\xbf"
MAGIC = re.compile(r"[*?\[]")
URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
COUNTED = 10_000
"""Most images in subfolders that are counted for a hint."""


@dataclass(frozen=True, slots=True)
class Input:
    """A file to work on, and its place in a mirrored tree."""

    path: str
    relative: str
    """Relative to the scanned folder; for a file that was named, its path if that is relative, else its name."""
    inner: "Inner | None" = None
    """The photo in a tar or a table; None for a file."""

    @property
    def source(self) -> "str | Inner":
        return self.inner or self.path


def standard_input() -> BinaryIO:
    """Standard input past Python's buffer: a thread that waits in it would hold its lock when the process exits."""
    if sys.stdin is None:  # closed, as by <&-
        return io.BytesIO()
    stream: BinaryIO = getattr(sys.stdin.buffer, "raw", sys.stdin.buffer)
    return stream


@dataclass(frozen=True, kw_only=True)
class Finder:
    """Finds the inputs that arguments name; memory use does not grow with their number.

    Folders without images, globs without a match and unreadable folders are reported to `complain` and skipped; a file
    that is named is an input whether it exists or not. Images that only `recursive` would find are counted in a `note`.
    With `null`, paths on standard input end with NUL.
    """

    recursive: bool
    complain: Callable[[str], None]
    note: Callable[[str], None] = lambda message: None
    null: bool = False
    inside: bool = False
    """Whether a tar or a Parquet file that is named stands for its photos, as a folder does."""
    counting: bool = False
    """Whether the inputs are only counted, so that the photos in Parquet files are not read."""
    stdin: BinaryIO = field(default_factory=standard_input)

    def find(self, arguments: Sequence[str]) -> Iterator[Input]:
        """The inputs: arguments in the order given, folders sorted by name with files before subfolders.

        Raises ConfigError for arguments that contradict each other, InputError for a URL, for a list that cannot be
        read, and where there is no input at all.
        """
        if arguments.count(STDIN) > 1:
            raise ConfigError("-: named twice; standard input can be read once")
        if self.null and STDIN not in arguments:
            raise ConfigError("-0: says how paths on standard input end; add - as an input")
        for argument in arguments:
            if URL.match(argument) and not os.path.lexists(argument):
                raise InputError(f"{printable(argument)}: URLs are not fetched; download the image and name its file")
            if argument.startswith("@") and not os.access(argument[1:], os.R_OK):
                name = printable(argument)
                raise InputError(f"{name}: cannot read the list {name[1:]}; check its path")
        if all(map(_is_missing, arguments)):
            raise InputError(f"{printable(arguments[0])}: no such file; check its path")
        item = None
        for item in chain.from_iterable(map(self._named, arguments)):
            yield item
        if item is None:
            named = " ".join(map(printable, arguments))
            raise InputError(f"{named}: no input found; name images, folders (-r for trees) or globs")

    def watch(self, folders: Sequence[str], stop: Callable[[], bool]) -> Iterator[Input]:
        """The images of folders, and those that arrive, each once and when it has stopped growing; until `stop`."""
        found: set[int] = set()  # hashes, which are smaller than names
        growing: dict[str, tuple[int, int]] = {}
        while not stop():
            before, growing = growing, {}
            for folder in folders:
                for path in self._scan(folder):
                    try:
                        status = os.stat(path)
                    except OSError:  # removed since
                        continue
                    stamp = (status.st_size, status.st_mtime_ns)
                    if hash(path) in found or status.st_size == 0:
                        continue
                    if before.get(path) == stamp:
                        found.add(hash(path))
                        yield Input(path, os.path.relpath(path, folder))
                    else:
                        growing[path] = stamp
            time.sleep(WATCH_SECONDS)

    def _named(self, argument: str) -> Iterator[Input]:
        if argument == STDIN:
            for path in _split(self.stdin, b"\0" if self.null else b"\n"):
                yield from self._listed(path)
        elif argument.startswith("@"):
            with open(argument[1:], "rb") as file:
                for path in _split(file, b"\n"):
                    yield from self._listed(path)
        elif MAGIC.search(argument) and not os.path.lexists(argument):
            pure = PurePath(argument)
            files = self._expand(pure.anchor, pure.parts[bool(pure.anchor) :])
            found = chain.from_iterable(map(self._file, files))
            yield from self._at_least_one(found, f"{printable(argument)}: no file matches")
        else:
            yield from self._listed(argument)

    def _listed(self, path: str) -> Iterator[Input]:
        """A file, or the images of a folder."""
        if not os.path.isdir(path):
            return self._file(path)
        inputs = (Input(found, os.path.relpath(found, path)) for found in self._scan(path))
        return self._folder(inputs, path)

    def _file(self, path: str) -> Iterator[Input]:
        """A file, or the photos in it."""
        named = _named_file(path)
        folder, suffix = os.path.splitext(named.relative)
        if not self.inside or suffix.lower() not in (TAR, PARQUET) or not os.path.isfile(path):
            yield named
            return

        try:
            for inner in self._inside(path, suffix.lower()):
                name = inner.name.removeprefix(f"{path}/")
                yield Input(inner.name, os.path.join(folder, name), inner)
        except (AnnotationError, OSError) as error:
            self.complain(printable(str(error)))

    def _inside(self, path: str, suffix: str) -> "Iterator[Inner]":
        if suffix == PARQUET:
            from captioner.data.tables import photo_rows

            return photo_rows(path, read=not self.counting)

        from captioner.data.shards import photo_members

        return photo_members(path)

    def _folder(self, inputs: Iterator[Input], path: str) -> Iterator[Input]:
        """The images of a folder, with a hint at those in its subfolders."""
        count = 0
        for item in inputs:
            count += 1
            yield item
        deeper = 0
        if not self.recursive:
            tree = replace(self, recursive=True, complain=lambda problem: None)._scan(path)
            deeper = sum(1 for _ in islice(tree, count + COUNTED)) - count
        more = f"{deeper:,}{' or more' * (deeper == COUNTED)} more in subfolders; -r searches them" if deeper else ""
        if not count:
            self.complain(f"{printable(path)}: no images in this folder{more and f', {more}'}")
        elif more:
            self.note(f"{printable(path)}: {more}")

    def _at_least_one(self, inputs: Iterator[Input], problem: str) -> Iterator[Input]:
        """The inputs; if there are none, the problem is reported."""
        item = None
        for item in inputs:
            yield item
        if item is None:
            self.complain(problem)

    def _scan(self, folder: str) -> Iterator[str]:
        """Images of a folder. Links to folders are not followed: they may form loops."""
        from captioner.images import IMAGE_EXTENSIONS

        for _, entries in self._walk(folder) if self.recursive else [(folder, self._entries(folder))]:
            for entry in entries:
                if os.path.splitext(entry.name)[1].lower() in IMAGE_EXTENSIONS and not os.path.isdir(entry.path):
                    yield entry.path

    def _walk(self, root: str) -> Iterator[tuple[str, list["os.DirEntry[str]"]]]:
        """A folder and its subfolders, however deep, each with its entries."""
        folders = [root]
        while folders:
            folder = folders.pop()
            entries = self._entries(folder)
            yield folder, entries
            inner = [each.name for each in reversed(entries) if each.is_dir(follow_symlinks=False)]
            folders += [os.path.join(folder, name) for name in inner]

    def _expand(self, root: str, parts: Sequence[str]) -> Iterator[str]:
        """The files that a glob matches, as a shell would give them; `**` is any depth."""
        if not parts:
            if not os.path.isdir(root):
                yield root
            return
        part, rest = parts[0], parts[1:]
        if part == "**":
            rest = tuple(dropwhile("**".__eq__, rest))  # a second ** would find everything twice
            for folder, _ in self._walk(root):
                yield from self._expand(folder, rest or ["*"])
        elif not MAGIC.search(part):
            if os.path.lexists(os.path.join(root, part)):
                yield from self._expand(os.path.join(root, part), rest)
        elif os.path.isdir(root or os.curdir):
            for entry in self._entries(root, hidden=part.startswith(".")):
                if fnmatch.fnmatch(entry.name, part):
                    yield from self._expand(os.path.join(root, entry.name), rest)

    def _entries(self, folder: str, hidden: bool = False) -> list["os.DirEntry[str]"]:
        try:
            with os.scandir(folder or os.curdir) as entries:
                return sorted((each for each in entries if hidden or each.name[0] != "."), key=lambda each: each.name)
        except OSError as error:
            self.complain(f"{printable(folder)}: cannot be read ({error.strerror}); check its permissions")
            return []


def _is_missing(argument: str) -> bool:
    """Whether an argument names a file, and there is none."""
    return (
        argument != STDIN
        and not argument.startswith("@")
        and not MAGIC.search(argument)
        and not os.path.lexists(argument)
    )


def _named_file(path: str) -> Input:
    pure = PurePath(path)
    inside = not pure.anchor and ".." not in pure.parts
    return Input(path, str(pure) if inside else pure.name)


def _split(stream: BinaryIO, end: bytes) -> Iterator[str]:
    """The paths in a stream, as they arrive, without empty ones; lines also without the BOM and CR of Windows."""
    rest = b""
    # Of a buffered stream, `read` would wait for a whole chunk.
    read = getattr(stream, "read1", stream.read)
    for chunk in chain(iter(lambda: read(CHUNK) or b"", b""), [end]):  # the last path may lack its end
        *paths, rest = (rest + chunk).split(end)
        for path in paths:
            if end == b"\n":
                path = path.removeprefix(BOM).removesuffix(b"\r")
            if path:
                yield os.fsdecode(path)
