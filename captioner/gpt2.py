"""GPT-2's weights for the decoder, whose blocks are GPT-2's with cross-attention."""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from captioner.config import DecoderConfig
from captioner.errors import CheckpointError
from captioner.model.decoder import READS_THE_IMAGE, TextDecoder
from captioner.tokenizer import Tokenizer

SHAPE = {"n_embd": 768, "n_layer": 12, "n_head": 12, "n_inner": None, "n_positions": 1024}
"""GPT-2's values of keys that its config may leave out."""
FIXED = {
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "tie_word_embeddings": True,
}
"""The only values, also the defaults, that the decoder implements."""
CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
NAMES = {
    r"wte\.weight": "token_embedding.weight",
    r"wpe\.weight": "position_embedding.weight",
    r"ln_f\.(\w+)": r"final_norm.\1",
    r"h\.(\d+)\.ln_1\.(\w+)": r"blocks.\1.self_norm.\2",
    r"h\.(\d+)\.ln_cross_attn\.(\w+)": r"blocks.\1.cross_norm.\2",
    r"h\.(\d+)\.ln_2\.(\w+)": r"blocks.\1.feed_norm.\2",
    r"h\.(\d+)\.attn\.c_attn\.(\w+)": r"blocks.\1.self_attention.query_key_value.\2",
    r"h\.(\d+)\.attn\.c_proj\.(\w+)": r"blocks.\1.self_attention.output.\2",
    r"h\.(\d+)\.crossattention\.q_attn\.(\w+)": r"blocks.\1.cross_attention.query.\2",
    r"h\.(\d+)\.crossattention\.c_attn\.(\w+)": r"blocks.\1.cross_attention.key_value.\2",
    r"h\.(\d+)\.crossattention\.c_proj\.(\w+)": r"blocks.\1.cross_attention.output.\2",
    r"h\.(\d+)\.mlp\.c_fc\.(\w+)": r"blocks.\1.feed_forward.0.\2",
    r"h\.(\d+)\.mlp\.c_proj\.(\w+)": r"blocks.\1.feed_forward.2.\2",
}
"""Name of a weight in GPT-2 -> in the decoder."""


def language_decoder(config: DecoderConfig, folder: Path) -> tuple[DecoderConfig, dict[str, Tensor], Tokenizer]:
    """The config of a decoder with the shape of the GPT-2 in a folder, its weights without cross-attention, and its
    tokenizer.

    The folder is a download of GPT-2 or DistilGPT-2, or written by transformers' `save_pretrained`. Positions beyond
    `config.max_length` are left out. Raises CheckpointError if the folder holds anything else.
    """
    try:
        about = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        state = load_file(folder / WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(
            f"{folder}: not a complete GPT-2 ({error}); a folder with {CONFIG}, {WEIGHTS} and {TOKENIZER} is needed"
        ) from error
    problems = departures(about) if isinstance(about, dict) else [f"{CONFIG} that is no mapping"]
    if problems:
        raise CheckpointError(f"{folder}: cannot initialize from it: {'; '.join(problems)}")
    shape, tokenizer = shaped(config, about), Tokenizer.load(folder / TOKENIZER)
    theirs = decoder_weights({name.removeprefix("transformer."): value for name, value in state.items()})
    if "position_embedding.weight" in theirs:
        theirs["position_embedding.weight"] = theirs["position_embedding.weight"][: shape.max_length].clone()
    with torch.device("meta"):  # only names and shapes are needed
        expected = TextDecoder(shape, vocabulary=len(tokenizer), encoder_width=shape.width).state_dict()
    expected = {name: value for name, value in expected.items() if not any(part in name for part in READS_THE_IMAGE)}
    for name, value in expected.items():
        if name not in theirs or theirs[name].shape != value.shape:
            found = f"of shape {tuple(theirs[name].shape)}" if name in theirs else "missing"
            need = f"{name} is {found}, not {tuple(value.shape)}"
            raise CheckpointError(f"{folder}: {WEIGHTS} does not fit the other files: {need}")
    return shape, {name: theirs[name] for name in expected}, tokenizer


def shaped(config: DecoderConfig, about: Mapping[str, Any]) -> DecoderConfig:
    """The decoder config with the shape that a GPT-2 config describes, and no more positions than it has."""
    about = SHAPE | dict(about)
    return replace(
        config,
        width=about["n_embd"],
        layers=about["n_layer"],
        heads=about["n_head"],
        feed_forward=(about["n_inner"] or 4 * about["n_embd"]) // about["n_embd"],
        max_length=min(config.max_length, about["n_positions"]),
    )


def decoder_weights(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """GPT-2's weights, without prefix, under the decoder's names."""
    transposed = {  # GPT-2 stores matrices with the input first
        name: value.T.contiguous() if value.ndim == 2 and re.search(r"\.(c|q)_\w+\.weight", name) else value
        for name, value in theirs.items()
    }
    return renamed(transposed, NAMES)


def departures(about: Mapping[str, Any]) -> list[str]:
    """How a language model differs, by its config, from the GPT-2 that the decoder implements."""
    if about.get("model_type") != "gpt2":
        return [f"decoder {about.get('model_type')}, not gpt2"]
    problems = [f"{key} {about[key]}, not {value}" for key, value in FIXED.items() if about.get(key, value) != value]
    if (about.get("n_inner") or 0) % about.get("n_embd", SHAPE["n_embd"]):
        problems.append(f"n_inner {about['n_inner']}, not a multiple of n_embd")
    return problems


def renamed(theirs: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """The weights whose names match a pattern, under their new names."""
    return {
        match.expand(ours): value
        for name, value in theirs.items()
        for pattern, ours in names.items()
        if (match := re.fullmatch(pattern, name))
    }
