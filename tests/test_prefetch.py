"""Reading ahead: full batches of fast sources, no waiting for slow ones, and no thread that holds anything up."""

import itertools
import signal
import subprocess
import sys
import threading
import time

import pytest

from captioner.prefetch import BATCHES, prefetch


def slowly(number):
    time.sleep(0.002)
    return number


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize(("count", "sizes"), [(0, []), (3, [3]), (4, [4]), (11, [4, 4, 3])])
def test_a_fast_source_gives_full_batches_in_order(workers, count, sizes):
    batches = list(prefetch(range(count), slowly, 4, workers))
    assert [len(batch) for batch in batches] == sizes
    assert list(itertools.chain(*batches)) == list(range(count))


def test_what_has_arrived_is_not_held_back():
    """Each source but the first is asked for only once the one before it has come out."""
    out = threading.Semaphore(1)

    def sources():
        for number in range(5):
            assert out.acquire(timeout=10)
            yield number

    for number, batch in enumerate(prefetch(sources(), slowly, 4, 2)):
        assert batch == [number]
        out.release()


def test_short_pauses_between_sources_do_not_split_batches(monkeypatch):
    monkeypatch.setattr("captioner.prefetch.PATIENCE", 10.0)
    batches = prefetch(map(slowly, range(6)), lambda number: number, 4, 2)
    assert [len(batch) for batch in batches] == [4, 2]


def test_an_incomplete_batch_waits_for_its_reads():
    reading = threading.Event()
    arrived = threading.Event()

    def sources():
        yield 0
        yield 1
        assert arrived.wait(10)

    def read(number):
        assert reading.wait(10)
        return number

    batches = prefetch(sources(), read, 4, 1)
    threading.Timer(0.2, reading.set).start()
    assert next(batches) == [0, 1]
    arrived.set()
    assert list(batches) == []


def test_no_more_than_two_batches_are_in_memory():
    drawn = []

    def sources():
        for number in range(30):
            drawn.append(number)
            yield number

    most = 0
    for batch in prefetch(sources(), slowly, 3, 4):
        time.sleep(0.02)
        most = max(most, len(drawn) - batch[0])
    assert drawn == list(range(30))
    assert most == BATCHES * 3


def test_an_error_of_a_source_is_raised_at_once():
    def sources():
        yield 0
        raise LookupError("no more")

    started = threading.Event()
    batches = prefetch(sources(), lambda number: started.wait(0.2), 4, 1)
    with pytest.raises(LookupError, match="no more"):
        next(batches)


def test_batches_before_an_error_of_a_source_are_handed_out():
    def sources():
        yield from range(3)
        raise LookupError("no more")

    batches = prefetch(sources(), slowly, 2, 1)
    assert next(batches) == [0, 1]
    with pytest.raises(LookupError, match="no more"):
        next(batches)


def test_an_error_of_reading_is_raised_in_place_of_its_batch():
    batches = prefetch([1, 2, 0, 4], lambda number: 4 // number, 2, 2)
    assert next(batches) == [4, 2]
    with pytest.raises(ZeroDivisionError):
        next(batches)


def test_closing_ends_the_threads_and_cancels_what_nobody_wants():
    before = threading.active_count()
    read = []

    def once(number):
        read.append(slowly(number))

    batches = prefetch(itertools.count(), once, 4, 2)
    next(batches)
    batches.close()
    limit = time.monotonic() + 10
    while threading.active_count() > before:
        assert time.monotonic() < limit
        time.sleep(0.01)
    assert len(read) <= BATCHES * 4


def test_threads_that_can_end_have_ended_after_closing(monkeypatch):
    """Python kills daemon threads at exit, which may abort the process."""
    monkeypatch.setattr("captioner.prefetch.PATIENCE", 10.0)
    before = threading.active_count()
    batches = prefetch(itertools.count(), lambda number: time.sleep(0.05), 4, 2)
    next(batches)
    batches.close()
    assert threading.active_count() <= before


def test_a_stop_does_not_wait_for_a_read_that_never_ends():
    reading, stopped = threading.Event(), threading.Event()

    def read(number):
        if number == 4:
            reading.set()
            assert stopped.wait(10)
            time.sleep(3600)
        return number

    batches = prefetch(range(8), read, 4, 1, stopped.is_set)
    assert next(batches) == [0, 1, 2, 3]
    assert reading.wait(10)
    stopped.set()
    assert list(batches) == []


@pytest.mark.skipif(sys.platform == "win32", reason="pipes of POSIX systems")
@pytest.mark.parametrize("end", ["", "batches.close()", "raise KeyboardInterrupt", "os.close(0)"])
def test_a_process_ends_while_a_source_blocks(end):
    program = f"""
import os, sys
from captioner.prefetch import prefetch
batches = prefetch(iter(lambda: os.read(0, 2), b""), bytes.strip, 4, 2)
print(next(batches), flush=True)
{end}
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdin is not None
    process.stdin.write(b"a\n")
    process.stdin.flush()
    code = process.wait(30)
    out, error = process.communicate()
    assert out == b"[b'a']\n"
    assert (b"KeyboardInterrupt" in error, code) == ((True, -signal.SIGINT) if "Interrupt" in end else (False, 0))


def test_a_process_ends_while_a_read_goes_on():
    program = """
import time
from captioner.prefetch import prefetch
batches = prefetch([0, 0, 3600], time.sleep, 2, 1)
print(next(batches))
raise KeyboardInterrupt
"""
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False, timeout=60)
    assert process.stdout == b"[None, None]\n"
    assert b"KeyboardInterrupt" in process.stderr
