"""The journal: what counts as done, torn lines, other settings, full disks."""

import errno
import hashlib
import json
import os
from pathlib import Path

import pytest

from captioner.caption import Caption, Captioned
from captioner.cli.formats import Result
from captioner.cli.journal import Entry, Journal, full_disk_error, stamp
from captioner.errors import ConfigError, ImageError, ResourceError

SETTINGS = {"format": "jsonl"}


def outcome(content: bytes) -> Captioned:
    return Captioned(Caption("a dog", -1.0, (), (4, 2)), 4, 3, hashlib.sha256(content).hexdigest(), ())


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"photo")
    return path


def written(photo: Path, result: Captioned | ImageError) -> Journal:
    """The journal of an interrupted run that had done one input, read again."""
    journal = Journal(photo.with_name("out"), SETTINGS, resume=False)
    journal.add(Result.of(str(photo), result, model="tiny"), stamp(str(photo)), Path("out"), 0, "text\n")
    journal.close()
    return Journal(photo.with_name("out"), SETTINGS, resume=True)


def test_a_file_is_done_until_its_bytes_change(photo: Path) -> None:
    journal = written(photo, outcome(b"photo"))
    assert journal.state(str(photo)) == "done"
    assert journal.state("another.jpg") == "pending"
    os.utime(photo, (1, 1))
    assert journal.state(str(photo)) == "done"
    photo.write_bytes(b"PHOTO")
    assert journal.state(str(photo)) == "pending"
    photo.write_bytes(b"photo with more")
    assert journal.state(str(photo)) == "pending"
    photo.unlink()
    assert journal.state(str(photo)) == "pending"


def test_a_missing_file_is_done_until_it_appears(photo: Path) -> None:
    photo.unlink()
    journal = written(photo, ImageError("not there", "unreadable"))
    assert journal.state(str(photo)) == "failed"
    photo.write_bytes(b"photo")
    assert journal.state(str(photo)) == "pending"


def test_a_torn_line_is_dropped_and_written_over(photo: Path) -> None:
    whole = written(photo, outcome(b"photo")).path.read_bytes()
    path = photo.with_name(".out.journal.jsonl")
    path.write_bytes(whole + b'{"path": "b.j')
    journal = Journal(photo.with_name("out"), SETTINGS, resume=True)
    assert list(journal.entries) == [str(photo)]
    journal.start()
    assert path.read_bytes() == whole
    journal.add(Result.of("b\udce9.jpg", ImageError("no", "empty"), model="tiny"), None, Path("out"), 7, "ü\n")
    first, last = journal.read()
    sha256 = hashlib.sha256(b"photo").hexdigest()
    assert first == Entry(str(photo), stamp(str(photo)), sha256, False, "out", 0, "text\n")
    assert last == Entry("b\udce9.jpg", None, None, True, "out", 7, "ü\n")
    journal.remove()
    assert not path.exists()


def test_other_settings_are_named(photo: Path) -> None:
    written(photo, outcome(b"photo"))
    with pytest.raises(ConfigError, match=r"other settings \(format jsonl, model None\); repeat them"):
        Journal(photo.with_name("out"), {"format": "csv", "model": "m"}, resume=True)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EFBIG])
def test_a_full_disk_is_a_resource_error(code: int) -> None:
    with (
        pytest.raises(ResourceError, match="out: the disk is full; free some space and continue with --resume"),
        full_disk_error(Path("out")),
    ):
        raise OSError(code, "full")


def test_other_errors_of_the_system_stay_what_they_are() -> None:
    with pytest.raises(PermissionError), full_disk_error(Path("out")):
        raise PermissionError(errno.EACCES, "no")


@pytest.mark.parametrize(
    ("content", "rest"),
    [
        ("old\nnew ü\n", b""),
        ("old\nnew ü", b"\n"),
        ("old\n", "new ü\n".encode()),
        ("old", None),
        ("old\nmew", None),
        ("old\nnew ü\nmore", None),
        (None, None),
    ],
)
def test_what_an_interruption_left_unwritten(tmp_path: Path, content: str | None, rest: bytes | None) -> None:
    target = tmp_path / "out"
    if content is not None:
        target.write_bytes(content.encode())
    assert Entry("a.jpg", None, None, False, str(target), 4, "new ü\n").unwritten() == rest


ODD = (None, True, -1, 2**64, 0.5, "", "a\0b", [], [1], [1, "2"], {}, {"a": 1})


@pytest.mark.parametrize("value", ODD, ids=repr)
def test_a_journal_of_other_values_is_refused_or_taken_as_it_is(photo: Path, value: object) -> None:
    """Nothing but ConfigError, whatever stands in a journal."""
    path = written(photo, outcome(b"photo")).path
    header, line = map(json.loads, path.read_text().splitlines())
    refused = 0
    for part, keys in ((header, list(header)), (line, list(line))):
        for key in keys:
            changed = {**part, key: value}
            both = (changed, line) if part is header else (header, changed)
            path.write_text("".join(f"{json.dumps(each)}\n" for each in both))
            try:
                journal = Journal(photo.with_name("out"), SETTINGS, resume=True)
                assert journal.state(str(photo)) in ("pending", "done", "failed")
                assert journal.last is not None
                journal.last.unwritten()
            except ConfigError:
                refused += 1
    assert refused >= 4


@pytest.mark.parametrize("content", [b"[" * 10**5, b'{"journal": ' + b"[" * 10**5, b"\xff\xfe", b"1e999", b"null"])
def test_other_files_are_no_journals(photo: Path, content: bytes) -> None:
    journal = written(photo, outcome(b"photo")).path
    first = journal.read_bytes().splitlines(keepends=True)[0]
    for text in (content + b"\n", first + content + b"\n"):
        journal.write_bytes(text)
        with pytest.raises(ConfigError, match="not a journal"):
            Journal(photo.with_name("out"), SETTINGS, resume=True)
