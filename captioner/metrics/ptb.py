"""The PTB tokenizer of the official caption metrics: `PTBTokenizer -preserveLines -lowerCase` of CoreNLP 3.4.1, and
coco-caption's removal of punctuation, which follows it.

Pure Python, derived by giving the jar strings and looking at what it prints; docs/tokenizer.md tells how near it comes.
The jar is a scanner: at each place the rule with the longest match wins, what it looks ahead counted in, and of equals
the first. So is this: `_RULES` are in that order, each `(token)lookahead`. Captions of nothing but letters and spaces,
which most are, take a shorter way.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import NamedTuple

from captioner.metrics import ptb_characters

PUNCTUATION = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])
"""The tokens that coco-caption drops. It lists brackets too, in capitals that `-lowerCase` never leaves."""

_BREAKS = str.maketrans(dict.fromkeys("\n\r\x0b\x0c\u2028\u2029", " "))
"""Every kind of line break becomes a space. The official tool replaces \\n alone, and for each of the others gives all
later captions to the wrong images."""


def _characters(ranges: str) -> str:
    """The inside of a regular expression's character class."""
    return "".join("-".join(f"\\u{int(end, 16):04x}" for end in span.split("-")) for span in ranges.split())


_LETTERS = "A-Za-z" + _characters(ptb_characters.LETTERS)
_DIGITS = "0-9" + _characters(ptb_characters.DIGITS)
_MARKS = _characters(ptb_characters.MARKS)
_SYMBOLS = _characters(ptb_characters.SYMBOLS)

# Old Unicode knew no capitals in Cherokee.
_CAPITALS = "".join(c for c in map(chr, range(0x10000)) if c.isupper() and not "\u13a0" <= c <= "\u13f4")


def _words(*words: str) -> str:
    return "(?ai:" + "|".join(words) + ")"


_L = _LETTERS + _MARKS + r"\xad"
_D = _DIGITS
_SPACE = r"[ \t\xa0\u2000-\u200a\u3000]"
_BLANK = r"[ \t\xa0\u2000-\u200a\u3000\n]"
_APOSTROPHE = r"(?:['\u2019\x92]|&apos;)"
_TICK = r"(?:['`\u2018\u2019\x92]|&apos;)"
_NOT = rf"(?ai:n){_TICK}(?ai:t)"

_WORD = rf"[{_LETTERS}{_MARKS}\xad][{_LETTERS}{_MARKS}{_DIGITS}\xad]*"
_ALNUM = rf"[{_LETTERS}{_DIGITS}]"
_ACRONYM = r"[A-Za-z](?:\.[A-Za-z])+"
_WORDS = rf"{_WORD}(?:[.!?]{_WORD})*"
_PART = rf"(?:(?ai:[dlo]){_TICK}{_ALNUM}{{2,}}|{_ALNUM}+)"
_JOINED = rf"{_PART}(?:[-_\u058a\u2010\u2011]{_PART})*"
_EITHER = r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}"
_HYPHENED = rf"[A-Za-z0-9][A-Za-z0-9.,\xad]{{0,250}}(?:-(?:{_ACRONYM}\.|[A-Za-z0-9\xad]+))+"
_COMPANY = r"[A-Z]+(?:(?:(?ai:&amp;)|[+&])[A-Z]+)+"
_NUMBER = rf"[{_DIGITS}]*(?:[.:,\xad\u066b\u066c][{_DIGITS}]+)+|[{_DIGITS}]+"

_NAME = r"[A-Za-z][A-Za-z0-9_:.-]*"
_ATTRIBUTE = rf"""{_NAME}(?:=(?:"[^"\n]*"|'[^'\n]*'))?"""
_TAG = rf"<(?:{_NAME}(?: +{_ATTRIBUTE})* *(?:/ *)?|/{_NAME} *|[!?][A-Za-z-][^>\n]{{0,250}})>"

