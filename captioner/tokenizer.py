"""Captions to token ids and back, and the ids of each word.

Two kinds, both stored as one `tokenizer.json` that `tokenizers.Tokenizer.from_file` reads:

`bpe`   byte-level byte-pair encoding, as GPT-2's. Any text comes back from its ids unchanged.
`word`  one token for each word of plain lower-case text:
        * Unicode is normalized to NFKC and lower case, curly apostrophes become straight.
        * A word is letters and digits with hyphens or apostrophes inside (`t-shirt`, `o'clock`); a number keeps its
          inner separators (`1,000`, `10:30`).
        * The endings 's 're 've 'll 'd 'm and n't are tokens of their own, as in the Penn Treebank: `man's` and
          `man 's` are `man` + `'s`, `can't` and `ca n't` are `ca` + `n't`. Decoding joins them without a space.
        * Each symbol, and each of & # % @, is a token. Other punctuation and control characters are dropped.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers

from captioner.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from captioner.config import TokenizerConfig

SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
"""The special tokens, in the order of their ids."""

END_OF_TEXT = "<|endoftext|>"
"""GPT-2's only special token, which then stands for all four."""

UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\U00020000-\U0003ffff]"
)
"""Letters of scripts without spaces between words: Thai, Lao, Burmese, Khmer, kana, Chinese characters."""
MAX_BYTES = 4
"""Most bytes, and so most tokens, of a character."""
CONTROL = re.compile(r"<(style|length):(.+)>")
"""A control token: what it chooses, and the name of the choice."""

# Quotation marks 2018, 2019 and 201B, the modifier apostrophe and the prime.
_APOSTROPHE = "[\u2018\u2019\u201b\u02bc\u2032]"

# A letter or digit; the same or a combining mark; endings that are tokens of their own; words, which stop before them.
# Repeats are bounded, beyond any real word, since the regex engine gives up on matches of a million steps.
_LETTER = r"[\p{L}\p{N}]"
_INNER = r"[\p{L}\p{M}\p{N}]"
_NOT = rf"n't(?!{_INNER})"
_ENDING = rf"'(?:s|re|ve|ll|d|m)(?:(?!{_INNER})|(?={_NOT}))"
_PART = rf"(?!{_NOT}){_LETTER}(?:(?!{_NOT}){_INNER}){{0,255}}"
_WORD = rf"{_PART}(?:(?:-|(?!{_ENDING})'){_PART}){{0,15}}"
_NUMBER = r"\p{N}{1,255}(?:[.,:]\p{N}{1,255}){1,15}"
_TOKEN = "|".join((_NOT, rf"(?<={_LETTER}){_ENDING}", _NUMBER, _WORD, r"[\p{S}&#%@]"))


@dataclass(frozen=True, slots=True)
class Word:
    """A word and the half-open range of the token positions that encode it."""

    text: str
    start: int
    stop: int


