"""The Dockerfile and docs/deploy.md: what can be tested without Docker."""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from captioner.cli import serve
from tests.serving.conftest import photo

ROOT = Path(__file__).resolve().parents[2]
LINES = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
PAGE = (ROOT / "docs/deploy.md").read_text(encoding="utf-8")
NOBODY = 65534
TOKEN = "a-token-of-many-letters"


def instructions(name: str) -> list[str]:
    return [line.removeprefix(f"{name} ") for line in LINES if line.startswith(f"{name} ")]


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@pytest.fixture(scope="module")
def installed(folder: Path) -> Path:
    """The wheel of the first stage, installed into a folder of its own without its dependencies."""
    offline = ["--no-deps", "--no-index", "--quiet", "--disable-pip-version-check"]
    pip = [sys.executable, "-m", "pip"]
    source = folder / "source"
    source.mkdir()
    for name in instructions("COPY")[0].split()[:-1] + instructions("COPY")[1].split()[:-1]:
        subprocess.run(["cp", "-r", ROOT / name, source], check=True)
    wheels = folder / "wheels"
    build = [*pip, "wheel", *offline, "--no-build-isolation", "--wheel-dir", wheels, "."]
    subprocess.run(build, cwd=source, check=True)
    [wheel] = wheels.glob("captioner-*.whl")
    subprocess.run([*pip, "install", *offline, "--no-compile", "--target", folder / "installed", wheel], check=True)
    return folder / "installed"


def test_the_image_runs_as_an_ordinary_user() -> None:
    [user] = instructions("USER")
    assert user == f"{NOBODY}:{NOBODY}"
    assert not [line for line in LINES[LINES.index(f"USER {user}") :] if line.startswith(("RUN", "COPY", "ADD"))]


def test_what_is_copied_is_in_the_context() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    sources = [each for line in instructions("COPY") if "--from" not in line for each in line.split()[:-1]]
    for source in sources:
        assert (ROOT / source).exists()
        assert f"!{source}" in ignored
    assert sorted(f"!{source}" for source in sources) == sorted(line for line in ignored if line.startswith("!"))


def test_its_command_is_one_that_the_command_line_takes() -> None:
    verb, *flags = json.loads(instructions("CMD")[0])
    parser = argparse.ArgumentParser()
    serve.add_arguments(parser)
    arguments = parser.parse_args(flags)
    assert (verb, arguments.host) == ("serve", "0.0.0.0")
    assert instructions("EXPOSE") == [str(arguments.port)]


def test_the_page_names_every_flag_and_code_that_is_there() -> None:
    parser = argparse.ArgumentParser()
    serve.add_arguments(parser)
    commands = re.findall(r"captioner serve([^`\n#]*)", PAGE)
    for command in commands:
        parser.parse_args(command.replace("--model /model", "--model bundled").split())
    for flag in re.findall(r"`(--[a-z-]+)`", PAGE):
        assert flag in parser.format_help()
    source = "".join(path.read_text() for path in (ROOT / "captioner/serving").glob("*.py"))
    codes = re.findall(r'Problem\([a-z0-9]+, "(\w+)"', source) + re.findall(
        r'^CODE_OF_STATUS.*?"(\w+)"', source, re.MULTILINE
    )
    assert len(codes) > 8
    for code in codes:
        assert f"`{code}`" in PAGE


READ_ONLY = ["unshare", "--mount", "sh", "-c"]
READ_ONLY += ['mount -t tmpfs tmpfs "$TMPDIR" && mount -o remount,bind,ro / && exec "$@"', "sh"]
"""A shell command that runs another with everything read-only but the temporary folder."""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounts file systems")
def test_the_wheel_serves_with_everything_read_only(installed: Path, folder: Path) -> None:
    token, spool = folder / "token", folder / "spool"
    token.write_text(TOKEN)
    spool.mkdir()
    command = json.loads(instructions("ENTRYPOINT")[0]) + json.loads(instructions("CMD")[0])
    command[command.index("/run/secrets/token")] = str(token)
    environment = os.environ | {"PYTHONPATH": str(installed), "HOME": "/nonexistent", "TMPDIR": str(spool)}
    environment |= {"PYTHONDONTWRITEBYTECODE": "1"}
    with subprocess.Popen(
        [*READ_ONLY, sys.executable, "-m", *command, "--port", "0"],
        cwd="/",
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stderr is not None
            port = process.stderr.readline().partition(",")[0].rpartition(":")[2]
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60) as client:
                while client.get("/readyz").status_code != 200:
                    time.sleep(0.2)
                health = json.loads(instructions("HEALTHCHECK")[0].partition("CMD ")[2])
                assert health[:2] == ["python", "-c"]
                exec(health[2].replace("8000", port).replace("timeout=2", "timeout=60"), {})
                assert "<title>captioner</title>" in client.get("/").text
                headers = {"Authorization": f"Bearer {TOKEN}"}
                assert client.get("/v1/model", headers=headers).json()["name"] == "bundled"
                for size in ((300, 200), (1000, 1000)):  # the second is spooled to a file
                    files = {"files": ("a.bmp", photo(1, *size, "BMP"))}
                    assert client.post("/v1/caption", files=files).status_code == 401
                    assert client.post("/v1/caption", files=files, headers=headers).status_code == 200
        finally:
            process.terminate()
        assert process.wait(60) == 0
    assert not list(spool.iterdir())
