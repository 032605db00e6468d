"""Several devices of one machine, here twice the CPU: the records of one device, and a process that dies."""

import multiprocessing
import threading
import time
from pathlib import Path

import pytest

from captioner.cli import main
from captioner.cli.flags import devices_of


@pytest.mark.parametrize(
    ("names", "devices"),
    [
        ("auto", ("auto",)),
        ("cuda:1", ("cuda:1",)),
        ("cuda:0,1,3", ("cuda:0", "cuda:1", "cuda:3")),
        ("cuda:0,cuda:2", ("cuda:0", "cuda:2")),
        ("cpu,cpu", ("cpu", "cpu")),
    ],
)
def test_lists_of_devices(names, devices):
    assert devices_of(names) == devices


@pytest.mark.slow
def test_records_are_those_of_one_device_also_when_a_process_dies(words, capsys):
    assert main([*words, "-o", "one.jsonl"]) == 1
    several = [*words, "--device", "cpu,cpu", "-o", "several.jsonl"]

    def kill_a_process():
        while not (processes := multiprocessing.active_children()):
            time.sleep(0.01)
        processes[0].kill()

    thread = threading.Thread(target=kill_a_process, daemon=True)
    thread.start()
    capsys.readouterr()
    assert main(several) == 5
    thread.join()
    assert "the process of device cpu died" in capsys.readouterr().err
    assert main([*several, "--resume"]) == 1
    assert Path("several.jsonl").read_text() == Path("one.jsonl").read_text()
    assert not multiprocessing.active_children()
