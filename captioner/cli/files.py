"""Files that a verb writes: checked before the work, written as a whole."""

import os
from collections.abc import Iterable
from pathlib import Path

from captioner import files
from captioner.errors import ConfigError


def check_output(flag: str, path: Path, inputs: Iterable[str | Path | None] = ()) -> None:
    """Raise ConfigError where the file cannot be written, or is one of the inputs."""
    target = Path(os.path.realpath(path))
    if path.is_dir():
        raise ConfigError(f"{flag} {path}: a folder; name a file")
    for each in inputs:
        if each is not None and path.exists() and Path(each).exists() and os.path.samefile(path, each):
            raise ConfigError(f"{flag} {path}: is an input too and would be overwritten; name another file")
    if not target.parent.is_dir():
        raise ConfigError(f"{flag} {path}: no folder {target.parent}; create it, or name another file")
    if path.exists() and not path.is_file():
        return
    partial = target.with_name(f".{target.name}.partial")
    try:
        partial.touch()
        partial.unlink()
    except OSError as error:
        raise ConfigError(f"{flag} {path}: cannot be written ({error.strerror}); name a place where it can") from error


def check_new_folder(flag: str, path: Path) -> None:
    """Raise ConfigError where something exists that is not an empty folder."""
    if path.is_file() or (path.exists() and any(path.iterdir())):
        raise ConfigError(f"{flag} {path}: exists; name another folder")


def write_whole(path: Path, text: str) -> None:
    """Write a file as a whole or not at all, through links, and directly into devices such as /dev/stdout."""
    if path.exists() and not path.is_file():
        path.write_text(text, encoding="utf-8", newline="\n")
        return
    files.write_whole(Path(os.path.realpath(path)), text.encode())
