"""The rules of the PTB tokenizer, inferred from the output of CoreNLP 3.4.1 for strings made to probe it.

A rule is a regular expression of a token and its lookahead; of equally long matches the first rule wins. Some rules
have bounds that the jar lacks (250 characters of an address, 20 parts of it), so that every caption takes linear time.
"""

import re
from collections import defaultdict
from collections.abc import Callable
from importlib.resources import files
from typing import NamedTuple, TypeAlias


def _read_lists(file: str) -> dict[str, str]:
    """The lists of a data file, which describes its format."""
    lists: dict[str, str] = defaultdict(str)
    for line in (files("captioner.metrics") / file).read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, _, entries = line.partition(":")
            lists[name] += entries
    return lists


def _characters(ranges: str) -> str:
    """The inside of a regular expression's character class."""
    return "".join("-".join(f"\\u{int(end, 16):04x}" for end in span.split("-")) for span in ranges.split())


_CLASSES = {name: _characters(ranges) for name, ranges in _read_lists("ptb_characters.txt").items()}
_LETTERS = "A-Za-z" + _CLASSES["letters"]
_L = _LETTERS + _CLASSES["marks"] + r"\xad"
_D = "0-9" + _CLASSES["digits"]

# Old Unicode knew no capitals in Cherokee.
_CAPITALS = "".join(c for c in map(chr, range(0x10000)) if c.isupper() and not "\u13a0" <= c <= "\u13f4")


def _words(words: str) -> str:
    """Any of these patterns, in any case."""
    return f"(?ai:{'|'.join(words.split())})"


_SPACE = r"[ \t\xa0\u2000-\u200a\u3000]"
_BLANK = r"[ \t\xa0\u2000-\u200a\u3000\n]"
# Which apostrophes count differs from rule to rule: `'em` and `d`or`, but not `` `em ``.
_APOSTROPHE = r"(?:['\u2019\x92]|&apos;)"
_TICK = r"(?:['`\u2018\u2019\x92]|&apos;)"
_NOT = rf"(?ai:n){_TICK}(?ai:t)"

_APOSTROPHE_WORDS = _words(
    rf"c['\u2019\x92]est cap['\u2019\x92]n s['\u2019\x92]mores o{_TICK}o c'mon e'er ev'ry li'l nat'l nor'easter"
)

# Words: an entity is a letter in them, soft hyphens are dropped, and marks end all but the plainest.
_ACCENTED = r"&(?ai:[aeiou](?:acute|grave|uml));"
_WORD = rf"(?:[{_L}]|{_ACCENTED})(?:[{_L}{_D}]++|{_ACCENTED})*"
_ALNUM = rf"[{_LETTERS}{_D}]"
_ACRONYM = r"[A-Za-z](?:\.[A-Za-z])+"
_WORDS = rf"{_WORD}(?:[.!?]{_WORD})*"
_PART = rf"(?:(?ai:[dlo]){_TICK}{_ALNUM}{{2,}}|{_ALNUM}+)"
_JOINED = rf"{_PART}(?:[-_\u058a\u2010\u2011]{_PART})*"
_EITHER = r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}"
_HYPHENED = rf"[A-Za-z0-9][A-Za-z0-9.,\xad]{{0,250}}(?:-(?:{_ACRONYM}\.|[A-Za-z0-9\xad]+))+"
_COMPANY = r"[A-Z]+(?:(?:(?ai:&amp;)|[+&])[A-Z]+)+"
_NUMBER = rf"[{_D}]*(?:[.:,\xad\u066b\u066c][{_D}]+)+|[{_D}]+"

_TELEPHONE = r"(?:\([0-9]{2,3}\)[- \xa0]?|(?:\+\+?)?(?:[0-9]{2,4}[- \xa0])?[0-9]{2,4}[- \xa0])"
_TELEPHONE += r"[0-9]{3,4}[- \xa0]?[0-9]{3,5}"

_NAME = r"[A-Za-z][A-Za-z0-9_:.-]*"
_ATTRIBUTE = rf"""{_NAME}(?:=(?:"[^"\n]{{0,250}}"|'[^'\n]{{0,250}}'))?"""
_TAG = rf"<(?:{_NAME}(?: +{_ATTRIBUTE}){{0,20}} *(?:/ *)?|/{_NAME} *|[!?][A-Za-z-][^>\n]{{0,250}})>"

