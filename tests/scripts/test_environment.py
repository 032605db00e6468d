import json
import shlex
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from scripts import environment


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of its own, with an environment of nothing but a stamp."""
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    (tmp_path / "constraints.txt").write_text("torch==2.6.0\n")
    (tmp_path / ".venv").mkdir()
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    stamp = {"fingerprint": environment.fingerprint(), "extras": ["dev"]}
    (tmp_path / ".venv/captioner-environment.json").write_text(json.dumps(stamp))
    return tmp_path


def dry_run(project: Path, *words: str) -> int:
    return environment.main(["--dry-run", "--path", str(project / ".venv"), *words])


@pytest.mark.parametrize("extras", ["", "dev"])
def test_nothing_is_done_twice(project: Path, capsys: pytest.CaptureFixture[str], extras: str) -> None:
    assert dry_run(project, "--extras", extras) == 0
    assert capsys.readouterr().out == f"{project / '.venv'} is up to date\n"


def test_a_new_extra_joins_those_installed(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dry_run(project, "--extras", "heif")
    assert shlex.split(capsys.readouterr().out.splitlines()[-1])[-1] == f"{project}[dev,heif]"


@pytest.mark.parametrize("name", environment.INPUTS)
def test_changed_requirements_are_installed_again(project: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    (project / name).write_text("# changed\n")
    dry_run(project, "--extras", "")
    assert shlex.split(capsys.readouterr().out.splitlines()[-1])[-2:] == ["--editable", str(project)]


@pytest.mark.parametrize("stamp", ["", "[]", '{"extras": []}', "{"])
def test_a_damaged_stamp_counts_as_none(project: Path, stamp: str) -> None:
    path = project / ".venv/captioner-environment.json"
    path.write_text(stamp)
    assert environment.installed(path) is None


def test_only_torch_comes_from_the_other_index(project: Path) -> None:
    create, torch, package = environment.commands(project / ".venv", set(), "https://example.org/cpu")
    assert create[1:] == ["-m", "venv", str(project / ".venv")]
    assert torch[-5:] == ["--no-deps", "--index-url", "https://example.org/cpu", "torch", "torchvision"]
    assert "--index-url" not in package


def test_a_failed_command_leaves_no_stamp(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = project / "file"
    target.write_text("in the way")
    assert environment.main(["--path", str(target / ".venv")]) == 1
    assert "is not complete" in capsys.readouterr().err


def test_an_old_python_is_told_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(environment, "OLDEST", (99, 0))
    assert environment.main([]) == 2
    assert capsys.readouterr().err.endswith("is too old: captioner needs Python 99.0 or newer\n")


def test_tested_versions_lie_in_the_promised_ranges() -> None:
    import tomllib

    pins = dict(
        line.split("==") for line in (environment.ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    )
    project = tomllib.loads((environment.ROOT / "pyproject.toml").read_text())["project"]
    for line in sum(project["optional-dependencies"].values(), project["dependencies"]):
        requirement = Requirement(line)
        name = requirement.name.lower().replace(".", "-").replace("_", "-")
        assert requirement.specifier.contains(pins[name]), line
