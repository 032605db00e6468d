"""Image captioning that shows where each word looked."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from captioner.caption import Caption as Caption
    from captioner.config_files import load_config as load_config
    from captioner.errors import CaptionerError as CaptionerError
    from captioner.generation import BeamSearch as BeamSearch
    from captioner.generation import Greedy as Greedy
    from captioner.generation import Sampling as Sampling
    from captioner.inspection.trace import AttentionTrace as AttentionTrace
    from captioner.pipeline import Captioner as Captioner

    __version__: str

# Imported on first use (PEP 562), so that the command line answers --help without torch.
_MODULES = {
    "AttentionTrace": "captioner.inspection.trace",
    "BeamSearch": "captioner.generation",
    "Caption": "captioner.caption",
    "Captioner": "captioner.pipeline",
    "CaptionerError": "captioner.errors",
    "Greedy": "captioner.generation",
    "Sampling": "captioner.generation",
    "load_config": "captioner.config_files",
}
__all__ = sorted((*_MODULES, "__version__"))


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = _version() if name == "__version__" else getattr(importlib.import_module(_MODULES[name]), name)
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
