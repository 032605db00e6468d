"""The PTB tokenizer of the official caption metrics, without Java.

It is `PTBTokenizer -preserveLines -lowerCase` of CoreNLP 3.4.1, then coco-caption's removal of punctuation. Derived by
giving the jar strings and looking at what it prints; docs/tokenizer.md tells how near it comes.

The jar is a scanner: at each place the rule with the longest match wins, what it looks ahead at counted in, and of
equals the first. So is this. Most captions are nothing but letters, spaces and a period, and take a shorter way.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache
from types import MappingProxyType

from captioner.metrics.ptb_rules import PLAIN_LINE, PLAIN_WORDS, RULES, Output

PUNCTUATION = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])
"""What coco-caption drops. It lists brackets too, but in capitals, which `-lowerCase` never leaves: they stay."""

LINE_BREAKS = dict.fromkeys(map(ord, "\n\r\x0b\x0c\u2028\u2029"), " ")
"""For `str.translate`: what would end the caption before its end."""


def tokenize(captions: Sequence[str]) -> list[str]:
    """The captions as the official metrics see them: lower-case words joined by one space, without punctuation.

    The order matters: an abbreviation that ends a caption looks at how the next one begins. A word may hold U+00A0, as
    in `22 3/4`. A line break of any kind in a caption is a space; the official tool replaces line feeds alone, and for
    each of the others gives all later captions to the wrong images.
    """
    lines = [caption.translate(LINE_BREAKS) for caption in captions]
    text = "\n".join(lines)
    tokenized = []
    start = 0
    for line in lines:
        end = start + len(line)
        if PLAIN_LINE.fullmatch(line):
            tokenized.append(" ".join(line.rstrip(" .").lower().split()))
        else:
            words = " ".join(scan(text, start, end)).rstrip().split(" ")
            tokenized.append(" ".join(word for word in words if word not in PUNCTUATION))
        start = end + 1
    return tokenized


def scan(text: str, start: int, end: int) -> list[str]:
    """What the jar prints of the line `text[start:end]`, punctuation included; rules look ahead beyond its end."""
    tokens: list[str] = []
    while start < end:
        if plain := PLAIN_WORDS.match(text, start, end):
            tokens += plain.group().lower().split()
            start = plain.end()
            continue
        longest, stop, output = start, start + 1, _NOTHING
        for pattern, its_output in _rules(text[start]):
            match = pattern.match(text, start)
            if match is not None and match.end() > longest:
                longest, stop, output = match.end(), match.end(1), its_output
        if token := output if isinstance(output, str) else output(text[start:stop]):
            tokens.append(token)
        start = stop
    return tokens


_NOTHING: Output = ""


@lru_cache(maxsize=1024)
def _rules(first: str) -> tuple[tuple[re.Pattern[str], Output], ...]:
    """The rules that can match where the next character is `first`, in order."""
    return tuple((pattern, output) for start, pattern, output in _compiled_rules() if start.match(first))


@cache
def _compiled_rules() -> tuple[tuple[re.Pattern[str], re.Pattern[str], Output], ...]:
    """Compiled on first use: that takes a sixth of a second, and many captions need none of them."""
    return tuple((re.compile(f"[{rule.first}]"), re.compile(rule.pattern), rule.output) for rule in RULES)


def tokenize_chars(captions: Sequence[str]) -> list[str]:
    """Every character but white space a token: for languages that write no spaces."""
    return [" ".join("".join(caption.split())) for caption in captions]


def tokenize_none(captions: Sequence[str]) -> list[str]:
    """The captions as they are, split at white space: for those that are tokenized already."""
    return [" ".join(caption.split()) for caption in captions]


TOKENIZERS: Mapping[str, Callable[[Sequence[str]], list[str]]] = MappingProxyType(
    {"ptb": tokenize, "char": tokenize_chars, "none": tokenize_none}
)
"""By the names that `--tokenizer` takes."""
