"""The PTB tokenizer against what the official one prints, stored and live."""

import gzip
import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.tokenizer_agreement import PIECES, difference, made_up, official
from captioner.errors import ResourceError
from captioner.metrics.ptb import LINE_BREAKS, PUNCTUATION, TOKENIZERS, scan, tokenize, tokenize_chars, tokenize_none

GOLDEN = Path(__file__).parent / "golden" / "ptb.jsonl"

ROWS = [json.loads(line) for line in GOLDEN.read_text(encoding="utf-8").splitlines()]

ODD = st.one_of(
    st.text(),
    st.text(alphabet=st.characters()),  # lone surrogates too
    st.text(alphabet="aAnN1'’`\"&;<>@#./-_:()=,!?$ \xa0\xad\n"),
    st.lists(st.sampled_from(PIECES.split())).map("".join),
)


def jar_says(captions: list[str]) -> list[str]:
    try:
        return official(captions)
    except ResourceError as error:
        pytest.skip(str(error))


def scanned(caption: str) -> str:
    return " ".join(scan(caption + "\nx", 0, len(caption)))


def test_stored_captions_in_their_order():
    assert tokenize([row["caption"] for row in ROWS]) == [row["tokenized"] for row in ROWS]


def test_the_jar_still_says_what_is_stored():
    assert jar_says([row["caption"] for row in ROWS]) == [row["tokenized"] for row in ROWS]


@pytest.mark.parametrize("seed", [1, 2])
def test_odd_captions_as_the_jar(seed):
    captions = made_up(4000, seed)
    assert tokenize(captions) == jar_says(captions)


def test_any_text_as_the_jar_but_for_the_known_differences():
    captions: list[str] = []

    @given(ODD)
    def collect(text):
        captions.append(text.encode(errors="ignore").decode().translate(LINE_BREAKS))

    collect()
    rows = zip(captions, jar_says(captions), tokenize(captions), strict=True)
    assert [row for row in rows if row[1] != row[2] and difference(row[0]) == "unknown"] == []


@pytest.mark.parametrize("name", ["coco_nonplain", "fuzz_captionlike"])
def test_shared_captions(shared, name):
    path = shared / "data" / "metric_fixtures" / "ptb_tokenizer" / f"{name}.jsonl.gz"
    rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).decode().splitlines()]
    # They were stored one by one: a word between them keeps the next caption from being looked at.
    assert [scanned(row["text"]) for row in rows] == [row["java_raw"] for row in rows]
    between = tokenize([text for row in rows for text in (row["text"], "x")])
    assert between[::2] == [row["filtered"] for row in rows]


@pytest.mark.parametrize(
    ("captions", "expected"),
    [
        (["bus no.", "5 is red"], ["bus no.", "5 is red"]),
        (["bus no.", "a bus"], ["bus no", "a bus"]),
        (["a K.", "The bus is late"], ["a k", "the bus is late"]),
        (["a K.", "a bus"], ["a k.", "a bus"]),
        (["a K.", "The"], ["a k.", "the"]),
        (["", "a K.", "", "The bus"], ["", "a k", "", "the bus"]),
    ],
)
def test_a_captions_end_looks_at_the_next(captions, expected):
    assert tokenize(captions) == expected


def test_a_word_may_hold_a_no_break_space():
    assert tokenize(["22 3/4 inches"]) == ["22\xa03/4 inches"]


@pytest.mark.parametrize("separator", ["\n", "\r", "\r\n", "\x0b", "\x0c", "\u2028", "\u2029"])
def test_line_breaks_are_spaces(separator):
    assert tokenize([f"a dog{separator}runs.", "a cat"]) == ["a dog runs", "a cat"]


@given(st.lists(ODD, max_size=6))
def test_no_text_crashes_it(captions):
    results = tokenize(captions)
    assert len(results) == len(captions)
    for result in results:
        words = result.split(" ")
        assert not PUNCTUATION.intersection(words)
        assert result == "" or all(words)
        assert not set(map(chr, LINE_BREAKS)).intersection(result)


@given(st.lists(st.from_regex("[A-Za-z ]{0,30}[.]? ?", fullmatch=True), max_size=8))
def test_the_short_way_is_the_long_way(captions):
    # A tab takes a caption off the short way, and is a space.
    assert tokenize(captions) == tokenize(
        [caption + "\t" if not caption.endswith(".") else caption for caption in captions]
    )
    assert tokenize(captions) == tokenize(["\t" + caption for caption in captions])


def test_tokenized_again_as_the_jar():
    once = [row["tokenized"] for row in ROWS]
    assert tokenize(once) == jar_says(once)


@pytest.mark.parametrize(
    "piece",
    [
        "a;",
        "a.,",
        "www.1",
        "<a ",
        "<!a",
        "<a b='\"",
        "+.",
        "é+",
        "a@",
        "http://!",
        "'a",
        "a&eacute;",
        "\xad",
        ". ",
        "1,",
        "U.S. ",
    ],
)
def test_time_is_linear(piece):
    def seconds(length: int) -> float:
        caption = piece * (length // len(piece)) + "!"
        best = float("inf")
        for _ in range(3):
            begin = time.perf_counter()
            tokenize([caption])
            best = min(best, time.perf_counter() - begin)
        return best

    tokenize(["it's warm!"])
    assert seconds(16_000) < 10 * seconds(4_000) + 0.02  # quadratic is 16 times


def test_characters_and_words_as_they_are():
    assert tokenize_chars(["一只 狗。", " "]) == ["一 只 狗 。", ""]
    assert tokenize_none(["Ein  Hund , der\tläuft .", ""]) == ["Ein Hund , der läuft .", ""]
    assert list(TOKENIZERS) == ["ptb", "char", "none"]
    assert TOKENIZERS["ptb"](["It's a dog."]) == ["it 's a dog"]
