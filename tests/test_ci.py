"""The CI workflow: it runs on every system what `make test` runs, and each of its commands exists."""

import re
import shlex
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from captioner.cli import VERBS
from scripts import check, environment

ROOT = Path(__file__).resolve().parent.parent
JOBS = YAML(typ="safe").load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))["jobs"]
COMMANDS = [step["run"] for job in JOBS.values() for step in job["steps"] if "run" in step]
PACKAGES = ("pip", "build", "twine", "venv")
"""Modules that a runner has, or that the workflow installs."""


def test_every_system_and_the_oldest_and_newest_python_are_tested() -> None:
    matrix = JOBS["test"]["strategy"]["matrix"]
    assert [name.partition("-")[0] for name in matrix["os"]] == ["ubuntu", "macos", "windows"]
    oldest, newest = matrix["python"]
    assert tuple(map(int, oldest.split("."))) == environment.OLDEST < tuple(map(int, newest.split(".")))


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_exists(command: str) -> None:
    program, *words = shlex.split(re.sub(r"\$\{\{ .*? \}\}", "value", command))
    name = Path(program).name
    if name == "captioner":
        assert words[0] in VERBS
    elif words[0] == "-m":
        assert (name, words[1] in PACKAGES) == ("python", True)
    else:
        assert name == "python"
        assert (ROOT / words[0]).is_file()


def test_the_tests_are_those_of_make_test() -> None:
    recipe = re.search(r"^test:.*\n\t\$\(RUN\) (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert recipe is not None
    assert f"python {recipe[1]}" in COMMANDS
    assert set(recipe[1].split()[1:]) <= set(check.STEPS)


def test_an_empty_index_is_none(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """As for a repository without the variable."""
    assert environment.main(["--dry-run", "--path", str(tmp_path), "--torch-index", ""]) == 0
    assert "--index-url" not in capsys.readouterr().out
