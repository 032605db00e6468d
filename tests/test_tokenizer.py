import copy
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
import tokenizers
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from captioner.config import TokenizerConfig
from captioner.errors import CheckpointError, ConfigError
from captioner.tokenizer import SPECIAL, UNSPACED, Tokenizer, Word

CAPTIONS = [
    "A man's dog isn't red.",
    "Two men, one dog: a t-shirt!",
    "the dog can't see <eos> or <unk> & <pad> <bos>",
    'A dog at 10:30 o\u2019clock ("late")',
]
SHARED = Path(os.environ.get("CAPTIONER_SHARED", Path(__file__).parents[2] / "shared"))
WORD = Tokenizer.train(CAPTIONS, TokenizerConfig(kind="word", min_count=1))
BPE = Tokenizer.train(CAPTIONS, TokenizerConfig(kind="bpe", min_count=1, vocabulary_size=300))
BOTH = pytest.mark.parametrize("tokenizer", [WORD, BPE], ids=["word", "bpe"])

any_text = st.lists(
    st.one_of(st.text(max_size=8), st.sampled_from([*SPECIAL, *CAPTIONS, "dog", "'s", "n't", "'", "-", " ", "\u0301"]))
).map("".join)


def vocabulary(tokenizer: Tokenizer) -> list[str]:
    ids = tokenizers.Tokenizer.from_str(tokenizer.to_str()).get_vocab()
    return sorted(ids, key=ids.__getitem__)


def pieces(text: str) -> list[str]:
    """The tokens that a vocabulary of `text` alone would need, as written."""
    own = Tokenizer.train([text, "anything"], TokenizerConfig(min_count=1))
    return [own.decode([token]) for token in own.encode(text)]


