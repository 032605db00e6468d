"""Every error carries a stable code and the exit code of the shell contract."""

import pytest

from captioner import errors
from captioner.errors import CaptionerError

CODES = {
    "CaptionerError": ("error", 1),
    "ImageError": ("corrupt", 1),
    "AnnotationError": ("annotations", 2),
    "ConfigError": ("config", 2),
    "InputError": ("no_input", 3),
    "CheckpointError": ("checkpoint", 4),
    "ResourceError": ("resource", 5),
    "TrainingError": ("training", 1),
    "Interrupted": ("interrupted", 130),
}


def test_every_error_has_its_codes() -> None:
    classes = [each for each in vars(errors).values() if isinstance(each, type)]
    assert all(issubclass(each, CaptionerError) for each in classes)
    assert {each.__name__: (each.code, each.exit_code) for each in classes} == CODES


@pytest.mark.parametrize("name", CODES)
def test_a_code_given_is_the_instances_own(name: str) -> None:
    kind = getattr(errors, name)
    error = kind("what, where, what to do", "special")
    assert (str(error), error.code, kind("x").code) == ("what, where, what to do", "special", CODES[name][0])
