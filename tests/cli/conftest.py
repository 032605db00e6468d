"""Processes of the command line, which has loaded PyTorch already."""

import subprocess
from collections.abc import Iterator

import pytest

from tests.processes import Launch, fork_server, launcher


@pytest.fixture(scope="session")
def server() -> Iterator["subprocess.Popen[bytes]"]:
    with fork_server(["captioner.pipeline", "tqdm"]) as process:
        yield process


@pytest.fixture
def launch(server: "subprocess.Popen[bytes]", tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launch]:
    with launcher(server, lambda: tmp_path_factory.mktemp("streams")) as start:
        yield start