def gpt2() -> tokenizers.Tokenizer:
    """A tokenizer as GPT-2's file holds it: <|endoftext|> is the one special token and comes last."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(CAPTIONS, trainer)
    backend.add_special_tokens(["<|endoftext|>"])
    backend.enable_truncation(3)
    backend.enable_padding(length=5)
    return backend


@BOTH
def test_special_tokens_have_fixed_ids(tokenizer: Tokenizer) -> None:
    assert (tokenizer.pad, tokenizer.bos, tokenizer.eos, tokenizer.unk) == (0, 1, 2, 3)
    assert vocabulary(tokenizer)[:4] == ["<pad>", "<bos>", "<eos>", "<unk>"]
    assert tokenizer.suppressed == (0, 1, 3)
    assert len(tokenizer) == len(vocabulary(tokenizer))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A man's dog", ["a", "man", "'s", "dog"]),
        ("a man 's dog does n't", ["a", "man", "'s", "dog", "does", "n't"]),
        ("can\u2019t couldn't've it'd", ["ca", "n't", "could", "n't", "'ve", "it", "'d"]),
        ("I'dn't \"n't'0", ["i", "'d", "n't", "n't", "0"]),
        ("I'm, we're & they'll", ["i", "'m", "we", "'re", "&", "they", "'ll"]),
        ("ice-cream o'clock rock'n'roll", ["ice-cream", "o'clock", "rock'n'roll"]),
        ("the dogs' 'quoted' 's", ["the", "dogs", "quoted", "s"]),
        ("x - y -- z... (a/b); \u201cHi!\u201d?", ["x", "y", "z", "a", "b", "hi"]),
        ("1,000.5 at 10:30, #23 50% $5", ["1,000.5", "at", "10:30", "#", "23", "50", "%", "$", "5"]),
        ("\ufb01ne \uff24\uff2f\uff27 caf\u00c9 \u0130", ["fine", "dog", "caf\u00e9", "i\u0307"]),
        ("<eos>", ["<", "eos", ">"]),
        ("\u05e9\u05dc\u05d5\u05dd \U0001f436\u200d\u2764\ufe0f", ["\u05e9\u05dc\u05d5\u05dd", "\U0001f436", "\u2764"]),
        ("a\x00b\x1b\u202ec\ufeff", ["a", "b", "c"]),
        ("", []),
        (' .,!?;:"()-- ', []),
    ],
)
def test_word_splits(text: str, expected: list[str]) -> None:
    assert pieces(text) == expected


def test_words_are_ordered_by_count_then_spelling() -> None:
    captions = ["b c a", "c b", "c", "rare"]
    trained = Tokenizer.train(captions, TokenizerConfig(min_count=1))
    assert vocabulary(trained)[4:] == ["c", "b", "a", "rare"]
    assert Tokenizer.train(reversed(captions), TokenizerConfig(min_count=1)).to_str() == trained.to_str()
    assert vocabulary(Tokenizer.train(captions, TokenizerConfig(min_count=2)))[4:] == ["c", "b"]


def test_bpe_training_is_deterministic_and_bounded() -> None:
    again = Tokenizer.train(iter(CAPTIONS), TokenizerConfig(kind="bpe", min_count=1, vocabulary_size=300))
    assert again.to_str() == BPE.to_str()
    assert len(BPE) == 300
    assert len(Tokenizer.train(CAPTIONS, TokenizerConfig(kind="bpe", min_count=99))) == 260


def test_word_decodes_to_plain_text() -> None:
    assert WORD.decode(WORD.encode("A MAN'S dog, can\u2019t see: the T-shirt.")) == "a man's dog can't see the t-shirt"
    assert WORD.encode("A zebra") == [WORD.encode("a")[0], WORD.unk]
    assert WORD.decode(WORD.encode("a zebra dog")) == "a <unk> dog"


@settings(deadline=None)
@given(any_text)
def test_word_decoding_is_a_normal_form(text: str) -> None:
    own = Tokenizer.train([text, "anything"], TokenizerConfig(min_count=1))
    ids = own.encode(text)
    assert own.unk not in ids
    assume("n'tn't" not in own.decode(ids))  # no language: twice in a row is read as one word
    assert own.encode(own.decode(ids)) == ids


@given(any_text)
def test_bpe_is_lossless(text: str) -> None:
    assert BPE.decode(BPE.encode(text)) == text


@BOTH
@given(text=any_text)
def test_text_never_becomes_a_special_token(tokenizer: Tokenizer, text: str) -> None:
    special = {tokenizer.pad, tokenizer.bos, tokenizer.eos}
    if tokenizer.kind == "bpe":
        special.add(tokenizer.unk)
    assert special.isdisjoint(tokenizer.encode(text))


@pytest.mark.parametrize("kind", ["word", "bpe"])
def test_training_on_literals_does_not_make_them_tokens(kind: Literal["word", "bpe"]) -> None:
    captions = ["<eos><eos> <pad>"] * 50
    trained = Tokenizer.train(captions, TokenizerConfig(kind=kind, min_count=1))
    assert {0, 1, 2, 3}.isdisjoint(trained.encode("<eos><eos> <pad><bos>" if kind == "bpe" else captions[0]))


@BOTH
def test_control_tokens_are_no_text(tokenizer: Tokenizer) -> None:
    styled = tokenizer.with_controls("style", ["formal", "in verse"]).with_controls("length", ["short"])
    size = len(tokenizer)
    assert styled.controls("style") == {"formal": size, "in verse": size + 1}
    assert styled.controls("length") == {"short": size + 2}
    assert tokenizer.controls("style") == {}
    again = Tokenizer.from_str(styled.with_controls("style", ["formal", "new"]).to_str())
    assert again.controls("style") == {"formal": size, "in verse": size + 1, "new": size + 3}
    for text in (*CAPTIONS, "<style:formal> a dog", "<style:in verse>"):
        assert styled.encode(text) == tokenizer.encode(text)
    ids = [size, size + 2, *tokenizer.encode("a dog"), styled.eos]
    assert styled.decode(ids) == "a dog"
    assert [(word.text, word.start) for word in styled.words(ids)] == [("a", 2), ("dog", 3)]
    assert set(styled.suppressed) == {*tokenizer.suppressed, size, size + 1, size + 2}


def test_words_can_be_added_after_control_tokens() -> None:
    styled = WORD.with_controls("style", ["formal"])
    grown = styled.extend(["a zebra"], 1)
    assert len(grown) == len(styled) + 1
    assert grown.encode("zebra") == [len(styled)]
    assert grown.controls("style") == styled.controls("style") == {"formal": len(WORD)}
    assert grown.decode([len(WORD), len(styled)]) == "zebra"


@BOTH
def test_copies_keep_literals_apart(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    copies = [
        Tokenizer.load(tmp_path / "tokenizer.json"),
        Tokenizer.from_str(tokenizer.to_str()),
        pickle.loads(pickle.dumps(tokenizer)),
        copy.deepcopy(tokenizer),
        tokenizer.extend(["zebra"], 1),
    ]
    literal = "a <eos> dog <unk>"
    assert 2 not in tokenizer.encode(literal)
    for other in copies:
        assert other.encode(literal) == tokenizer.encode(literal)
        assert other.kind == tokenizer.kind
    assert [other.to_str() for other in copies[:4]] == [tokenizer.to_str()] * 4


@BOTH
def test_file_is_read_by_the_library_alone(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    plain = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    ids = tokenizer.encode("A man's dog can't see")
    assert plain.encode("A man's dog can't see").ids == ids
    assert plain.decode(ids) == tokenizer.decode(ids)


@BOTH
def test_decode_stops_at_the_first_end(tokenizer: Tokenizer) -> None:
    dog, red = tokenizer.encode("dog"), tokenizer.encode("red")
    assert tokenizer.decode([1, 0, *dog, 2, *red, 2, 0]) == "dog"
    assert tokenizer.decode([]) == tokenizer.decode([1]) == tokenizer.decode([2, *red]) == ""
    assert tokenizer.words([1, 0, *dog, 2, *red]) == [Word("dog", 2, 2 + len(dog))]


def test_broken_utf8_is_replaced() -> None:
    dog = BPE.encode("\U0001f436")
    assert len(dog) == 4
    assert BPE.decode(dog[:3]) == "\ufffd"
    broken = [*dog[:2], *BPE.encode(" red")]
    assert BPE.decode(broken) == "\ufffd red"
    assert BPE.words(broken) == [Word("\ufffd", 0, 2), Word("red", 2, len(broken))]


def test_words_of_word_tokens() -> None:
    ids = [1, *WORD.encode("a man's dog can't see"), 2, 0]
    expected = [("a", 1, 2), ("man's", 2, 4), ("dog", 4, 5), ("can't", 5, 7), ("see", 7, 8)]
    assert WORD.words(ids) == [Word(*word) for word in expected]


def test_words_of_bpe_tokens() -> None:
    words = BPE.words(BPE.encode("A dog,  the zebra."))
    assert [word.text for word in words] == ["A", "dog,", "the", "zebra."]
    ids = BPE.encode("A dog,  the zebra.")
    assert [BPE.decode(ids[word.start : word.stop]).strip() for word in words] == [word.text for word in words]


@pytest.mark.parametrize("size", [260, 300, 400])
def test_words_of_scripts_without_spaces(size: int) -> None:
    """A word for each token of whole characters, or for each character of several tokens."""
    captions = ["一只狗在草地上奔跑。", "一只猫在草地上。", "สุนัขวิ่งบนหญ้า", "T恤 is red"]
    bpe = Tokenizer.train(captions * 3, TokenizerConfig(kind="bpe", min_count=2, vocabulary_size=size))
    for caption in captions:
        ids = bpe.encode(caption)
        words = [word.text for word in bpe.words(ids)]
        assert "".join(words) == caption.replace(" ", "")
        assert "\ufffd" not in "".join(words)
    one = [word.text for word in bpe.words(bpe.encode(captions[0]))]
    if size == 260:  # bytes
        assert one == ["一", "只", "狗", "在", "草", "地", "上", "奔", "跑。"]
    assert [word.text for word in bpe.words(bpe.encode("T恤 is red"))][-2:] == ["is", "red"]


@BOTH
@given(data=st.data())
def test_words_join_to_the_caption(tokenizer: Tokenizer, data: st.DataObject) -> None:
    anything = st.lists(st.integers(0, len(tokenizer) - 1), max_size=30)
    ids = data.draw(st.one_of(anything, any_text.map(tokenizer.encode)))
    words = tokenizer.words(ids)
    text = tokenizer.decode(ids)
    assert "".join("".join(word.text for word in words).split()) == "".join(text.split())
    if not UNSPACED.search(text):
        assert " ".join(word.text for word in words).split() == text.split()
    edges = [edge for word in words for edge in (word.start, word.stop)]
    assert edges == sorted(edges)
    assert all(word.start < word.stop and word.text for word in words)


def knows(tokenizer: Tokenizer, word: str) -> bool:
    ids = tokenizer.encode(word)
    return bool(ids) and tokenizer.unk not in ids


def test_known_words_have_a_token_for_each_part() -> None:
    for word in ("dog", "Dog", "man's", "can\u2019t"):
        assert knows(WORD, word)
    for word in ("zebra", "zebra's", "", "."):
        assert not knows(WORD, word)
    assert knows(BPE, "zebra")
    assert not knows(BPE, "")


def test_extend_appends_new_words() -> None:
    extended = WORD.extend(["zebra lynx dog", "zebra lynx okapi", "zebra 's dog"], 2)
    assert vocabulary(extended) == [*vocabulary(WORD), "zebra", "lynx"]
    assert extended.decode(extended.encode("A zebra's lynx")) == "a zebra's lynx"
    assert len(extended) == len(WORD) + 2
    assert not knows(WORD, "zebra")
    assert WORD.extend([], 1).to_str() == WORD.to_str()
    assert BPE.extend(["zebra"], 1) is BPE


@BOTH
@pytest.mark.parametrize(
    "text",
    ["x" * 10_000, "a dog " * 2_000, "n't" * 3_000, "1." * 5_000, "\x00" * 10_000, "a" + " " * 10_000, "a'" * 5_000],
)
def test_long_captions(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.encode(tokenizer.decode(ids)) == ids or tokenizer.unk in ids


def test_endless_words_do_not_stop_the_regex_engine() -> None:
    assert set(WORD.encode("a'" * 10**6)) == {WORD.unk}


def test_a_hostile_rule_is_an_error_of_the_file() -> None:
    content = json.loads(WORD.to_str())
    content["pre_tokenizer"]["pattern"] = {"Regex": "(?:(?:x+x+)+(?=x*y))"}
    hostile = Tokenizer.from_str(json.dumps(content))
    with pytest.raises(CheckpointError, match="its rules fail"):
        hostile.encode("x" * 60)


@BOTH
def test_lone_surrogates_are_replaced(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("dog \ud83d") == tokenizer.encode("dog ?")
    trained = Tokenizer.train(["dog\ud83d dog"], TokenizerConfig(kind=tokenizer.kind, min_count=1))
    assert knows(trained, "dog")


def test_gpt2_file_uses_its_one_special_token() -> None:
    loaded = Tokenizer.from_str(gpt2().to_str())
    end = len(loaded) - 1
    assert loaded.kind == "bpe"
    assert {loaded.pad, loaded.bos, loaded.eos, loaded.unk} == {end}
    assert loaded.suppressed == ()
    text = "A man's dog isn't red <|endoftext|>"
    ids = loaded.encode(text)
    assert len(loaded.encode("!")) == 1
    assert end not in ids
    assert loaded.decode([end, *ids, end, *ids]) == text
    assert loaded.words([end, *ids, end])[0].start == 1


def test_useless_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"tokenizer\.min_count 9"):
        Tokenizer.train(CAPTIONS, TokenizerConfig(min_count=9))
    with pytest.raises(ConfigError, match=r"tokenizer\.vocabulary_size 259.*at least 260"):
        Tokenizer.train(CAPTIONS, TokenizerConfig(kind="bpe", vocabulary_size=259))


def broken_files() -> Iterator[tuple[str, bytes]]:
    word = json.loads(WORD.to_str())
    unknown = word | {"model": word["model"] | {"unk_token": "[UNK]"}}
    subwords = json.loads(BPE.to_str())
    panic = subwords | {"model": subwords["model"] | {"continuing_subword_prefix": "#" * 99}}
    yield "empty", b""
    yield "truncated", WORD.to_str().encode()[:900]
    yield "not_utf8", b"\xff\xfe{}"
    yield "other_json", b"[1, 2]"
    yield "other_kind", tokenizers.Tokenizer(tokenizers.models.Unigram()).to_str().encode()
    yield "no_decoder", json.dumps(word | {"decoder": None}).encode()
    yield "no_bytes", json.dumps(subwords | {"decoder": None}).encode()
    yield "no_end", WORD.to_str().replace("<eos>", "<stop>").encode()
    yield "no_unknown", json.dumps(unknown).encode()
    yield "panic", json.dumps(panic).encode()


@pytest.mark.parametrize("content", [pytest.param(content, id=name) for name, content in broken_files()])
def test_broken_files_are_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        Tokenizer.load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_missing_paths_are_named(tmp_path: Path) -> None:
    missing = tmp_path / "nowhere" / "tokenizer.json"
    with pytest.raises(CheckpointError, match=r"nowhere.*cannot read"):
        Tokenizer.load(missing)


@BOTH
def test_spawned_workers_encode_alike(tokenizer: Tokenizer) -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(tokenizer.encode, ("A man's <eos> dog",)) == tokenizer.encode("A man's <eos> dog")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_forked_workers_are_silent() -> None:
    program = """
