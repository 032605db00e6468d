"""Models to and from their files: self-describing plain data."""

import json
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from captioner.config import ModelConfig
from captioner.config_files import config_from_dict, to_dict
from captioner.errors import CheckpointError, ConfigError
from captioner.files import write_whole
from captioner.model.caption_model import CaptionModel
from captioner.model_files import CARD, CONFIG, TOKENIZER, WEIGHTS, existing_model
from captioner.text import first_line
from captioner.tokenizer import Tokenizer

FORMAT = 1
MODEL_PREFIX = "model."
"""Prefix of the network's weights in a training checkpoint."""
TRAINING_SETTINGS = frozenset({"pretrained", "weights", "train", "dropout", "init", "language"})
"""Keys that early model folders stored too; they are ignored."""


def describe(model: CaptionModel, tokenizer: Tokenizer) -> dict[str, Any]:
    """Everything but the weights, as plain data."""
    try:
        release = version("captioner")
    except PackageNotFoundError:
        release = "unknown"
    return {"format": FORMAT, "captioner": release, "model": to_dict(model.config), "tokenizer": tokenizer.to_str()}


def save_model(folder: Path, model: CaptionModel, tokenizer: Tokenizer, *, card: str, half: bool = False) -> None:
    """Write a model folder, each file as a whole or not at all; `half` stores matrices as float16."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    if half:
        state = {name: tensor.half() if tensor.ndim > 1 else tensor for name, tensor in state.items()}
    about = describe(model, tokenizer)
    about.pop("tokenizer")
    content = {
        WEIGHTS: save(state, metadata={"format": "pt"}),
        TOKENIZER: tokenizer.to_str().encode(),
        CARD: card.encode(),
        CONFIG: (json.dumps(about, indent=2) + "\n").encode(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, each in content.items():
        write_whole(folder / name, each, sync=True)


def load_model(source: Path) -> tuple[CaptionModel, Tokenizer]:
    """The model of a folder, or of a training checkpoint (.ckpt), in evaluation mode.

    Raises CheckpointError for anything missing, damaged, of another program, or newer than this one.
    """
    existing_model(str(source))
    if source.is_dir():
        return _load_folder(source)
    checkpoint = load_training_file(source)
    about = checkpoint["captioner"]
    _check_format(about, source)
    state = {
        name.removeprefix(MODEL_PREFIX): tensor
        for name, tensor in checkpoint["state_dict"].items()
        if name.startswith(MODEL_PREFIX) and isinstance(tensor, Tensor)
    }
    return _build(about, Tokenizer.from_str(str(about.get("tokenizer")), str(source)), state, source)


def load_training_file(path: Path) -> dict[str, Any]:
    """A training checkpoint as plain data. Raises CheckpointError for a damaged one, or one of another program."""
    try:
        _check_archive(path)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(f"{path}: not a complete checkpoint of plain data ({first_line(error)})") from error
    if not isinstance(checkpoint, dict) or "captioner" not in checkpoint or "state_dict" not in checkpoint:
        raise CheckpointError(f"{path}: not a checkpoint of this program; name one that `captioner train` wrote")
    return checkpoint


def _check_archive(path: Path) -> None:
    """Compare every part of a checkpoint with its checksum. Raises ValueError for other bytes, and for an archive that
    would take more memory than its file."""
    with zipfile.ZipFile(path) as archive:
        if sum(part.file_size for part in archive.infolist()) > path.stat().st_size:
            raise ValueError("a compressed archive")
        if (part := archive.testzip()) is not None:
            raise ValueError(f"{part}: other bytes than were written")


def _load_folder(folder: Path) -> tuple[CaptionModel, Tokenizer]:
    try:
        about = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{folder / CONFIG}: not JSON ({error})") from error
    _check_format(about, folder)
    try:
        state = load_file(folder / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{folder / WEIGHTS}: damaged or cut off ({error})") from error
    return _build(about, Tokenizer.load(folder / TOKENIZER), state, folder)


def _check_format(about: Any, source: Path) -> None:
    found = about.get("format") if isinstance(about, dict) else None
    if not isinstance(found, int) or not isinstance(about.get("model"), dict):
        raise CheckpointError(f"{source}: not a model of this program")
    if found > FORMAT:
        newer = f"captioner {about.get('captioner')} in format {found}, this one reads up to {FORMAT}"
        raise CheckpointError(f"{source}: written by {newer}; upgrade captioner")


def _build(
    about: dict[str, Any], tokenizer: Tokenizer, state: dict[str, Tensor], source: Path
) -> tuple[CaptionModel, Tokenizer]:
    for section in about["model"].values():
        for key in TRAINING_SETTINGS if isinstance(section, dict) else ():
            section.pop(key, None)
    try:
        config = config_from_dict(ModelConfig, about["model"], str(source))
        layers = sum(name.startswith("decoder.blocks.") and name.endswith(".cross_norm.weight") for name in state)
        if config.decoder.layers != layers:
            raise ConfigError(f"decoder.layers {config.decoder.layers}, but weights of {layers}")
        with torch.device("meta"):  # nothing is allocated before all shapes are known to fit
            model = CaptionModel(config, vocabulary=len(tokenizer))
        dtypes = {name: tensor.dtype for name, tensor in model.state_dict().items()}
        # float16 becomes the network's float32; a copy, as files are mapped into memory
        state = {name: tensor.to(dtypes.get(name, tensor.dtype), copy=True) for name, tensor in state.items()}
        model.load_state_dict(state, assign=True)
        broken = [name for name, tensor in state.items() if not tensor.isfinite().all()]
        if broken:
            raise ConfigError(f"weights that are not finite: {', '.join(broken)}")
    except (ConfigError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{source}: its weights and its configuration do not fit ({reason})") from error
    return model.eval(), tokenizer
