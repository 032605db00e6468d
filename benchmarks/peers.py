"""Models to compare with, of equal size and with random weights: a transformers captioner, a CTranslate2 translator."""

import importlib
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

# Typed as Any, because not every environment has these packages.
ctranslate2: Any = importlib.import_module("ctranslate2")
specs: Any = importlib.import_module("ctranslate2.specs")
transformers: Any = importlib.import_module("transformers")

LAYERS, WIDTH, HEADS, VOCABULARY, POSITIONS = 6, 512, 8, 10_000, 64
ENCODER = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "intermediate_size": 1536}
"""ViT-S/16."""
END = "<|endoftext|>"


def save_transformers(folder: Path) -> None:
    """Save a random VisionEncoderDecoderModel with a tokenizer and an image processor."""
    pieces = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = (f"{one}{other}" for one in pieces for other in pieces)
    vocabulary = [*list(itertools.islice(itertools.chain(pieces, pairs), VOCABULARY - 1)), END]
    backend = Backend(models.BPE({piece: place for place, piece in enumerate(vocabulary)}, []))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    words = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=END, eos_token=END)
    end = VOCABULARY - 1
    torch.manual_seed(0)
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        transformers.ViTConfig(**ENCODER),
        transformers.GPT2Config(
            n_embd=WIDTH,
            n_layer=LAYERS,
            n_head=HEADS,
            n_positions=POSITIONS,
            vocab_size=VOCABULARY,
            bos_token_id=end,
            eos_token_id=end,
            add_cross_attention=True,
        ),
    )
    model = transformers.VisionEncoderDecoderModel(config).eval()
    model.generation_config.decoder_start_token_id = model.generation_config.eos_token_id = end
    model.generation_config.pad_token_id = end
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": 224, "width": 224}, resample=2).save_pretrained(folder)


def ctranslate2_translator(folder: Path, compute_type: str, threads: int) -> Any:
    """A random translator with the same decoder and a one-layer encoder of negligible cost."""
    random = np.random.default_rng(0)
    spec = specs.transformer_spec.TransformerSpec.from_config(
        (1, LAYERS), HEADS, pre_norm=True, activation=specs.common_spec.Activation.GELUTanh
    )

    def draw(*shape: int) -> Any:
        return (random.standard_normal(shape) * 0.02).astype(np.float32)

    def linear(part: Any, out: int, width: int) -> None:
        part.weight, part.bias = draw(out, width), np.zeros(out, np.float32)

    def norm(part: Any) -> None:
        part.gamma, part.beta = np.ones(WIDTH, np.float32), np.zeros(WIDTH, np.float32)

    for side, hidden in ((spec.encoder, 8), (spec.decoder, 4 * WIDTH)):
        side.scale_embeddings = False
        side.position_encodings.encodings = draw(256, WIDTH)
        norm(side.layer_norm)
        for layer in side.layer:
            linear(layer.self_attention.linear[0], 3 * WIDTH, WIDTH)
            linear(layer.self_attention.linear[1], WIDTH, WIDTH)
            norm(layer.self_attention.layer_norm)
            linear(layer.ffn.linear_0, hidden, WIDTH)
            linear(layer.ffn.linear_1, WIDTH, hidden)
            norm(layer.ffn.layer_norm)
    for layer in spec.decoder.layer:
        for place, times in enumerate((1, 2, 1)):
            linear(layer.attention.linear[place], times * WIDTH, WIDTH)
        norm(layer.attention.layer_norm)
    spec.encoder.embeddings[0].weight = draw(10, WIDTH)
    spec.decoder.embeddings.weight = draw(VOCABULARY, WIDTH)
    spec.decoder.projection.weight = spec.decoder.embeddings.weight
    spec.decoder.projection.bias = np.zeros(VOCABULARY, np.float32)
    special = ["<unk>", "<s>", "</s>"]
    spec.register_source_vocabulary([*special, *(f"s{each}" for each in range(7))])
    spec.register_target_vocabulary([*special, *(f"t{each}" for each in range(VOCABULARY - 3))])
    spec.config.add_source_eos = False
    folder.mkdir()
    spec.validate()
    spec.save(str(folder))
    return ctranslate2.Translator(
        str(folder), device="cpu", compute_type=compute_type, inter_threads=1, intra_threads=threads
    )
