"""Processes of the command line, forked from one that has loaded PyTorch already."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
SERVER = """
import gc, json, os, sys
import captioner.pipeline, tqdm
from captioner.cli import main
gc.freeze()
for line in sys.stdin:
    arguments, folder, streams, limit = json.loads(line)
    child = os.fork()
    if child == 0:
        os.chdir(folder)
        for number, name in enumerate(streams):
            os.dup2(os.open(name, os.O_CREAT | os.O_WRONLY if number else os.O_RDONLY), number)
        if limit:
            import resource
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        sys.exit(main(arguments))
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
SECONDS = 60
"""After which a process that neither ends nor does what a test waits for is killed."""


class Launched:
    """A running process; its standard input is a pipe that stays open."""

    def __init__(self, server: "subprocess.Popen[str]", streams: list[str], arguments: list[str], limit: int) -> None:
        os.mkfifo(streams[0])
        self.server, self.streams = server, streams
        self.stdin = os.open(streams[0], os.O_RDWR)
        self.code: int | None = None
        assert server.stdin is not None
        print(json.dumps([arguments, os.getcwd(), streams, limit]), file=server.stdin, flush=True)
        self.pid = self._answer()

    def write(self, text: str) -> None:
        os.write(self.stdin, text.encode())

    def read(self, stream: int) -> str:
        path = Path(self.streams[stream])
        return path.read_text(encoding="utf-8") if path.exists() else ""

    def wait_until(self, condition: Callable[[], bool]) -> None:
        limit = time.monotonic() + SECONDS
        while not condition():
            assert time.monotonic() < limit, self.read(2)
            time.sleep(0.01)

    def wait(self) -> int:
        if self.code is None:
            alarm = threading.Timer(SECONDS, os.kill, (self.pid, signal.SIGKILL))
            alarm.start()
            self.code = self._answer()
            alarm.cancel()
        return self.code

    def close(self) -> None:
        if self.code is None:
            os.kill(self.pid, signal.SIGKILL)
            self.wait()
        os.close(self.stdin)

    def _answer(self) -> int:
        assert self.server.stdout is not None
        return int(self.server.stdout.readline())


@pytest.fixture(scope="session")
def server() -> Iterator["subprocess.Popen[str]"]:
    # What a shell starts in the background ignores SIGINT, and hands that on to its children.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", SERVER]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        signal.signal(signal.SIGINT, before)
        yield process


@pytest.fixture
def launch(
    server: "subprocess.Popen[str]", tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Launched]]:
    """Start the command line in the working folder of the test; `limit` is the most bytes a file may have."""
    launched: list[Launched] = []

    def start(*words: object, limit: int = 0) -> Launched:
        folder = tmp_path_factory.mktemp("streams")
        streams = [str(folder / name) for name in ("stdin", "stdout", "stderr")]
        launched.append(Launched(server, streams, [*map(str, words)], limit))
        return launched[-1]

    yield start
    for process in launched:
        process.close()
