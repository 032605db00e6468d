"""Errors that users can act on: each message says what is wrong, where, and what to do."""


class CaptionerError(Exception):
    """Base class of the package's errors; `code` is stable, the message is for people."""

    code = "error"
    exit_code = 1

    def __init__(self, message: str, code: str | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code


class ImageError(CaptionerError):
    """An image that cannot be used.

    Codes: `empty`, `truncated`, `corrupt`, `too_many_pixels`, `not_an_image`, `needs_extra`, `unreadable`,
    `out_of_view` (the model's fit cuts off the requested region), `decoder_crash`, `timeout`.
    """

    code = "corrupt"


class AnnotationError(CaptionerError):
    """Captions or annotation files that cannot be used."""

    code = "annotations"
    exit_code = 2


class ConfigError(CaptionerError):
    """Configuration keys or flags that are wrong, or do not go together."""

    code = "config"
    exit_code = 2


class InputError(CaptionerError):
    """No input was found where the user pointed."""

    code = "no_input"
    exit_code = 3


class CheckpointError(CaptionerError):
    """A model folder or checkpoint that cannot be loaded."""

    code = "checkpoint"
    exit_code = 4


class ResourceError(CaptionerError):
    """The machine lacks something: memory, disk space, a device, an optional extra."""

    code = "resource"
    exit_code = 5


class TrainingError(CaptionerError):
    """Training that cannot continue, for instance after non-finite losses."""

    code = "training"


class Interrupted(CaptionerError):
    """Work that a signal ended, after everything was saved; an instance's exit code is 128 + the signal's number."""

    code = "interrupted"
    exit_code = 130
