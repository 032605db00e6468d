import shutil
from pathlib import Path

import pytest

from scripts import check


def test_every_step_finds_its_program(tmp_path: Path) -> None:
    for step in check.STEPS:
        program, *words = check.command(step, str(tmp_path))
        assert shutil.which(program)
        assert check.SCRATCH not in words


@pytest.mark.parametrize(("code", "outcome"), [(0, "ok"), (3, "FAILED")])
def test_a_failing_step_fails_the_check(
    code: int, outcome: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(check.STEPS, "lint", ["python", "-c", f"raise SystemExit({code})"])
    monkeypatch.setitem(check.STEPS, "types", ["python", "-c", "print('still run')"])
    assert check.main(["lint", "types"]) == min(code, 1)
    printed = capfd.readouterr()
    assert f"== lint: {outcome}" in printed.out
    assert "still run" in printed.out
    assert printed.err == ("check failed: lint\n" if code else "")


def test_an_unknown_step_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        check.main(["typos"])
    assert "no such step: typos (there are format, lint" in capsys.readouterr().err


def test_without_an_environment_it_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(check, "VENV", tmp_path)
    assert check.main(["lint"]) == 2
    assert capsys.readouterr().err == f"{tmp_path / 'ruff'} is missing: run scripts/environment.py (or make) first\n"
