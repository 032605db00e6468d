"""The public names, and that asking for none of them loads nothing."""

import importlib.metadata
import subprocess
import sys

import pytest

import captioner

NAMES = [
    "AttentionTrace",
    "BeamSearch",
    "Caption",
    "Captioner",
    "CaptionerError",
    "Greedy",
    "Sampling",
    "__version__",
    "load_config",
]


def test_the_public_names_are_these() -> None:
    assert captioner.__all__ == NAMES
    assert sorted(captioner.__all__) == captioner.__all__
    assert set(NAMES) <= set(dir(captioner))


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_is_found(name: str) -> None:
    value = getattr(captioner, name)
    assert getattr(value, "__name__", name) == name
    assert vars(captioner)[name] is value  # asked for once


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'captioner' has no attribute 'Captionr'"):
        _ = captioner.Captionr


def test_importing_the_package_loads_no_torch() -> None:
    code = "import sys, captioner; dir(captioner); print(sorted({'torch', 'timm', 'PIL', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_version_is_the_installed_one_or_says_that_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    monkeypatch.delitem(vars(captioner), "__version__", raising=False)
    assert captioner.__version__ == "0+unknown"
    monkeypatch.setattr(importlib.metadata, "version", lambda name: f"{name} 9.8.7")
    monkeypatch.delitem(vars(captioner), "__version__")
    assert captioner.__version__ == "captioner 9.8.7"
    monkeypatch.delitem(vars(captioner), "__version__")
