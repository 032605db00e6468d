"""Conversion of transformers' captioners (VisionEncoderDecoderModel: ViT, DeiT or BEiT with GPT-2).

The decoder is exactly GPT-2's with cross-attention: the same weights give the same logits.
"""

import importlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import to_2tuple
from torch import Tensor

from captioner import gpt2
from captioner.config import DecoderConfig, EncoderConfig, ModelConfig
from captioner.errors import CheckpointError, ResourceError
from captioner.model.caption_model import CaptionModel
from captioner.text import first_line
from captioner.tokenizer import Tokenizer

INTERPOLATIONS: dict[int, Any] = {1: "lanczos", 2: "bilinear", 3: "bicubic"}
"""Pillow's number of a resampling filter -> its name."""
ENCODERS = {
    "vit": (
        "test_vit",
        *(f"vit_{size}_patch16_224" for size in ("tiny", "small", "base", "large")),
        *("vit_base_patch8_224", "vit_small_patch32_224", "vit_base_patch32_224", "vit_large_patch32_224"),
        *("vit_large_patch14_224", "vit_huge_patch14_224"),
    ),
    "deit": tuple(f"deit_{size}_distilled_patch16_224" for size in ("tiny", "small", "base")),
    "beit": ("beit_base_patch16_224", "beit_large_patch16_224"),
}
"""transformers' model type -> candidates among timm's models."""
ENCODER_NAMES = {
    r"embeddings\.cls_token": "cls_token",
    r"embeddings\.distillation_token": "dist_token",
    r"embeddings\.position_embeddings": "pos_embed",
    r"embeddings\.patch_embeddings\.projection\.(\w+)": r"patch_embed.proj.\1",
    r"layers\.(\d+)\.layernorm_before\.(\w+)": r"blocks.\1.norm1.\2",
    r"layers\.(\d+)\.layernorm_after\.(\w+)": r"blocks.\1.norm2.\2",
    r"layers\.(\d+)\.attention\.o_proj\.(\w+)": r"blocks.\1.attn.proj.\2",
    r"layers\.(\d+)\.mlp\.fc([12])\.(\w+)": r"blocks.\1.mlp.fc\2.\3",
    r"layers\.(\d+)\.lambda_([12])": r"blocks.\1.gamma_\2",
    r"layers\.(\d+)\..*relative_position_bias_table": r"blocks.\1.attn.relative_position_bias_table",
}
"""transformers' name of an encoder weight -> timm's; others are left out (poolers, mask tokens)."""
FEATURE_NAMES = {
    r"encoder\.layernorm\.(\w+)": r"feature_norm.\1",
    r"enc_to_dec_proj\.(\w+)": r"feature_projection.\1",
}
"""transformers' name of a weight between encoder and decoder -> the decoder's."""


def from_transformers(folder: Path) -> tuple[CaptionModel, Tokenizer]:
    """The captioner that `save_pretrained` wrote into a folder, with its tokenizer and image processor.

    Raises CheckpointError if it is incomplete or of another kind, ResourceError if transformers is not installed.
    """
    try:
        transformers: Any = importlib.import_module("transformers")
    except ImportError as error:
        raise ResourceError('transformers is not installed; pip install "captioner[convert]"') from error
    try:
        theirs = transformers.VisionEncoderDecoderModel.from_pretrained(folder, local_files_only=True)
        words = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True).backend_tokenizer
        processor = transformers.AutoImageProcessor.from_pretrained(folder, local_files_only=True).to_dict()
        tokenizer = Tokenizer.from_str(words.to_str(), str(folder))
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{folder}: not a complete transformers captioner ({first_line(error)[:200]}); give a folder with what "
            "save_pretrained writes of a VisionEncoderDecoderModel, its tokenizer and its image processor"
        ) from error
    encoder, decoder = theirs.config.encoder, theirs.config.decoder
    _check(folder, encoder, decoder, processor)
    vocabulary = theirs.decoder.get_input_embeddings().weight.shape[0]
    start = theirs.generation_config.decoder_start_token_id
    if vocabulary != len(tokenizer) or start not in (None, tokenizer.bos):
        raise CheckpointError(
            f"{folder}: a vocabulary of {vocabulary} and start token {start}, and a tokenizer of {len(tokenizer)} with "
            f"start token {tokenizer.bos}; they have to be the same"
        )
    normalized = encoder.model_type != "beit" or not encoder.use_mean_pooling
    config = ModelConfig(
        encoder=EncoderConfig(
            name=_timm_name(folder, encoder),
            image_size=to_2tuple(encoder.image_size),
            interpolation=INTERPOLATIONS[processor["resample"]],
            norm_eps=encoder.layer_norm_eps,
        ),
        decoder=gpt2.shaped(
            DecoderConfig(
                max_length=decoder.n_positions,
                null_patch=False,
                feature_projection=hasattr(theirs, "enc_to_dec_proj"),
                feature_norm_eps=encoder.layer_norm_eps if normalized else None,
            ),
            decoder.to_dict(),
        ),
    )
    model = CaptionModel(config, vocabulary=vocabulary)
    state = theirs.state_dict()
    missing, _ = model.encoder.backbone.load_state_dict(encoder_weights(_part(state, "encoder.")), strict=False)
    problems = [f"no {name}" for name in missing if "index" not in name and not name.startswith(("norm.", "fc_norm."))]
    if not torch.equal(state["decoder.lm_head.weight"], state["decoder.transformer.wte.weight"]):
        problems.append("another matrix for its logits than for its words")
    if problems:
        raise CheckpointError(f"{folder}: cannot be converted: it has {', '.join(problems[:3])}")
    model.decoder.load_state_dict(
        gpt2.decoder_weights(_part(state, "decoder.transformer.")) | gpt2.renamed(state, FEATURE_NAMES)
    )
    scale = 255 if processor.get("do_rescale", True) else 1
    model.encoder.mean.copy_(torch.tensor(processor["image_mean"]).view(3, 1, 1) * scale)
    model.encoder.std.copy_(torch.tensor(processor["image_std"]).view(3, 1, 1) * scale)
    return model.eval(), tokenizer


