"""Inputs on a command line: files, folders, globs, @lists and standard input, found one by one in a fixed order."""

import fnmatch
import io
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import PurePath
from typing import BinaryIO

from captioner.errors import ConfigError, InputError
from captioner.images import IMAGE_EXTENSIONS
from captioner.text import printable

STDIN = "-"
CHUNK = 2**16
MAGIC = re.compile(r"[*?\[]")


@dataclass(frozen=True, slots=True)
class Input:
    """A file to work on, and its place in a mirrored tree."""

    path: str
    relative: str
    """Below the scanned folder; for a file that was named, its path if that is relative, else its name."""


@dataclass(frozen=True, kw_only=True)
class Finder:
    """Finds the inputs that arguments name; memory use does not grow with their number.

    Folders without images, globs without a match and unreadable folders are reported to `complain` and skipped; a file
    that is named is an input whether it exists or not. With `null`, paths on standard input end with NUL.
    """

    recursive: bool
    null: bool
    stdin: BinaryIO
    complain: Callable[[str], None]

    def find(self, arguments: Sequence[str]) -> Iterator[Input]:
        """The inputs: arguments in the order given, folders sorted by name with files before subfolders.

        Raises ConfigError for arguments that contradict each other, InputError for a list that cannot be read.
        """
        if arguments.count(STDIN) > 1:
            raise ConfigError("-: named twice; standard input can be read once")
        if self.null and STDIN not in arguments:
            raise ConfigError("-0: says how paths on standard input end; add - as an input")
        for argument in arguments:
            if argument.startswith("@") and not os.access(argument[1:], os.R_OK):
                raise InputError(
                    f"{printable(argument)}: cannot read the list {printable(argument[1:])}; check its path"
                )
        for argument in arguments:
            if argument == STDIN:
                yield from chain.from_iterable(map(self._named, _split(self.stdin, b"\0" if self.null else b"\n")))
            elif argument.startswith("@"):
                with open(argument[1:], "rb") as file:
                    yield from chain.from_iterable(map(self._named, _split(file, b"\n")))
            elif MAGIC.search(argument) and not os.path.lexists(argument):
                yield from self._matching(argument)
            else:
                yield from self._named(argument)

    def _named(self, path: str) -> Iterator[Input]:
        if not os.path.isdir(path):
            return iter([_named_file(path)])
        hint = "" if self.recursive else "; -r searches subfolders"
        inputs = (Input(found, os.path.relpath(found, path)) for found in self._scan(path))
        return self._at_least_one(inputs, f"{printable(path)}: no images in this folder{hint}")

    def _at_least_one(self, inputs: Iterator[Input], problem: str) -> Iterator[Input]:
        """The inputs; if there are none, the problem is reported."""
        first = next(inputs, None)
        if first is None:
            self.complain(problem)
        else:
            yield first
            yield from inputs

    def _scan(self, folder: str) -> Iterator[str]:
        """Images of a folder. Links to folders are not followed: they may form loops."""
        entries = self._entries(folder)
        for entry in entries:
            if os.path.splitext(entry.name)[1].lower() in IMAGE_EXTENSIONS and not os.path.isdir(entry.path):
                yield entry.path
        if self.recursive:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    yield from self._scan(entry.path)

    def _matching(self, pattern: str) -> Iterator[Input]:
        """The files that a glob matches, as a shell would give them; `**` is any depth."""
        parts = PurePath(pattern).parts
        root = parts[: bool(PurePath(pattern).anchor)]
        # Two ** in a row would find everything twice.
        rest = [part for part, before in zip(parts, ("", *parts), strict=False) if (part, before) != ("**", "**")]
        found = map(_named_file, self._expand("".join(root), rest[len(root) :]))
        return self._at_least_one(found, f"{printable(pattern)}: no file matches")

    def _expand(self, root: str, parts: Sequence[str]) -> Iterator[str]:
        if not parts:
            if not os.path.isdir(root):
                yield root
            return
        part, rest = parts[0], parts[1:]
        if part == "**":
            yield from self._expand(root, rest or ["*"])
            for entry in self._entries(root):
                if entry.is_dir(follow_symlinks=False):
                    yield from self._expand(os.path.join(root, entry.name), parts)
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


def standard_input() -> BinaryIO:
    """Standard input past Python's buffer: a thread that waits in it would hold its lock when the process exits."""
    if sys.stdin is None:  # closed, as by <&-
        return io.BytesIO()
    stream: BinaryIO = getattr(sys.stdin.buffer, "raw", sys.stdin.buffer)
    return stream


def nothing_found(arguments: Sequence[str]) -> InputError:
    """The error for arguments that name no input at all."""
    named = " ".join(map(printable, arguments))
    return InputError(f"{named}: no input found; name images, folders (-r for trees) or globs")


def _named_file(path: str) -> Input:
    pure = PurePath(path)
    inside = not pure.anchor and ".." not in pure.parts
    return Input(path, str(pure) if inside else pure.name)


def _split(stream: BinaryIO, end: bytes) -> Iterator[str]:
    """The paths in a stream, as they arrive, without empty ones and without the BOM and carriage returns of Windows."""
    rest, first = b"", True
    # Of a buffered stream, `read` would wait for a whole chunk.
    read = getattr(stream, "read1", stream.read)
    while chunk := read(CHUNK):
        *whole, rest = (rest + chunk).split(end)
        if first and whole:
            whole[0], first = whole[0].removeprefix(b"\xef\xbb\xbf"), False
        yield from _decoded(whole, end)
    yield from _decoded([rest.removeprefix(b"\xef\xbb\xbf") if first else rest], end)


def _decoded(paths: Sequence[bytes], end: bytes) -> Iterator[str]:
    for path in paths:
        path = path.removesuffix(b"\r") if end == b"\n" else path
        if path:
            yield os.fsdecode(path)