# Abbreviations by what their period means.
# 1: it may also end a sentence, and then counts twice.
_ENDING = _words(
    *("jan feb mar apr jun jul aug sept? oct nov dec mon tues? wed thu(?:rs)? fri".split()),
    *("al apr ariz assn bancorp bhd bldg blvd bros calif co colo conn corp cos ct dak esq est etc ext fla ga".split()),
    *("inc ind intl jr kans? ky ltd md mich minn mo mont neb nev okla penn plc rd rt seq sq sr sys tel tenn".split()),
    *(r"univ va vt wisc? wyo ph\.d ed\.d".split()),
)
# Those that are words too need the case that tells them from the word.
_ENDING_AS_WRITTEN = "(?=[A-Z])" + _words(*"ark az del ill la mass miss ore pa tex wash".split())
_ENDING_AS_WRITTEN += "|(?ai:p?pt)[ey](?ai:s?)"
# 2: something always follows: titles and the like.
_TITLE = _words(
    *("adj adm adv alex assoc asst attys? ave brig capt cf cie c[mo]mdr col cpl dept det drs? elec ens ft gen".split()),
    *("govs? hon insp invt jos lieut lt maj messrs mlle mme mrs? ms msgr mt natl pfc ph pres profs? pvt reps?".split()),
    *("rev sens? sfc sgt spc ste? supts? treas vs wm cmdr".split()),
)
_TITLE_AS_WRITTEN = "(?ai:m)[ft](?ai:g)"
# 3: an abbreviation only where a number follows.
_NUMBERED = _words("art", "ca", "figs?", "nos?", "op", "pp", "prop")

_STARTERS = "(?=[A-Z])" + _words(
    *(r"mr\. ms\.".split()),
    *("a about according additionally after an as at but earlier he her here however if in it last many".split()),
    *("more now once one other our she since so some such that the their then there these they this we".split()),
    *("what when while yet you".split()),
)
"""Before one of these a single letter's period ends the sentence, and an acronym's counts twice."""

_ADDRESS = r"""[^ \t\n"<>|(){}\xa0]"""
_DOMAIN = r"""[^ \t\n"<>|(){}.\xa0]"""
_LINK = r"""[^ \t\n"<>|(){}]"""
_LINK_END = r"""[^ \t\n"<>|(){}.!?,-]"""
_HOST = r"""[^ \t\n"<>|.!?(){},]"""
_SITE = r"""[^ \t\n"`'<>|.!?(){}$,-_]"""

_EXTENSION = _words(
    *("bat bmp c class cgi cpp dll docx? exe gif gz h html? jar java jpe?g mov mp3 pdf php pl png ppt ps".split()),
    *("py sql tar txt wav x xml zip".split()),
)

_EYES, _MOUTH = r"[-~x=<>^']", r"[-~x=<>^']"


def _lower(token: str) -> str:
    return token.lower()


def _word(token: str) -> str:
    return token.replace("\xad", "").lower() or "-"


def _spaced(token: str) -> str:
    """A token with spaces inside: they become U+00A0."""
    return _brackets(token.replace(" ", "\xa0"))


def _brackets(token: str) -> str:
    return token.replace("(", "-lrb-").replace(")", "-rrb-").lower()


def _straight(token: str) -> str:
    """`'s` and the like, however their apostrophe is written."""
    return re.sub(_APOSTROPHE, "'", token).replace("\u2018", "`").lower()


def _kept(token: str) -> str:
    """An apostrophe that stays as it is written."""
    return token.lower()


def _quotes(token: str) -> str:
    return "".join(_QUOTES.get(c, c) for c in token)


def _ampersand(token: str) -> str:
    return re.sub("&amp;", "&", token, flags=re.IGNORECASE).lower()


def _symbol(token: str) -> str:
    return _SYMBOL_NAMES.get(token, token.lower())


_QUOTES = {
    **dict.fromkeys("`\u2018\u201b\x91\u2039", "`"),
    **dict.fromkeys("\u2019\x92\u203a", "'"),
    **dict.fromkeys("\u201c\x93\xab", "``"),
    **dict.fromkeys("\u201d\x94\xbb", "''"),
}

_SYMBOL_NAMES = {
    "(": "-lrb-",
    ")": "-rrb-",
    "[": "-lsb-",
    "]": "-rsb-",
    "{": "-lcb-",
    "}": "-rcb-",
    "\xa2": "cents",
    "\xa3": "#",
    **dict.fromkeys("\x80\xa4\u20a0\u20ac", "$"),
    "\xbc": "1/4",
    "\xbd": "1/2",
    "\xbe": "3/4",
    "\u2153": "1/3",
    "\u2154": "2/3",
    "\xad": "-",
}

