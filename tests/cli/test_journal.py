"""The journal: what counts as done, torn lines, other settings, full disks."""

import errno
import hashlib
import os
from pathlib import Path

import pytest

from captioner.caption import Caption, Captioned
from captioner.cli.formats import Result
from captioner.cli.journal import Journal, Line, full_disk_error, stamp, write_whole
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
    journal.add(Line(stamp(str(photo)), "out", 0, Result.of(str(photo), result, model="tiny")))
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
    line = Line(None, "out", 7, Result.of("b.jpg", ImageError("no", "empty"), model="tiny"))
    journal.add(line)
    first, last = journal.lines()
    assert (first.result.path, last) == (str(photo), line)
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


def test_a_file_that_cannot_be_put_in_place_leaves_no_rest(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        write_whole(tmp_path / "folder", b"text")
    assert [each.name for each in tmp_path.iterdir()] == ["folder"]
