"""SECURITY.md: the test that holds each promise exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
PROMISES = re.findall(r"^\| (?!promise)(.+) \| `(tests/\S+)::(\w+)` \|$", PAGE, re.MULTILINE)


def test_there_are_promises() -> None:
    assert len(PROMISES) == PAGE.count("::")


@pytest.mark.parametrize(("promise", "file", "name"), PROMISES)
def test_a_promise_has_its_test(promise: str, file: str, name: str) -> None:
    assert re.search(rf"^def {name}\(", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE), promise
