"""The files of a model, without loading torch: config.json, model.safetensors, tokenizer.json, README.md."""

from importlib import resources
from pathlib import Path

from captioner.errors import CheckpointError

CONFIG, WEIGHTS, TOKENIZER, CARD = "config.json", "model.safetensors", "tokenizer.json", "README.md"
BUNDLED = "bundled"
MODEL = "model"
"""The model's folder in a training run."""


def model_folder(model: str | Path) -> Path:
    """The folder of the bundled model by its name; anything else is a path."""
    if str(model) == BUNDLED and not Path(BUNDLED).exists():
        return Path(str(resources.files("captioner") / BUNDLED))
    return Path(model)


def existing_model(model: str) -> str:
    """The same name, as a type for argparse.

    Raises CheckpointError unless it is a file, as a training checkpoint is, or a folder with all files of a model.
    """
    source = model_folder(model)
    if source.is_file():
        return model
    if not source.is_dir():
        raise CheckpointError(f"{source}: no such model; name a model folder or a .ckpt file")
    for name in (CONFIG, WEIGHTS, TOKENIZER):
        if not (source / name).is_file():
            run = f" (the model of this run is {source / MODEL})" if (source / MODEL / CONFIG).is_file() else ""
            parts = f"{CONFIG}, {WEIGHTS}, {TOKENIZER}"
            raise CheckpointError(f"{source}: {name} is missing; a model folder holds {parts}{run}")
    return model