def encoder_weights(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of transformers' ViT, DeiT or BEiT under timm's names."""
    ours = gpt2.renamed(theirs, ENCODER_NAMES)
    for number in {match[1] for name in theirs if (match := re.match(r"layers\.(\d+)\.", name))}:
        query, key, value = (f"layers.{number}.attention.{each}_proj" for each in "qkv")
        ours[f"blocks.{number}.attn.qkv.weight"] = torch.cat([theirs[f"{each}.weight"] for each in (query, key, value)])
        if f"{key}.bias" in theirs:
            ours[f"blocks.{number}.attn.qkv.bias"] = torch.cat([theirs[f"{each}.bias"] for each in (query, key, value)])
        elif f"{query}.bias" in theirs:  # BEiT's keys have none
            ours[f"blocks.{number}.attn.q_bias"] = theirs[f"{query}.bias"]
            ours[f"blocks.{number}.attn.v_bias"] = theirs[f"{value}.bias"]
    return ours


def _check(folder: Path, encoder: Any, decoder: Any, processor: dict[str, Any]) -> None:
    problems = []
    if encoder.model_type not in ENCODERS:
        problems.append(f"encoder {encoder.model_type}, not one of {', '.join(ENCODERS)}")
    elif encoder.hidden_act != "gelu":
        problems.append(f"encoder activation {encoder.hidden_act}, not gelu")
    problems += gpt2.departures(decoder.to_dict())
    size = processor.get("size") or {}
    if (size.get("height"), size.get("width")) != to_2tuple(encoder.image_size) or processor.get("do_center_crop"):
        problems.append("images that are cropped, or resized to another size than the encoder's")
    if processor.get("resample") not in INTERPOLATIONS or not processor.get("do_normalize", True):
        problems.append("images that are resampled or normalized in another way")
    if problems:
        raise CheckpointError(f"{folder}: cannot be converted: {'; '.join(problems)}")


def _timm_name(folder: Path, encoder: Any) -> str:
    """The timm model of the same shape."""
    wanted = (encoder.hidden_size, encoder.num_hidden_layers, encoder.num_attention_heads, encoder.intermediate_size)
    for name in ENCODERS[encoder.model_type]:
        with torch.device("meta"):
            model: Any = timm.create_model(name)
        block = model.blocks[0]
        shape = (model.embed_dim, len(model.blocks), block.attn.num_heads, block.mlp.fc1.out_features)
        if shape == wanted and model.patch_embed.patch_size == to_2tuple(encoder.patch_size):
            return name
    raise CheckpointError(
        f"{folder}: timm has no {encoder.model_type} of width {wanted[0]}, {wanted[1]} layers, {wanted[2]} heads and "
        f"patches of {encoder.patch_size} pixels among {', '.join(ENCODERS[encoder.model_type])}"
    )


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