Output = str | Callable[[str], str]


class _Rule(NamedTuple):
    first: str
    """The inside of a character class: what a match can begin with."""
    pattern: str
    """Its group 1 is the token, the rest is looked ahead at."""
    output: Output


_Q = r"'\u2019\x92&"

_RULES = (
    _Rule("<", rf"({_TAG})", _spaced),
    _Rule("<&A-Za-z0-9", rf"((?:<|&lt;)?[A-Za-z0-9]{_ADDRESS}{{0,250}}@(?:{_DOMAIN}+\.)*{_DOMAIN}+(?:>|&gt;)?)", _ampersand),
    _Rule("A-Za-z", rf"((?ai:https?)://{_LINK}+{_LINK_END})", _lower),
    _Rule("w", rf"(www\.(?:{_HOST}+\.)+[a-zA-Z]{{2,4}})", _lower),
    _Rule("w", rf"(www\.(?:{_HOST}+\.)+[a-zA-Z]{{2,4}}/{_LINK}+{_LINK_END})", _lower),
    _Rule(r"^ \t\n", rf"((?:{_SITE}{{1,63}}\.){{1,8}}(?:com|net|org|edu)(?:/{_LINK}+{_LINK_END})?)", _word),
    _Rule("@", "(@[A-Za-z_][A-Za-z0-9_]*)", _lower),
    _Rule("#", rf"(#[{_L}]+)", _lower),
    # Words that are two tokens.
    _Rule("Cc", r"((?ai:can))(?ai:not)", _lower),
    _Rule("GgWw", r"((?ai:gon|wan))(?ai:na)", _lower),
    _Rule("Gg", r"((?ai:got))(?ai:ta)", _lower),
    _Rule("GgLl", r"((?ai:gim|lem))(?ai:me)", _lower),
    _Rule("'", "((?ai:'t))(?ai:is|was)", _lower),
    _Rule("A-Za-z", rf"([A-Za-z]*[A-MO-Za-mo-z]){_NOT}", _word),
    _Rule(_L, rf"({_WORDS}){_APOSTROPHE}(?ai:s|m|d|re|ve|ll)", _word),
    # Endings.
    _Rule(_Q, rf"({_APOSTROPHE}{_words('s', 'm', 'd', 're', 've', 'll')})[^A-Za-z]", _straight),
    _Rule(_Q, rf"({_APOSTROPHE}{_words('em', 'cause', 'till?', 'n' + _APOSTROPHE + '?')})", _kept),
    _Rule("'", r"(')[A-Za-z][^ \t\n\xa0]", "`"),
    _Rule(_Q, rf"({_APOSTROPHE}{_words('s', 'm', 'd', 're', 've', 'll')})", _straight),
    _Rule("Nn", rf"({_NOT})", _straight),
    # Words with an apostrophe inside, before or after.
    _Rule(_Q, rf"({_APOSTROPHE}[{_D}]0(?i:s))", _kept),
    _Rule(_Q, rf"({_APOSTROPHE}[{_D}][{_D}]){_BLANK}", _kept),
    _Rule("A-Zn", rf"([A-HJ-XZn]{_TICK}[{_LETTERS}]{{2,}})", _kept),
    _Rule(_LETTERS, rf"([{_LETTERS}]+(?ai:[aeiouy]){_TICK}[aeiouA-Z][{_LETTERS}]*)", _kept),
    _Rule("CEOceo", rf"({_words('c' + _APOSTROPHE + 'mon', 'e' + _APOSTROPHE + 'er', 'o' + _TICK + 'o')})", _kept),
    _Rule("Yy", rf"((?ai:y){_APOSTROPHE})[{_LETTERS}]", _kept),
    _Rule("DLJOdljo", rf"({_words('[dlj]', 'ol')}{_APOSTROPHE})", _kept),
    # Words.
    _Rule(_L, rf"({_WORDS})", _word),
    # Abbreviations.
    _Rule("A-Za-z", rf"((?:{_ENDING}|{_ENDING_AS_WRITTEN})\.){_BLANK}(?:[{_CAPITALS}]|{_BLANK}|{_TAG})", lambda t: f"{t} .".lower()),
    _Rule("A-Za-z", rf"((?:{_ENDING}|{_ENDING_AS_WRITTEN})\.)[^\0][^\0]", _lower),
    _Rule("A-Za-z", rf"((?:{_ENDING}|{_ENDING_AS_WRITTEN})\.)", lambda t: f"{t} .".lower()),
    _Rule("A-Za-z", rf"((?:{_TITLE}|{_TITLE_AS_WRITTEN})\.)", _lower),
    _Rule("A-Za-z", rf"({_ACRONYM}\.){_BLANK}+(?:{_STARTERS}|{_TAG}){_BLANK}", lambda t: f"{t} .".lower()),
    _Rule("A-Za-z", rf"([A-Za-z])\.{_BLANK}+(?:{_STARTERS}|{_TAG}){_BLANK}", _lower),
    _Rule("A-Za-z", rf"({_ACRONYM}\.|[A-Za-z]\.)", _lower),
    _Rule("A-Za-z", rf"({_NUMBERED}\.){_BLANK}?[{_D}]", _lower),
    # Numbers.
    _Rule("-+.:,\xad\u066b\u066c" + _D, rf"([-+]?(?:{_NUMBER}))", _word),
    _Rule(_D, rf"((?:[{_D}]{{1,4}}[- \xa0])?[{_D}]{{1,4}}\\?[/\u2044][{_D}]{{1,4}})", _spaced),
    _Rule(
        "(+0-9",
        r"((?:\([0-9]{2,3}\)[- \xa0]?|(?:\+\+?)?(?:[0-9]{2,4}[- \xa0])?[0-9]{2,4}[- \xa0])[0-9]{3,4}[- \xa0]?[0-9]{3,5})",
        _spaced,
    ),
    _Rule("\xb2\xb3\xb9\u2070\u2074-\u2079\u2080-\u2089", "([\xb2\xb3\xb9\u2070\u2074-\u2079\u2080-\u2089]+)", _lower),
    _Rule("0-9", "([0-9]{1,2}[-/][0-9]{1,2}[-/][0-9]{2,4})", _lower),
    _Rule(_L + _D, rf"([{_L}{_D}]+(?:\.[{_LETTERS}{_D}]+)*\.{_EXTENSION})(?:{_BLANK}|[.,?!])", _word),
    # Joined words.
    _Rule(_LETTERS + _D, rf"({_JOINED})", _kept),
    _Rule("A-Za-z0-9", rf"({_EITHER}(?:\\?/{_EITHER}){{1,2}})", _lower),
    _Rule(_LETTERS + _D, rf"({_HYPHENED})", _word),
    _Rule("A-Z", rf"({_COMPANY})", _ampersand),
    _Rule(_L + _D, rf"((?:{_WORDS}|{_JOINED}|{_HYPHENED}|{_COMPANY})\.)[,;:\u3001]", _ampersand),
    _Rule("CcFf", r"((?ai:c\+\+|[cf]#))", _lower),
    _Rule("A-Z$", r"([A-Z]*\$)", _lower),
    # Smileys.
    _Rule("<>:;=", r"([<>]?[:;=][-o*']?[()DPdpO\\|@{\[\]])[^A-Za-z0-9]", _brackets),
    _Rule("-~x=<>^'", rf"({_EYES}_{_MOUTH})", _lower),
    _Rule("(", rf"(\((?:{_EYES}[_.]?{_MOUTH}|[~x=<>^']-[~x=<>^'`])\))", _brackets),
    # Entities.
    _Rule("&", r"((?ai:&amp;))", "&"),
    _Rule("&", r"((?ai:&lt;))", "<"),
    _Rule("&", r"((?ai:&gt;))", ">"),
    _Rule("&", r"((?ai:&nbsp;))", ""),
    _Rule("&", r"((?ai:&md;)|&[mn]dash;)", "--"),
    _Rule("&", r"((?ai:&(?:ht|[lut]r|[tq]l|q[cr]|[co]dq);)|&[aeiouAEIOU](?:acute|grave|uml);|&#[0-9]+;|&QUOT;)", _lower),
    # Quotes.
    _Rule('"&', r"(\"|&quot;)[A-Za-z0-9$]", "``"),
    _Rule('"&', r"(\"|&quot;)", "''"),
    _Rule("'", r"('')", "''"),
    _Rule("'&", r"('|&apos;)", "'"),
    _Rule("`\x91-\x94\xab\xbb\u2018-\u201f\u2039\u203a", "([`\x91-\x94\xab\xbb\u2018-\u201f\u2039\u203a]{1,2})", _quotes),
    # Punctuation.
    _Rule(r".", r"(\.{3,5}|\.(?:[ \xa0]\.){2,4})", "..."),
    _Rule("\x85\u2026", "([\x85\u2026])", "..."),
    _Rule(r"\-", r"(-----+)", _lower),
    _Rule(r"\-", r"(--+)", "--"),
    _Rule("\x96\x97\u2013-\u2015", "([\x96\x97\u2013-\u2015])", "--"),
    _Rule("!?", r"([!?]+)", _lower),
    _Rule("#", r"(##+)", _lower),
    _Rule("@", r"(@@+)", _lower),
    _Rule("_", r"(__+)", _lower),
    _Rule(r"*\\", r"(\*+|\\\*)", _lower),
    _Rule("<", r"(<<)", "<<"),
    _Rule(">", r"(>>)", ">>"),
    _Rule(r"!-/:-@\[-`{-~", r"([!-/:-@\[-`{-~])", _symbol),
    _Rule("\x80\xa2-\xa4\u20a0\u20ac\xbc-\xbe\u2153\u2154\xad\u2044", "(.)", _symbol),
    _Rule(_SYMBOLS, "(.)", _lower),
    _Rule(_SPACE[1:-1], f"({_SPACE}+)", ""),
    _Rule(r"\s\S", r"([\s\S])", ""),
)


