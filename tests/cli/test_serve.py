"""captioner serve: flags, exit codes, and signals, with real processes."""

import os
import re
import signal
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from captioner.cli import main
from tests.processes import Launch, Launched
from tests.serving.conftest import SLOW, photo, save_tiny_model, wait_until


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("serve"))


def address(process: Launched) -> str:
    """The URL of a server once it is ready."""
    process.wait_until(lambda: "serving at" in process.read(2))
    found = re.search(r"http://\S+:\d+", process.read(2))
    assert found

    def ready() -> bool:
        try:
            return httpx.get(f"{found[0]}/readyz", trust_env=False, timeout=60).status_code == 200
        except httpx.TransportError:
            return False

    process.wait_until(ready)
    return found[0]


def accepted(url: str) -> float:
    text = httpx.get(f"{url}/metrics", trust_env=False, timeout=60).text
    return float(
        next(line.split()[1] for line in text.splitlines() if line.startswith("captioner_photos_in_progress "))
    )


@pytest.mark.slow
def test_sigterm_finishes_accepted_requests_and_exits_with_0(launch: Launch, model: str) -> None:
    process = launch("serve", "--port", 0, "--model", model, "--device", "cpu")
    url = address(process)
    with ThreadPoolExecutor(1) as clients, httpx.Client(trust_env=False, timeout=60) as client:
        files = {"files": ("a.png", photo(1))}
        slow = clients.submit(client.post, f"{url}/v1/caption", params=SLOW, files=files)
        wait_until(lambda: accepted(url) == 1)
        os.kill(process.pid, signal.SIGTERM)
        assert slow.result().status_code == 200
        assert slow.result().json()["results"][0]["caption"]
    assert process.wait() == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/healthz", trust_env=False)
    assert process.read(1) == ""
    assert len(process.read(2).splitlines()) == 1


@pytest.mark.slow
def test_sigint_ends_as_for_every_verb(launch: Launch, model: str) -> None:
    process = launch("serve", "--port", 0, "--model", model, "--device", "cpu")
    address(process)
    os.kill(process.pid, signal.SIGINT)
    assert process.wait() == 130
    assert process.read(2).splitlines()[-1] == "captioner: error: interrupted"


@pytest.mark.slow
def test_a_model_that_cannot_be_loaded_ends_the_server(launch: Launch, tmp_path: Path) -> None:
    process = launch("serve", "--port", 0, "--model", tmp_path / "nowhere")
    assert process.wait() == 4
    assert "nowhere" in process.read(2).splitlines()[-1]


@pytest.mark.slow
def test_a_token_opens_the_server_to_other_machines(launch: Launch, model: str, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("a-token-of-many-letters\n")
    process = launch("serve", "--host", "0.0.0.0", "--port", 0, "--model", model, "--token-file", file)
    url = address(process).replace("0.0.0.0", "127.0.0.1")
    assert httpx.get(f"{url}/v1/model", trust_env=False).status_code == 401
    headers = {"Authorization": "Bearer a-token-of-many-letters"}
    assert httpx.get(f"{url}/v1/model", headers=headers, trust_env=False).status_code == 200
    assert "a-token" not in process.read(2)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "photos.example"])
def test_without_a_token_only_loopback_is_bound(host: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--host", host]) == 2
    assert "--token-file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--root", "nowhere"], "--root nowhere"),
        (["--root", ".", "--host", "0.0.0.0"], "--token-file"),
        (["--root", ".", "--allow-host", "*"], "--token-file"),
    ],
)
def test_a_folder_is_not_open_to_others(flags: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--port", "0", *flags]) == 2
    assert named in capsys.readouterr().err


@pytest.mark.parametrize("content", [None, "", "short", "two words of some length", "ümlaut-ümlaut-ümlaut"])
def test_a_token_file_without_a_good_token_is_refused(
    content: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "token"
    if content is not None:
        file.write_text(content, encoding="utf-8")
    assert main(["serve", "--token-file", str(file)]) == 2
    error = capsys.readouterr().err
    assert f"--token-file {file}: " in error
    assert not content or content not in error


def test_a_port_in_use_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["serve", "--port", str(taken.getsockname()[1])]) == 2
    assert "choose another address" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags", [["--port", "65536"], ["--workers", "0"], ["--queue", "0"], ["--timeout", "0"], ["--max-bytes", "-1"]]
)
def test_numbers_out_of_range_are_usage_errors(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", *flags]) == 2
    assert flags[0] in capsys.readouterr().err


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in [each for each in sys.modules if each.startswith("captioner.serving")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert main(["serve"]) == 5
    assert 'pip install "captioner[serve]"' in capsys.readouterr().err