import os
from captioner.config import TokenizerConfig
from captioner.tokenizer import Tokenizer
trained = Tokenizer.train(["a dog"] * 1000, TokenizerConfig(kind="bpe"))
child = os.fork()
if not child:
    os._exit(trained.decode(trained.encode("a dog")) != "a dog")
assert os.waitpid(child, 0)[1] == 0
"""
    environment = {name: value for name, value in os.environ.items() if name != "TOKENIZERS_PARALLELISM"}
    command = [sys.executable, "-W", "ignore", "-c", program]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_flickr8k_vocabulary_covers_validation() -> None:
    path = SHARED / "data" / "flickr8k" / "captions.json"
    if not path.is_file():
        pytest.skip("needs Flickr8k's captions in the shared folder")
    annotations = json.loads(path.read_text(encoding="utf-8"))
    split = {image["id"]: image["split"] for image in annotations["images"]}
    captions: dict[str, list[str]] = {"train": [], "val": [], "test": [], "extra": []}
    for annotation in annotations["annotations"]:
        captions[split[annotation["image_id"]]].append(annotation["caption"])
    trained = Tokenizer.train(captions["train"], TokenizerConfig())
    ids = [token for caption in captions["val"] for token in trained.encode(caption)]
    assert len(trained) == 3494
    assert 1 - ids.count(trained.unk) / len(ids) == pytest.approx(0.9747, abs=1e-4)