@cache
def _rules(first: str) -> tuple[tuple[re.Pattern[str], Output], ...]:
    """The rules that can match where the next character is `first`, in order."""
    return tuple((_compiled(rule), rule.output) for rule in _RULES if re.match(f"[{rule.first}]", first))


@cache
def _compiled(rule: _Rule) -> re.Pattern[str]:
    return re.compile(rule.pattern)


_SPLIT = _words("cannot", "gonna", "gotta", "gimme", "lemme", "wanna")
_SHORTENED = rf"(?:[A-Za-z]|{_ENDING}|{_ENDING_AS_WRITTEN}|{_TITLE}|{_TITLE_AS_WRITTEN}|{_NUMBERED})\."
_PLAIN_WORDS = re.compile(rf"(?:(?!{_SPLIT}(?![A-Za-z]))[A-Za-z]+ +)+")
_PLAIN = re.compile(rf"(?:(?!{_SPLIT}(?![A-Za-z]))[A-Za-z]+ +)*(?!{_SPLIT}(?![A-Za-z])|{_SHORTENED})(?:[A-Za-z]+\.?|\.)? *")
"""A caption of words with a period at its end: as it is, in lower case, without the period."""


def _lex(text: str, start: int, end: int) -> list[str]:
    """The tokens of `text[start:end]`, a line of it; what a rule looks ahead at may lie beyond."""
    tokens = []
    while start < end:
        if words := _PLAIN_WORDS.match(text, start, end):
            tokens += words.group().lower().split()
            start = words.end()
            continue
        longest, token_end, output = start, start + 1, ""
        for pattern, rule_output in _rules(text[start]):
            match = pattern.match(text, start)
            if match is not None and match.end() > longest:
                longest, token_end, output = match.end(), match.end(1), rule_output
        token = output if isinstance(output, str) else output(text[start:token_end])
        if token:
            tokens.append(token)
        start = token_end
    return tokens


def tokenize(captions: Sequence[str]) -> list[str]:
    """The captions as the official metrics see them: words of lower case joined by one space, without punctuation.

    The order matters: an abbreviation at a caption's end looks at how the next one begins. A word may hold U+00A0, where
    the tokenizer joins `22 3/4`.
    """
    lines = [caption.translate(_BREAKS) for caption in captions]
    text = "\n".join(lines)
    results = []
    start = 0
    for line in lines:
        end = start + len(line)
        if _PLAIN.fullmatch(line):
            results.append(" ".join(line.rstrip(" .").lower().split()))
        else:
            words = " ".join(_lex(text, start, end)).split(" ")
            results.append(" ".join(word for word in words if word not in PUNCTUATION))
        start = end + 1
    return results
