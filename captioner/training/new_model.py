"""The network and the vocabulary that a training run starts from."""

import logging
from pathlib import Path

from captioner.checkpoint import load_model
from captioner.config import Config, DecoderConfig, ModelConfig
from captioner.data.dataset import LENGTHS
from captioner.errors import ConfigError
from captioner.gpt2 import language_decoder
from captioner.model.caption_model import CaptionModel
from captioner.text import printable
from captioner.tokenizer import Tokenizer

log = logging.getLogger(__name__)

NAMED = 10
"""New words that are named, the most frequent first."""
MAX_UNKNOWN = 0.3
"""Largest share of unknown words without a warning."""


def new_model(config: Config, texts: list[str], init: Path | None) -> tuple[CaptionModel, Tokenizer, range]:
    """The model and the tokenizer of a new run, and the ids of the words that the model to start from lacked."""
    if init is not None and config.decoder.init is not None:
        raise ConfigError("decoder.init and --init both give the decoder's weights; choose one")
    if init is None and config.decoder.init is None and config.decoder.language == "freeze":
        raise ConfigError("decoder.language: freeze needs a language model; set decoder.init or give --init")
    if init is not None:
        model, tokenizer = load_model(init)
        frozen = config.decoder.language == "freeze"  # and so are its embeddings
        extended = tokenizer if frozen else tokenizer.extend(texts, config.tokenizer.min_count)
        model.decoder.grow(len(extended))
        new = range(len(tokenizer), len(extended))
        named = ", ".join(extended.decode([word]) for word in new[:NAMED])
        more = ", ..." if len(new) > NAMED else ""
        about = f"starting from {init}: {len(extended)} words, {len(new)} of them new"
        log.info("%s", printable(f"{about} ({named}{more})" if new else about))
        return model, extended, new
    if config.decoder.init is None:
        tokenizer = Tokenizer.train(texts, config.tokenizer)
        tokens = [token for text in texts for token in tokenizer.encode(text)]
        if tokenizer.kind == "word" and (unknown := tokens.count(tokenizer.unk)) > MAX_UNKNOWN * len(tokens):
            share = f"{unknown / len(tokens):.0%} of the words of the captions are unknown"
            log.warning("tokenizer: %s; set tokenizer.kind to bpe, above all for languages without spaces", share)
        return _build(config, config.decoder.network(), tokenizer), tokenizer, range(0)
    shape, language, tokenizer = language_decoder(config.decoder.network(), Path(config.decoder.init))
    model = _build(config, shape, tokenizer)
    model.decoder.load_state_dict(language, strict=False)  # cross-attention is new
    log.info(
        "starting from %s: its %d tokens, %d layers and width %d replace the settings in tokenizer and decoder",
        config.decoder.init,
        len(tokenizer),
        shape.layers,
        shape.width,
    )
    return model, tokenizer, range(0)


def add_controls(config: Config, model: CaptionModel, tokenizer: Tokenizer, styles: list[str]) -> Tokenizer:
    """The tokenizer with the control tokens that the run teaches, for which the model gets embeddings."""
    lengths = LENGTHS if config.data.length_control else ()
    controlled = tokenizer.with_controls("style", styles).with_controls("length", lengths)
    if len(controlled) > len(tokenizer):
        if config.decoder.language == "freeze":
            raise ConfigError("data.control and data.length_control need decoder.language: train, for new embeddings")
        model.decoder.grow(len(controlled))
        log.info("control tokens: %s", ", ".join([*styles, *lengths]))
    return controlled


def _build(config: Config, decoder: DecoderConfig, tokenizer: Tokenizer) -> CaptionModel:
    if config.encoder.is_random_and_frozen:
        log.warning("encoder: its weights are random and not trained; set encoder.pretrained or encoder.train")
    return CaptionModel(
        ModelConfig(encoder=config.encoder.network(), decoder=decoder),
        vocabulary=len(tokenizer),
        dropout=config.decoder.dropout,
        pretrained=config.encoder.pretrained,
        weights=config.encoder.weights,
    )
