"""Processes of the command line, forked from one that has imported slow libraries already."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

ROOT = Path(__file__).resolve().parent.parent
SERVER = """
import gc, importlib, json, os, sys
from captioner.cli import main
for name in sys.argv[1:]:
    importlib.import_module(name)
gc.freeze()

def ranks(arguments, world, port):
    processes = []
    for rank in range(world):
        if (process := os.fork()) == 0:
            names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "GROUP_RANK": 0}
            names |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
            os.environ.update({name: str(value) for name, value in names.items()})
            sys.exit(main(arguments))
        processes.append(process)
    return [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes][0]

for line in sys.stdin:
    arguments, folder, streams, limit, world, port = json.loads(line)
    child = os.fork()
    if child == 0:
        os.setsid()
        os.chdir(folder)
        for number, name in enumerate(streams):
            os.dup2(os.open(name, os.O_CREAT | os.O_WRONLY if number else os.O_RDONLY), number)
        if limit:
            import resource
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        sys.exit(ranks(arguments, world, port) if world else main(arguments))
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
SECONDS = 120
"""After which a process that neither ends nor does what a test waits for is killed."""


class Launched:
    """A running process in a session of its own; its standard input is a pipe that stays open."""

    def __init__(
        self, server: "subprocess.Popen[bytes]", folder: Path, arguments: list[str], limit: int, world: int
    ) -> None:
        self.server, self.streams = server, [str(folder / name) for name in ("stdin", "stdout", "stderr")]
        os.mkfifo(self.streams[0])
        self.stdin = os.open(self.streams[0], os.O_RDWR)
        self.code: int | None = None
        assert server.stdin is not None
        order = [arguments, os.getcwd(), self.streams, limit, world, free_port()]
        server.stdin.write(json.dumps(order).encode() + b"\n")
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

    def poll(self) -> int | None:
        """The exit code, once the process has ended."""
        if self.code is None and select.select([self.server.stdout], [], [], 0)[0]:
            self.code = self._answer()
        return self.code

    def wait(self) -> int:
        if self.code is None:
            alarm = threading.Timer(SECONDS, os.kill, (self.pid, signal.SIGKILL))
            alarm.start()
            self.code = self._answer()
            alarm.cancel()
        return self.code

    def close(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
            self.wait()
        os.close(self.stdin)

    def _answer(self) -> int:
        assert self.server.stdout is not None
        return int(self.server.stdout.readline())  # of an unbuffered file, so that `poll` sees the next line


Launch: TypeAlias = Callable[..., Launched]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


@contextmanager
def fork_server(modules: Sequence[str]) -> Iterator["subprocess.Popen[bytes]"]:
    """A process that has imported modules, and forks one for each command."""
    # What a shell starts in the background ignores SIGINT, and hands that on to its children.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", SERVER, *modules]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, env=environment
    ) as process:
        signal.signal(signal.SIGINT, before)
        yield process


@contextmanager
def launcher(server: "subprocess.Popen[bytes]", folder: Callable[[], Path]) -> Iterator[Launch]:
    """Start commands in the working folder of a test; `limit` is the most bytes a file may have.

    With `world`, so many processes run the command, in the environment of torchrun; the exit code is the first one's.
    """
    launched: list[Launched] = []

    def start(*words: object, limit: int = 0, world: int = 0) -> Launched:
        launched.append(Launched(server, folder(), [*map(str, words)], limit, world))
        return launched[-1]

    yield start
    for process in launched:
        process.close()
