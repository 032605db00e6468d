"""What a model is given to write: a style and a length, the first words of captions, or a whole caption."""

from captioner.errors import ConfigError
from captioner.tokenizer import Tokenizer


def prefix_tokens(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    """The tokens of the first words of captions. Raises ConfigError for words that the model does not know."""
    if unknown := ", ".join(tokenizer.unknown_words(text)):
        raise ConfigError(f"prefix {text!r}: the model does not know {unknown}; use words it was trained on")
    return tuple(tokenizer.encode(text))


def caption_tokens(tokenizer: Tokenizer, text: str, most: int) -> list[int]:
    """The tokens of a caption, with the end token. Raises ConfigError unless there are 1 to `most` before it."""
    tokens = tokenizer.encode(text)
    if not tokens:
        raise ConfigError(f"caption {text[:40]!r}: no words in it; give at least one")
    if len(tokens) > most:
        raise ConfigError(f"caption {text[:40]!r}...: {len(tokens)} tokens, this model takes {most}; shorten it")
    return [*tokens, tokenizer.eos]


def control_tokens(tokenizer: Tokenizer, *, style: str | None, length: str | None) -> tuple[int, ...]:
    """The control tokens of a style and a length. Raises ConfigError, which names those that the model has learned."""
    tokens = []
    for kind, name in (("style", style), ("length", length)):
        if name is None:
            continue
        known = tokenizer.controls(kind)
        if name not in known:
            names = f"choose from {', '.join(known)}" if known else f"it has learned no {kind}s"
            raise ConfigError(f"{kind} {name}: not known to this model; {names}")
        tokens.append(known[name])
    return tuple(tokens)
