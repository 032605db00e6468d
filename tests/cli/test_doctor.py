"""`captioner doctor`: what it finds on this machine, and what it says where something is broken."""

import json

import pytest

from captioner.cli import doctor, main


def test_all_is_well_here(capsys):
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert not [line for line in lines if line.startswith("FAIL")]
    for what in ("python", "torch", "cpu", "image decoders", "extra heif", "this folder", "bundled model"):
        assert any(line.split(maxsplit=1)[1].startswith(f"{what}: ") for line in lines), what


def test_findings_as_json(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "_bundled_model", lambda: iter(()))
    assert main(["doctor", "--json"]) == 0
    assert {"state", "what", "message"} == set(json.loads(capsys.readouterr().out)[0])


@pytest.mark.parametrize(
    ("known", "told"),
    [('{"caption": "another one", "log_prob": -1.0}', "as it should"), ("", "JSONDecodeError")],
)
def test_a_model_that_says_something_else_fails(capsys, monkeypatch, tmp_path, known, told):
    (tmp_path / "known.json").write_text(known)
    monkeypatch.setattr(doctor, "KNOWN", tmp_path / "known.json")
    assert main(["doctor"]) == 1
    failed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAIL")]
    assert len(failed) == 1
    assert told in failed[0]


def test_a_folder_that_cannot_be_written_and_a_missing_package_fail(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "PACKAGES", ("captioner", "no-such-package"))
    monkeypatch.setattr(doctor.tempfile, "gettempdir", lambda: "/proc")
    monkeypatch.setattr(doctor, "_bundled_model", lambda: iter(()))
    assert main(["doctor"]) == 1
    failed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAIL")]
    assert ["no-such-package" in line or "/proc" in line for line in failed] == [True, True]
