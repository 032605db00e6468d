"""Ray on this machine: the records of the local engine, also where an actor dies."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from captioner.cli import main

pytest.importorskip("ray")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the actor's process in /proc"),
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::ResourceWarning", "ignore::DeprecationWarning"),
]


def kill_an_actor(killed):
    """Kill the first process that captions, once."""
    while not killed:
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                title = (folder / "cmdline").read_bytes()
            except OSError:
                continue
            if title.startswith(b"ray::CaptionActor.caption"):
                os.kill(int(folder.name), signal.SIGKILL)
                killed.append(folder.name)
                return
        time.sleep(0.01)


def test_records_are_those_of_the_local_engine(words):
    """Of photos and of files that fail, with relative paths; an actor is killed in the middle."""
    import ray

    assert main([*words, "-o", "local.jsonl"]) == 1
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    killed = []
    try:
        thread = threading.Thread(target=kill_an_actor, args=(killed,), daemon=True)
        thread.start()
        assert main([*words, "--engine", "ray", "-o", "ray.jsonl"]) == 1
    finally:
        ray.shutdown()
    assert len(killed) == 1
    assert Path("ray.jsonl").read_text() == Path("local.jsonl").read_text()
    assert len(Path("ray.jsonl").read_text().splitlines()) == 20
