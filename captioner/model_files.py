"""The files of a model, without loading torch: config.json, model.safetensors, tokenizer.json, README.md."""

from importlib import resources
from pathlib import Path

from captioner.errors import CheckpointError, ConfigError

CONFIG, WEIGHTS, TOKENIZER, CARD = "config.json", "model.safetensors", "tokenizer.json", "README.md"
BUNDLED = "bundled"
MODEL, CHECKPOINTS = "model", "checkpoints"
"""Folders of a training run."""


def model_folder(model: str | Path) -> Path:
    """The folder of the bundled model by its name; anything else is a path."""
    if str(model) == BUNDLED and not Path(BUNDLED).exists():
        return Path(str(resources.files("captioner") / BUNDLED))
    return Path(model)


def check_new_run(folder: Path) -> None:
    """Raise ConfigError for a folder that already holds a training run."""
    if any((folder / CHECKPOINTS).glob("*.ckpt")):
        raise ConfigError(f"{folder}: already holds a run; continue with --resume auto, or name another folder with -o")


def existing_model(model: str) -> str:
    """The same name, as a type for argparse.

    Raises CheckpointError unless it is a file, as a training checkpoint is, or a folder with all files of a model.
    """
    source = model_folder(model)
    if source.is_file():
        return model
    if not source.is_dir():
        raise CheckpointError(f"{source}: no such model; name a model folder, a .ckpt file, or bundled")
    for name in (CONFIG, WEIGHTS, TOKENIZER):
        if not (source / name).is_file():
            run = f" (the model of this run is {source / MODEL})" if (source / MODEL / CONFIG).is_file() else ""
            parts = f"{CONFIG}, {WEIGHTS}, {TOKENIZER}"
            raise CheckpointError(f"{source}: {name} is missing; a model folder holds {parts}{run}")
    return model