_LISTS = {name: _words(entries) for name, entries in _read_lists("ptb_words.txt").items()}
_ENDING = rf"(?:{_LISTS['ending']}|(?=[A-Z]){_LISTS['capitalized']}|(?ai:p?pt)[ey](?ai:s?))"
_TITLE = rf"(?:{_LISTS['title']}|(?ai:m)[ft](?ai:g))"
_STARTERS = f"(?=[A-Z]){_LISTS['starter']}"

_ADDRESS = r"""[^ \t\n"<>|(){}\xa0]"""
_DOMAIN = r"""[^ \t\n"<>|(){}.\xa0]"""
_LINK = r"""[^ \t\n"<>|(){}]"""
_LINK_END = r"""[^ \t\n"<>|(){}.!?,-]"""
_PATH = rf"""/[^ \t\n"<>|()]+{_LINK_END}"""
_HOST = r"""[^ \t\n"<>|.!?(){},]"""
# No capitals and no digits, as in the jar.
_SITE = r"""[^ \t\n"`'<>|.!?(){}$,-_]"""

_EYE = r"[-~x=<>^']"


def _word(token: str) -> str:
    """Without soft hyphens, with a plain ampersand."""
    return re.sub("\xad|(?<=&)amp;", "", token, flags=re.IGNORECASE).lower() or "-"


def _spaced(token: str) -> str:
    """A token with spaces inside: they become U+00A0."""
    return _brackets(token.replace(" ", "\xa0"))


def _brackets(token: str) -> str:
    return token.replace("(", "-lrb-").replace(")", "-rrb-").lower()


def _straight(token: str) -> str:
    """`'s` and the like, however their apostrophe is written."""
    return re.sub(_APOSTROPHE, "'", token).replace("\u2018", "`").lower()


def _ended(token: str) -> str:
    """An abbreviation whose period ends a sentence too."""
    return token.lower() + " ."


def _rename(token: str) -> str:
    """Quotes, brackets, currencies and fractions as the jar writes them."""
    return "".join(_NAMES.get(c, c.lower()) for c in token)


