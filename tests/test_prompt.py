"""What captions begin with: known words and control tokens, or an error that names them."""

import pytest

from captioner.config import TokenizerConfig
from captioner.errors import ConfigError
from captioner.prompt import caption_tokens, control_tokens, prefix_tokens
from captioner.tokenizer import Tokenizer

PLAIN = Tokenizer.train(["a dog runs"], TokenizerConfig(min_count=1))
STYLED = PLAIN.with_controls("style", ["formal", "loud"]).with_controls("length", ["short"])


def test_control_tokens() -> None:
    size = len(PLAIN)
    assert control_tokens(STYLED, style=None, length=None) == ()
    assert control_tokens(STYLED, style="loud", length="short") == (size + 1, size + 2)
    with pytest.raises(ConfigError, match=r"style funny: not known to this model; choose from formal, loud$"):
        control_tokens(STYLED, style="funny", length=None)
    with pytest.raises(ConfigError, match=r"length long: not known to this model; it has learned no lengths$"):
        control_tokens(PLAIN, style=None, length="long")


def test_prefix_tokens() -> None:
    assert prefix_tokens(PLAIN, "a dog") == tuple(PLAIN.encode("a dog"))
    with pytest.raises(ConfigError, match=r"prefix 'a zebra': the model does not know zebra"):
        prefix_tokens(PLAIN, "a zebra")


def test_caption_tokens() -> None:
    assert caption_tokens(PLAIN, "a dog", 2) == [*PLAIN.encode("a dog"), PLAIN.eos]
    with pytest.raises(ConfigError, match="no words in it"):
        caption_tokens(PLAIN, "!", 2)
    with pytest.raises(ConfigError, match="3 tokens, this model takes 2"):
        caption_tokens(PLAIN, "a dog runs", 2)
