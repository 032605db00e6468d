"""Decoders: the same photo as without them, and a file that kills or stalls its decoder fails alone."""

import io
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
from PIL import Image

from captioner import decoding
from captioner.config import EncoderConfig
from captioner.decoding import Decoders, full_size
from captioner.errors import ImageError
from captioner.images import open_image
from captioner.photo import Photo
from tests.serving.conftest import photo, wait_until


class Pool:
    """Decoders whose replacements are counted."""

    def __init__(self, count: int) -> None:
        self.replaced = 0
        before = set(multiprocessing.active_children())
        self.decoders = Decoders(count, max_pixels=10_000, on_replace=self.count)
        self.pids = [child.pid for child in multiprocessing.active_children() if child not in before and child.pid]

    def count(self) -> None:
        self.replaced += 1

    def size(self, data: bytes) -> tuple[int, int]:
        return self.decoders.decode(data, full_size, "a.png").image.size


def wait_until_busy(decoders: Decoders) -> None:
    """Wait until every decoder has a file."""
    wait_until(decoders._idle.empty)
    time.sleep(0.5)  # from taking a decoder to sending it the file


@pytest.fixture
def pool() -> Iterator[Pool]:
    pool = Pool(1)
    yield pool
    pool.decoders.close()


def test_photos_equal_those_decoded_here(pool: Pool) -> None:
    data, encoder = photo(1), EncoderConfig(image_size=(64, 96), interpolation="bicubic")
    found = pool.decoders.decode(data, partial(Photo.of, encoder=encoder), "a.png")
    wanted = Photo.of(open_image(data), encoder)
    assert np.array_equal(found.pixels, wanted.pixels)
    assert (found.name, found.geometry, found.key) == ("a.png", wanted.geometry, wanted.key)
    assert (found.sha256, found.notes) == (wanted.sha256, wanted.notes)
    image = pool.decoders.decode(data, full_size).image
    assert image.tobytes() == Image.open(io.BytesIO(data)).tobytes()


def test_an_unusable_file_leaves_its_decoder(pool: Pool) -> None:
    for data, code in ((b"", "empty"), (photo(1, 200, 100), "too_many_pixels"), (photo(1)[:99], "truncated")):
        with pytest.raises(ImageError, match=r"^a\.png: ") as raised:
            pool.size(data)
        assert raised.value.code == code
    assert pool.size(photo(1)) == (90, 50)
    assert pool.replaced == 0


def test_a_decoder_killed_at_work_fails_its_file_alone(pool: Pool) -> None:
    [pid] = pool.pids
    os.kill(pid, signal.SIGSTOP)
    with ThreadPoolExecutor(2) as clients:
        first = clients.submit(pool.size, photo(1))
        wait_until_busy(pool.decoders)
        second = clients.submit(pool.size, photo(2))
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(ImageError, match="crashed") as raised:
            first.result()
        assert raised.value.code == "decoder_crash"
        assert second.result() == (90, 50)
    assert pool.replaced == 1


def test_a_decoder_killed_while_idle_fails_nothing(pool: Pool) -> None:
    assert pool.size(photo(1)) == (90, 50)
    os.kill(pool.pids[0], signal.SIGKILL)
    wait_until(lambda: pool.pids[0] not in [child.pid for child in multiprocessing.active_children()])
    assert pool.size(photo(1)) == (90, 50)
    assert pool.replaced == 1


def test_the_start_of_a_decoder_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Pool(1)
    os.kill(slow.pids[0], signal.SIGSTOP)
    monkeypatch.setattr(decoding, "SECONDS", 2.0)
    with ThreadPoolExecutor(1) as clients:
        found = clients.submit(slow.size, photo(1))
        time.sleep(2.5)
        os.kill(slow.pids[0], signal.SIGCONT)
        assert found.result(30) == (90, 50)
    assert slow.replaced == 0
    slow.decoders.close()


def test_a_decoder_that_takes_too_long_is_replaced(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    assert pool.size(photo(1)) == (90, 50)
    os.kill(pool.pids[0], signal.SIGSTOP)
    monkeypatch.setattr(decoding, "SECONDS", 0.2)
    with pytest.raises(ImageError, match=r"0\.2 s") as raised:
        pool.size(photo(1))
    assert raised.value.code == "timeout"
    monkeypatch.undo()
    assert pool.size(photo(1)) == (90, 50)
    assert pool.pids[0] not in [child.pid for child in multiprocessing.active_children()]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_to_the_whole_group_do_not_end_decoders(pool: Pool, number: signal.Signals) -> None:
    assert pool.size(photo(1)) == (90, 50)
    os.kill(pool.pids[0], number)
    assert pool.size(photo(1)) == (90, 50)
    assert pool.replaced == 0


def test_decoders_end_with_a_server_that_is_killed() -> None:
    program = (
        "import multiprocessing, os, signal\n"
        "from captioner.decoding import Decoders\n"
        "if __name__ == '__main__':\n"
        "    decoders = Decoders(1)\n"
        "    print(multiprocessing.active_children()[0].pid, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    pid = int(subprocess.run([sys.executable, "-c", program], capture_output=True, check=False).stdout)

    def has_ended() -> bool:
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                return file.read().rpartition(b")")[2].split()[0] == b"Z"
        except OSError:
            return True

    wait_until(has_ended)


def test_decoders_load_no_torch() -> None:
    program = "import sys, captioner.decoding, captioner.photo; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_closing_ends_a_decoder_at_work(pool: Pool) -> None:
    assert pool.size(photo(1)) == (90, 50)
    os.kill(pool.pids[0], signal.SIGSTOP)
    with ThreadPoolExecutor(1) as clients:
        waiting = clients.submit(pool.size, photo(1))
        wait_until_busy(pool.decoders)
        pool.decoders.close()
        with pytest.raises(ImageError):
            waiting.result(10)
    assert pool.replaced == 0


def test_a_decoder_whose_parent_is_gone_limits_its_own_time() -> None:
    """A file that never ends, and a parent that was killed: SIGALRM ends the decoder."""
    program = (
        "import os, time\n"
        "from captioner import decoding\n"
        "decoding.SECONDS = 1\n"
        "ours, theirs = decoding.SPAWN.Pipe()\n"
        "ours.send((0, print, ''))\n"
        "decoding._decode_files(theirs, lambda source, name: time.sleep(60))\n"
    )
    started = time.monotonic()
    process = subprocess.run([sys.executable, "-c", program], check=False)
    assert process.returncode == -signal.SIGALRM
    assert time.monotonic() - started < 30


def test_decoders_work_without_alarms(tmp_path):
    """As on Windows, where `signal` has none."""
    Image.new("RGB", (5, 4)).save(tmp_path / "a.png")
    program = f"""
import multiprocessing, operator, signal, sys
from captioner import decoding
from captioner.images import open_image
sys.platform = "win32"
del signal.alarm, signal.SIGUSR1
ours, theirs = multiprocessing.Pipe()
ours.send(({str(tmp_path / "a.png")!r}, operator.attrgetter("size"), None))
ours.send(("missing.png", operator.attrgetter("size"), None))
import os, socket
socket.socket(fileno=os.dup(ours.fileno())).shutdown(socket.SHUT_WR)  # no more photos
decoding._decode_files(theirs, open_image)
print(*(ours.recv() for _ in range(3)), sep="\\n")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:2] == ["True", "(5, 4)"]
    assert "missing.png" in done.stdout
