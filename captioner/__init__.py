"""Image captioning that shows where each word looked."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from captioner.caption import Caption
    from captioner.config_files import load_config
    from captioner.errors import CaptionerError
    from captioner.generation import BeamSearch, Greedy, Sampling
    from captioner.inspection.trace import AttentionTrace
    from captioner.pipeline import Captioner

    __version__: str

__all__ = [
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

# Imported when first asked for (PEP 562): the command line answers --help without torch.
_HOMES = {
    "AttentionTrace": "captioner.inspection.trace",
    "BeamSearch": "captioner.generation",
    "Caption": "captioner.caption",
    "Captioner": "captioner.pipeline",
    "CaptionerError": "captioner.errors",
    "Greedy": "captioner.generation",
    "Sampling": "captioner.generation",
    "load_config": "captioner.config_files",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value: Any = _version()
    elif name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("captioner")
    except PackageNotFoundError:
        return "0+unknown"  # run from a checkout that is not installed
