"""Files are replaced as a whole or not at all; a lock has one holder."""

import os
import subprocess
import sys
import threading
import time

import pytest

from captioner import files
from captioner.files import locked, partial, write_whole


@pytest.mark.parametrize("sync", [False, True])
@pytest.mark.parametrize("content", [b"new", lambda file: file.write(b"new")])
def test_a_file_is_replaced(tmp_path, content, sync):
    path = tmp_path / "file"
    path.write_bytes(b"a longer old one")
    write_whole(path, content, sync=sync)
    assert path.read_bytes() == b"new"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_the_old_file_stays_if_writing_fails(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(file):
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(path, fail)
    assert path.read_bytes() == b"old"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_a_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_whole(tmp_path / "nowhere" / "file", b"new")


@pytest.mark.parametrize("name", ["x" * 255, "字" * 83 + ".txt", "x" * 246 + ".txt"])
def test_names_as_long_as_file_systems_take(tmp_path, name):
    write_whole(tmp_path / name, b"new")
    assert [(each.name, each.read_bytes()) for each in tmp_path.iterdir()] == [(name, b"new")]


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_nothing_is_written_through_links(tmp_path):
    precious = tmp_path / "precious"
    precious.write_bytes(b"old")
    path = tmp_path / "file"
    partial(path).symlink_to(precious)
    write_whole(path, b"new")
    assert (path.read_bytes(), path.is_symlink()) == (b"new", False)
    (tmp_path / ".lock").symlink_to(precious)
    with pytest.raises(OSError, match="symbolic"), locked(tmp_path / ".lock"):
        pass
    assert precious.read_bytes() == b"old"


@pytest.mark.skipif(os.name == "nt", reason="locks as Unix has them")
def test_a_lock_is_held_by_one_process_and_dies_with_it(tmp_path):
    lock = tmp_path / "folder" / ".lock"
    code = f"from pathlib import Path; from captioner.files import locked; held = locked(Path({str(lock)!r}))"
    code += "\nwith held: print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(BlockingIOError), locked(lock, wait=False):
            pass
        other.kill()
        other.wait()
    assert lock.exists()
    with locked(lock, wait=False):
        assert lock.exists()
    assert not lock.exists()


@pytest.mark.skipif(os.name == "nt", reason="locks as Unix has them")
@pytest.mark.parametrize("pause", [0, 0.001])
def test_threads_hold_a_lock_one_at_a_time(tmp_path, pause):
    """Each holder removes the file, while others open it or check that it exists."""
    inside, most = [], []

    def work():
        for _ in range(10 if pause else 1000):
            with locked(tmp_path / ".lock"):
                inside.append(0)
                most.append(len(inside))
                time.sleep(pause)
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert most == [1] * (40 if pause else 4000)


def test_systems_without_locks_and_folders_to_open(tmp_path, monkeypatch):
    """As on Windows: no fcntl, no O_NOFOLLOW, and folders cannot be opened."""
    monkeypatch.setattr(files, "fcntl", None)
    monkeypatch.setattr(files, "NO_LINK", 0)
    opened = os.open

    def refuse_folders(path, *arguments, **named):
        if os.path.isdir(path):
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments, **named)

    monkeypatch.setattr(os, "open", refuse_folders)
    with locked(tmp_path / ".lock"), locked(tmp_path / ".lock", wait=False):
        write_whole(tmp_path / "file", b"new", sync=True)
    assert [(each.name, each.read_bytes()) for each in tmp_path.iterdir()] == [("file", b"new")]
