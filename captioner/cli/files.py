"""Files and folders that a verb writes: checked before the work, written as a whole."""

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from captioner import files
from captioner.errors import ConfigError, ResourceError


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


def check_folder(flag: str, path: Path) -> None:
    """Raise ConfigError for a file, ResourceError for a folder that cannot be made, or in which nothing can be."""
    nearest = next(each for each in (path, *path.absolute().parents) if each.exists())
    if not nearest.is_dir():
        raise ConfigError(f"{flag} {nearest}: a file; name a folder")
    try:
        os.rmdir(tempfile.mkdtemp(dir=nearest))
    except OSError as error:
        raise ResourceError(f"{flag} {path}: cannot be written ({error.strerror}); name another folder") from error


def check_new_folder(flag: str, path: Path) -> None:
    """Raise ConfigError where something exists that is not an empty folder; see `check_folder`."""
    if path.is_file() or (path.exists() and any(path.iterdir())):
        raise ConfigError(f"{flag} {path}: exists; name another folder")
    check_folder(flag, path)


def write_whole(path: Path, text: str) -> None:
    """Write a file as a whole or not at all, through links, and directly into devices such as /dev/stdout."""
    if path.exists() and not path.is_file():
        path.write_text(text, encoding="utf-8", newline="\n")
        return
    files.write_whole(Path(os.path.realpath(path)), text.encode())