_NAMES = {
    **dict.fromkeys("`\u2018\u201b\x91\u2039", "`"),
    **dict.fromkeys("\u2019\x92\u203a", "'"),
    **dict.fromkeys("\u201c\x93\xab", "``"),
    **dict.fromkeys("\u201d\x94\xbb", "''"),
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

Output: TypeAlias = str | Callable[[str], str]


class Rule(NamedTuple):
    """A kind of token."""

    first: str
    """The inside of a character class: the characters that a match can begin with."""
    pattern: str
    """Its group 1 is the token, the rest is lookahead."""
    output: Output = str.lower
    """The token as it is written, or what makes that of the matched text; an empty one is dropped."""


_Q = r"'\u2019\x92&"

RULES = (
    Rule("<", rf"({_TAG})", _spaced),
    Rule(
        "<&A-Za-z0-9",
        rf"((?:<|&lt;)?[A-Za-z0-9]{_ADDRESS}{{0,250}}@(?:{_DOMAIN}+\.)*{_DOMAIN}+(?:>|&gt;)?)",
    ),
    Rule("A-Za-z", rf"((?ai:https?)://{_LINK}+{_LINK_END})"),
    Rule("@", "(@[A-Za-z_][A-Za-z0-9_]*)"),
    Rule("#", rf"(#(?:[{_L}]++|{_ACCENTED})+)"),
    # Words that are two tokens.
    Rule("Cc", r"((?ai:can))(?ai:not)"),
    Rule("GgWw", r"((?ai:gon|wan))(?ai:na)"),
    Rule("Gg", r"((?ai:got))(?ai:ta)"),
    Rule("GgLl", r"((?ai:gim|lem))(?ai:me)"),
    Rule("'", "((?ai:'t))(?ai:is|was)"),
    Rule("A-Za-z\xad", rf"([A-Za-z\xad]*[A-MO-Za-mo-z]\xad*){_NOT}", _word),
    Rule(_L + "&", rf"({_WORDS}){_APOSTROPHE}(?ai:s|m|d|re|ve|ll)", _word),
    # Endings.
    Rule(_Q, rf"({_APOSTROPHE}{_words('s m d re ve ll')})[^A-Za-z]", _straight),
    Rule(_Q, rf"({_APOSTROPHE}{_words(f'em cause till? n{_APOSTROPHE}?')})"),
    Rule("'", r"(')[A-Za-z][^ \t\n\xa0]", "`"),
    Rule(_Q, rf"({_APOSTROPHE}{_words('s m d re ve ll')})", _straight),
    Rule("Nn", rf"({_NOT})", _straight),
    # Words with an apostrophe inside, before or after.
    Rule(_Q, rf"({_APOSTROPHE}[0-9]0(?i:s))"),
    Rule(_Q, rf"({_APOSTROPHE}[0-9]{{2}}){_BLANK}"),
    Rule("A-Zn", rf"([A-HJ-XZn]{_TICK}[{_LETTERS}]{{2,}})"),
    Rule(_LETTERS, rf"([{_LETTERS}]+(?ai:[aeiouy]){_TICK}[aeiouA-Z][{_LETTERS}]*)"),
    Rule("CEceLlNnOoSs", f"({_APOSTROPHE_WORDS})"),
    Rule("AaPp", r"((?ai:anti|pro)-)"),
    Rule("Yy", rf"((?ai:y){_APOSTROPHE})[{_LETTERS}]"),
    Rule("DLJOdljo", rf"({_words('[dlj] ol')}{_APOSTROPHE})"),
    # Words.
    Rule(_L + "&", rf"({_WORDS})", _word),
    Rule("w", rf"(www\.(?:{_HOST}{{1,250}}\.){{1,20}}[a-zA-Z]{{2,4}})"),
    Rule("w", rf"(www\.(?:{_HOST}{{1,250}}\.){{1,20}}[a-zA-Z]{{2,4}}{_PATH})"),
    Rule(r"^ \t\n", rf"((?:{_SITE}{{1,63}}\.){{1,8}}(?:com|net|org|edu)(?:{_PATH})?)"),
    # Abbreviations.
    Rule("A-Za-z", rf"({_ENDING}\.){_BLANK}(?:[{_CAPITALS}]|{_BLANK}|{_TAG})", _ended),
    Rule("A-Za-z", rf"({_ENDING}\.)[^\0][^\0]"),
    Rule("A-Za-z", rf"({_ENDING}\.)", _ended),
    Rule("A-Za-z", rf"({_TITLE}\.)"),
    Rule("A-Za-z", rf"({_ACRONYM}\.){_BLANK}+(?:{_STARTERS}|{_TAG}){_BLANK}", _ended),
    Rule("A-Za-z", rf"([A-Za-z])\.{_BLANK}+(?:{_STARTERS}|{_TAG}){_BLANK}"),
    Rule("A-Za-z", rf"({_ACRONYM}\.|[A-Za-z]\.)"),
    Rule("A-Za-z", rf"({_LISTS['numbered']}\.){_BLANK}?[{_D}]"),
    # Numbers.
    Rule("-+.:,\xad\u066b\u066c" + _D, rf"([-+]?(?:{_NUMBER}))", _word),
    Rule(_D, rf"((?:[{_D}]{{1,4}}[- \xa0])?[{_D}]{{1,4}}\\?[/\u2044][{_D}]{{1,4}})", _spaced),
    Rule("(+0-9", rf"({_TELEPHONE})", _spaced),
    Rule("\xb2\xb3\xb9\u2070\u2074-\u2079\u2080-\u2089", "([\xb2\xb3\xb9\u2070\u2074-\u2079\u2080-\u2089]+)"),
    Rule("0-9", "([0-9]{1,2}[-/][0-9]{1,2}[-/][0-9]{2,4})"),
    Rule(
        _L + _D + "&",
        rf"((?:[{_L}{_D}]++|{_ACCENTED})+(?:\.[{_LETTERS}{_D}]+){{0,20}}\.{_LISTS['extension']})(?:{_BLANK}|[.,?!])",
    ),
    # Joined words.
    Rule(_LETTERS + _D, rf"({_JOINED})"),
    Rule("A-Za-z0-9", rf"({_EITHER}(?:\\?/{_EITHER}){{1,2}})"),
    Rule(_LETTERS + _D, rf"({_HYPHENED})", _word),
    Rule("A-Z", rf"({_COMPANY})", _word),
    Rule(_L + _D + "&", rf"((?:{_WORDS}|{_JOINED}|{_HYPHENED}|{_COMPANY})\.)[,;:\u3001]", _word),
    Rule("CcFf", r"((?ai:c\+\+|[cf]#))"),
    Rule("A-Z$", r"([A-Z]*\$)"),
    # Smileys.
    Rule("<>:;=", r"([<>]?[:;=][-o*']?[()DPdpO\\|@{\[\]])[^A-Za-z0-9]", _brackets),
    Rule("-~x=<>^'", rf"({_EYE}_{_EYE})"),
    Rule("(", rf"(\((?:{_EYE}[_.]?{_EYE}|[~x=<>^']-[~x=<>^'`])\))", _brackets),
    # Entities.
    Rule("&", r"((?ai:&amp;))", "&"),
    Rule("&", r"((?ai:&lt;))", "<"),
    Rule("&", r"((?ai:&gt;))", ">"),
    Rule("&", r"((?ai:&nbsp;))", ""),
    Rule("&", r"((?ai:&md;)|&[mn]dash;)", "--"),
    Rule("&", r"((?ai:&(?:ht|[lut]r|[tq]l|q[cr]|[co]dq);)|&#[0-9]+;|&QUOT;)"),
    Rule("-", r"(-(?ai:[lr][rsc]b)-)"),
    # Quotes.
    Rule('"&', r"(\"|&quot;)[A-Za-z0-9$]", "``"),
    Rule('"&', r"(\"|&quot;)", "''"),
    Rule("'", r"('')", "''"),
    Rule("'&", r"('|&apos;)", "'"),
    Rule(
        "`\x91-\x94\xab\xbb\u2018-\u201f\u2039\u203a", "([`\x91-\x94\xab\xbb\u2018-\u201f\u2039\u203a]{1,2})", _rename
    ),
    # Punctuation.
    Rule(r".", r"(\.{3,5}|\.(?:[ \xa0]\.){2,4})", "..."),
    Rule("\x85\u2026", "([\x85\u2026])", "..."),
    Rule(r"\-", r"(-----+)"),
    Rule(r"\-", r"(--+)", "--"),
    Rule("\x96\x97\u2013-\u2015", "([\x96\x97\u2013-\u2015])", "--"),
    Rule("!?", r"([!?]+)"),
    Rule("#", r"(##+)"),
    Rule("@", r"(@@+)"),
    Rule("_", r"(__+)"),
    Rule(r"*\\", r"(\*+|\\\*)"),
    Rule("<", r"(<<)", "<<"),
    Rule(">", r"(>>)", ">>"),
    Rule(r"!-/:-@\[-`{-~", r"([!-/:-@\[-`{-~])", _rename),
    Rule("\x80\xa2-\xa4\u20a0\u20ac\xbc-\xbe\u2153\u2154\xad\u2044", "(.)", _rename),
    Rule(_CLASSES["symbols"], "(.)"),
    Rule(_SPACE[1:-1], f"({_SPACE}+)", ""),
    Rule(r"\s\S", r"([\s\S])", ""),
)

_SPLIT = _words("cannot gonna gotta gimme lemme wanna") + "(?![A-Za-z])"
_SHORTENED = rf"(?:[A-Za-z]|{_ENDING}|{_TITLE}|{_LISTS['numbered']})\."

PLAIN_WORDS = re.compile(rf"(?:(?!{_SPLIT})[A-Za-z]+ {_SPACE}*)+")
"""Words that only the rule for words can match."""

PLAIN_LINE = re.compile(rf"(?:(?!{_SPLIT})[A-Za-z]+ +)*(?!{_SPLIT}|{_SHORTENED})(?:[A-Za-z]+\.?|\.)? *")
"""A line of such words, with a period that can only end it."""
