"""The device that a model runs on, and batches that do not fit into its memory."""

import logging

import torch

from captioner.errors import ResourceError
from captioner.text import first_line

log = logging.getLogger(__name__)

OUT_OF_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "bad_alloc",
    "alloc_failed",
    "could not create a primitive",  # oneDNN, which names no cause
)
"""Parts of the messages with which PyTorch and its libraries report that memory ran out."""


def halve_batch(images: int, error: Exception) -> int:
    """Half of a batch that ran out of memory. Raises any other error again, and ResourceError for a single image."""
    recognized = isinstance(error, MemoryError | torch.OutOfMemoryError)
    if not recognized and not any(sign in str(error).lower() for sign in OUT_OF_MEMORY):
        raise error
    if images == 1:
        raise ResourceError(
            f"out of memory for a single image ({first_line(error)}); close other programs, or take a smaller model"
        ) from error
    log.warning("out of memory for %d images at once; continuing with %d", images, images // 2)
    return images // 2


def find_device(name: str) -> str:
    """The device of a name; `auto` is an accelerator if there is one. Raises ResourceError."""
    if name == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ResourceError(f"device {name!r}: not available here ({first_line(error)}); use auto or cpu") from error
    return name
