"""The tokenizers of captions; `tokenize` is the official metrics' PTB tokenizer, without Java.

It equals `PTBTokenizer -preserveLines -lowerCase` of CoreNLP 3.4.1 and coco-caption's removal of punctuation, and was
derived from the jar's output for test strings; docs/tokenizer.md says how closely it agrees. Like the jar it scans: at
each place the rule with the longest match wins. Most captions have only letters, spaces and a period: a fast path.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache

from captioner.metrics.ptb_rules import PLAIN_LINE, PLAIN_WORDS, RULES, Output

PUNCTUATION = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])
"""Tokens that coco-caption drops. It lists brackets in capitals, which never occur after `-lowerCase`: they stay."""

LINE_BREAKS = dict.fromkeys(map(ord, "\n\r\x0b\x0c\u2028\u2029"), " ")
"""A table for `str.translate` that replaces line separators with spaces."""


def tokenize(captions: Sequence[str]) -> list[str]:
    """Tokenize as the official metrics do: lower-case words joined by one space, without punctuation.

    Order matters: the reading of an abbreviation at the end of a caption depends on the start of the next. A word may
    hold U+00A0, as in `22 3/4`. Every line break in a caption becomes a space; the official tool replaces line feeds
    only, and after any other break assigns all later captions to the wrong images.
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
    """The jar's tokens of the line `text[start:end]`, with punctuation; rules look ahead beyond its end."""
    tokens: list[str] = []
    while start < end:
        if plain := PLAIN_WORDS.match(text, start, end):
            tokens += plain.group().lower().split()
            start = plain.end()
            continue
        longest = start  # the last rule matches any character, so there is a longest match
        for pattern, its_output in _rules(text[start]):
            match = pattern.match(text, start)
            if match is not None and match.end() > longest:
                longest, stop, output = match.end(), match.end(1), its_output
        if token := output if isinstance(output, str) else output(text[start:stop]):
            tokens.append(token)
        start = stop
    return tokens


@lru_cache(maxsize=1024)
def _rules(first: str) -> tuple[tuple[re.Pattern[str], Output], ...]:
    """The rules that can match where the next character is `first`, in order."""
    return tuple((pattern, output) for start, pattern, output in _compiled_rules() if start.match(first))


@cache
def _compiled_rules() -> tuple[tuple[re.Pattern[str], re.Pattern[str], Output], ...]:
    """Compiled on first use, since that takes a sixth of a second and many captions need no rule."""
    return tuple((re.compile(f"[{rule.first}]"), re.compile(rule.pattern), rule.output) for rule in RULES)


def tokenize_chars(captions: Sequence[str]) -> list[str]:
    """Every character but white space is a token: for languages without spaces."""
    return [" ".join("".join(caption.split())) for caption in captions]


def tokenize_none(captions: Sequence[str]) -> list[str]:
    """The captions split at white space: for captions that are tokenized already."""
    return [" ".join(caption.split()) for caption in captions]


TOKENIZERS: Mapping[str, Callable[[Sequence[str]], list[str]]] = {
    "ptb": tokenize,
    "char": tokenize_chars,
    "none": tokenize_none,
}
"""The tokenizers by the names that `--tokenizer` takes."""
