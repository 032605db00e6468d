"""A file is there as a whole, or what was there before."""

import pytest

from captioner.files import write_whole


@pytest.mark.parametrize("sync", [False, True])
@pytest.mark.parametrize("content", [b"new", lambda file: file.write(b"new")])
def test_a_file_is_replaced(tmp_path, content, sync):
    path = tmp_path / "file"
    path.write_bytes(b"a longer old one")
    write_whole(path, content, sync=sync)
    assert path.read_bytes() == b"new"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_what_was_there_stays_where_writing_fails(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(file):
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(path, fail)
    assert path.read_bytes() == b"old"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_whole(tmp_path / "nowhere" / "file", b"new")