class Tokenizer:
    """Text to ids and back. No text is encoded as `pad`, `bos` or `eos`, and only unknown words as `unk`.

    A model may have learned control tokens, which stand between the start token and a caption. They are not part of
    its text, and no text is encoded as one.

    Raises CheckpointError if `backend` is of neither kind or lacks special tokens.
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self.kind: Literal["word", "bpe"] = _kind(backend)
        self.pad, self.bos, self.eos, self.unk = (_special_id(backend, token) for token in SPECIAL)
        # Files do not store this switch, without which the text "<eos>" would be encoded as the end token.
        backend.encode_special_tokens = True
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        if max(backend.get_vocab(with_added_tokens=True).values()) >= len(self):
            raise CheckpointError(f"{len(self)} tokens, but ids above that; take a file saved with a model")
        added = (
            (CONTROL.fullmatch(token.content), place) for place, token in backend.get_added_tokens_decoder().items()
        )
        self._controls = {(match[1], match[2]): place for match, place in sorted(added, key=itemgetter(1)) if match}
        self._control_ids = frozenset(self._controls.values())

    @classmethod
    def train(cls, captions: Iterable[str], config: "TokenizerConfig") -> "Tokenizer":
        """Learn a vocabulary: the same captions give the same ids. Raises ConfigError where it would be empty."""
        if config.kind == "bpe":
            return cls(_train_bpe(captions, config))
        backend = _word_backend()
        if not _add_words(backend, captions, config.min_count):
            rare = f"tokenizer.min_count {config.min_count}: no word occurs that often in the captions"
            raise ConfigError(f"{rare}; lower it")
        return cls(backend)

    def extend(self, captions: Iterable[str], min_count: int) -> "Tokenizer":
        """The tokenizer with the frequent new words of `captions` added; old ids stay. A bpe tokenizer is unchanged."""
        if self.kind == "bpe":
            return self
        backend = tokenizers.Tokenizer.from_str(self.to_str())
        _add_words(backend, captions, min_count)
        return Tokenizer(backend)

    def with_controls(self, kind: str, names: Iterable[str]) -> "Tokenizer":
        """The tokenizer with the control tokens that it lacks added; old ids stay. `kind` is `style` or `length`."""
        new = [AddedToken(f"<{kind}:{name}>", special=True, normalized=False) for name in names]
        backend = tokenizers.Tokenizer.from_str(self.to_str())
        backend.add_special_tokens(new)
        return Tokenizer(backend)

    def controls(self, kind: str) -> dict[str, int]:
        """Name -> id of the control tokens of a kind."""
        return {name: place for (each, name), place in self._controls.items() if each == kind}

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, without start and end token."""
        with _without_panics():
            return self._backend.encode(_writable(text), add_special_tokens=False).ids

    def unknown_words(self, text: str) -> list[str]:
        """The words of a text that are not in the vocabulary; a trace shows them as `<unk>`."""
        return [word for word in text.split() if self.unk in self.encode(word)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text up to the first end token; invalid UTF-8 becomes U+FFFD."""
        return self._text(ids, self._positions(ids))

    def words(self, ids: Sequence[int]) -> list[Word]:
        """The words of `decode(ids)` with their punctuation: joined by spaces, they are the caption.

        In scripts without spaces, a word is a token of whole characters, or the tokens of one character.
        Positions are those in `ids`; special tokens and tokens of white space alone belong to no word.
        """
        groups: list[list[int]] = []
        positions = self._positions(ids)
        for place, position in enumerate(positions):
            if not groups or self._begins_word(ids[position]) or self._ends_word(ids, groups[-1], positions[place:]):
                groups.append([])
            groups[-1].append(position)
        words = (Word(self._text(ids, group).strip(), group[0], group[-1] + 1) for group in groups)
        return [word for word in words if word.text]

    @property
    def suppressed(self) -> tuple[int, ...]:
        """The ids that must not be generated."""
        return tuple(sorted({self.pad, self.bos, self.unk, *self._control_ids} - {self.eos}))

    def __len__(self) -> int:
        return self._backend.get_vocab_size(with_added_tokens=True)

    def to_str(self) -> str:
        """The content of `tokenizer.json`."""
        return self._backend.to_str(pretty=True)

    @classmethod
    def from_str(cls, content: str, source: str = "tokenizer.json") -> "Tokenizer":
        """The tokenizer in the content of a `tokenizer.json`. Raises CheckpointError naming `source`."""
        try:
            return cls(tokenizers.Tokenizer.from_str(content))
        except (KeyboardInterrupt, SystemExit):
            raise
        except CheckpointError as error:
            raise CheckpointError(f"{source}: {error}") from error
        except BaseException as error:  # the library raises bare Exception, and panics that are not one
            raise CheckpointError(f"{source}: not a tokenizer file ({error}); take one saved with a model") from error

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Read `tokenizer.json`. Raises CheckpointError if it is missing or unusable."""
        try:
            # Bytes that are not UTF-8 become surrogates, which `from_str` refuses.
            content = Path(path).read_text(encoding="utf-8", errors="surrogateescape")
        except OSError as error:
            reason = f"cannot read the tokenizer ({error.strerror})"
            raise CheckpointError(f"{path}: {reason}; give a whole model folder") from error
        return cls.from_str(content, source=str(path))

    def __reduce__(self) -> tuple[object, tuple[str]]:
        # The library's own pickles lose `encode_special_tokens`, so the constructor has to set it again.
        return Tokenizer.from_str, (self.to_str(),)

    def _positions(self, ids: Sequence[int]) -> list[int]:
        """The positions of text in `ids`. GPT-2 starts and ends with the same token, so the first one is skipped."""
        start = int(bool(ids) and ids[0] == self.bos)
        stop = ids.index(self.eos, start) if self.eos in ids[start:] else len(ids)
        hidden = {self.pad, self.bos, *self._control_ids}
        return [position for position in range(start, stop) if ids[position] not in hidden]

    def _begins_word(self, token_id: int) -> bool:
        """Whether the decoder puts white space before this token if it follows a letter."""
        token = self._backend.id_to_token(token_id) or ""
        with _without_panics():
            text: str = self._backend.decoder.decode(["a", token])
        return text[1:2].isspace()

    def _ends_word(self, ids: Sequence[int], group: list[int], following: list[int]) -> bool:
        """Whether a group of positions ends a word, as each letter may in a script without spaces."""
        if self.kind == "word" or not UNSPACED.match(self._text(ids, group)[-1:]):
            return False
        return UNSPACED.match(self._text(ids, following[:MAX_BYTES])) is not None

    def _text(self, ids: Sequence[int], positions: list[int]) -> str:
        with _without_panics():
            return self._backend.decode([ids[position] for position in positions], skip_special_tokens=False)


@contextmanager
def _without_panics() -> Iterator[None]:
    """Turn the library's panics, on regular expressions that take too long, into CheckpointError."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise CheckpointError(f"tokenizer.json: its rules fail ({error}); take one saved with a model") from error


def _kind(backend: tokenizers.Tokenizer) -> Literal["word", "bpe"]:
    model, decoder = backend.model, backend.decoder
    parts = (backend.normalizer, backend.pre_tokenizer, decoder)
    if isinstance(model, models.WordLevel) and model.token_to_id(model.unk_token) is not None and None not in parts:
        return "word"
    if isinstance(model, models.BPE) and isinstance(decoder, decoders.ByteLevel):
        return "bpe"
    raise CheckpointError("neither a word-level nor a byte-level BPE tokenizer; convert the model from one that is")


def _special_id(backend: tokenizers.Tokenizer, token: str) -> int:
    for name in (token, END_OF_TEXT):
        found = backend.token_to_id(name)
        if found is not None:
            return found
    raise CheckpointError(f"has neither {token} nor {END_OF_TEXT}; take a tokenizer made for captions")


def _writable(text: str) -> str:
    """The text with question marks for lone surrogates, which JSON can hold and UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _word_backend() -> tokenizers.Tokenizer:
    """A word-level tokenizer with special tokens only."""
    special = {token: place for place, token in enumerate(SPECIAL)}
    backend = tokenizers.Tokenizer(models.WordLevel(special, unk_token=SPECIAL[3]))
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    backend.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex(_APOSTROPHE), "'"),
            normalizers.Replace(Regex(rf"(?<={_LETTER})\s++(?={_ENDING}|{_NOT})"), ""),
        ]
    )
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(_TOKEN), behavior="removed", invert=True)
    # A space goes before every token but the endings: only they start with an apostrophe or are n't.
    backend.decoder = decoders.Sequence(
        [decoders.Replace(Regex("^(?!'|n't$)"), " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return backend


def _add_words(backend: tokenizers.Tokenizer, captions: Iterable[str], min_count: int) -> int:
    """Add the new words that occur at least `min_count` times, by frequency, then alphabetically; their number."""
    counts: Counter[str] = Counter()
    for caption in captions:
        text = backend.normalizer.normalize_str(_writable(caption))
        counts.update(word for word, _ in backend.pre_tokenizer.pre_tokenize_str(text))
    vocabulary = backend.get_vocab(with_added_tokens=True)
    new = [word for word, count in counts.items() if count >= min_count and word not in vocabulary]
    new.sort(key=lambda word: (-counts[word], word))
    free = max(vocabulary.values()) + 1
    vocabulary |= {word: free + place for place, word in enumerate(new)}
    backend.model = models.WordLevel(vocabulary, unk_token=SPECIAL[3])
    return len(new)


def _train_bpe(captions: Iterable[str], config: "TokenizerConfig") -> tokenizers.Tokenizer:
    smallest = len(SPECIAL) + 256
    if config.vocabulary_size < smallest:
        size = f"tokenizer.vocabulary_size {config.vocabulary_size}"
        raise ConfigError(f"{size}: byte-level BPE needs at least {smallest}; raise it")
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocabulary_size,
        min_frequency=config.min_count,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(map(_writable, captions), trainer)
    return backend
