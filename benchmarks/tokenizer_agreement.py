"""Compare our PTB tokenizer with the official one: `python -m benchmarks.tokenizer_agreement [--captions FILE ...]`.

Needs Java and the extra `meteor`. Tokenizes each source in one call, as the metrics do, and counts the captions that
differ, by class. Without files, uses the shared data that exists (CAPTIONER_SHARED, default ../shared), and odd
captions generated from pieces. A file is text with one caption per line, or JSON: COCO annotations or
{image: [captions]}.
"""

import argparse
import gzip
import importlib.util
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from captioner.errors import ResourceError
from captioner.metrics.java import find_java, java_environment
from captioner.metrics.ptb import LINE_BREAKS, PUNCTUATION, tokenize

PIECES = """
a A an man Dogs CAT riding the The It He on with bus's café naïve 日本 é No.1 no. No. fig. art. op. pp. K. J. U.S.
U.K. a.m. p.m. e.g. i.e. etc. Mr. Mrs. Dr. St. Ave. Blvd. Co. Inc. jr. Jr. Ph.D. vs. ft. Ft. oz. in. lb. Feb. Mon.
it's don't don’t can't cannot gonna gimme we've I'm she'll who'd y'all o'clock O'Brien l'oreal ma'am rock'n'roll 'n'
'em 'tis '90s 1990's '90 boys' 'a ‘b’ “c” "d" " ' `` '' ` dog., dog." x.' 5 12 1,000 3.5 .5 1/2 22 3/4 ½ 2½ 555-1234
(650) 723-0293 +44 20 7946 0958 10:30 12/25/2012 10-20 1st 22nd 3-D 4x4 $5 £5 €5 50¢ US$5 5% #5 5°C ©2012 a@b.com
http://www.x.com/a?b=c www.foo.com foo.com/bar foo.jpg @user #tag <b> </b> <br/> <i a="b"> &amp; &lt; &quot; &nbsp;
&#39; :) :-( ;-D =P <3 ^_^ (^_^) -_- . , ; : ! ? !! ?! ... .. … - -- --- – — ( ) [sic] {x} * ** / \\ + = ~ _ __ & @
AT&T R&B black&white C++ C# A+ and/or w/ w/o a-b t-shirt half-eaten -x x- word.word word!word 😀 ❤ ☺ ★ ™ \ufe0f
\u200d
"""
"""Pieces to generate captions from."""


def jar() -> Path:
    """Path of the official tokenizer in the installed pycocoevalcap. Raises ResourceError if it is missing."""
    spec = importlib.util.find_spec("pycocoevalcap")
    for folder in spec.submodule_search_locations or () if spec else ():
        if (path := Path(folder, "tokenizer", "stanford-corenlp-3.4.1.jar")).is_file():
            return path
    raise ResourceError("pycocoevalcap is not installed: pip install 'captioner[meteor]'", code="needs_extra")


def official(captions: Sequence[str]) -> list[str]:
    """Tokenize one-line captions with coco-caption. Raises ResourceError without Java or the jar."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "captions.txt")
        path.write_bytes("\n".join(captions).encode())
        command = [find_java(), "-Dfile.encoding=UTF-8", "-cp", str(jar()), "edu.stanford.nlp.process.PTBTokenizer"]
        command += ["-preserveLines", "-lowerCase", str(path)]
        run = subprocess.run(command, capture_output=True, check=True, env=java_environment())
    lines = run.stdout.decode().split("\n")[: len(captions)]
    if len(lines) != len(captions):
        raise ResourceError(f"the official tokenizer printed {len(lines)} lines for {len(captions)} captions")
    return [" ".join(word for word in line.rstrip().split(" ") if word not in PUNCTUATION) for line in lines]


def difference(caption: str) -> str:
    """The known class of differences that a caption belongs to."""
    if "Σ" in caption:
        return "capital sigma beside digits or hyphens"
    if max(map(ord, caption), default=0) > 0xFFFF:
        return "characters beyond the BMP in addresses"
    return "word of more than 250 characters" if max(map(len, caption.split()), default=0) > 250 else "unknown"


def made_up(count: int, seed: int = 0) -> list[str]:
    """Generate odd captions from pieces that the tokenizer treats specially, with and without spaces."""
    chance = random.Random(seed)
    pieces = PIECES.split()
    gaps = ("", "  ", " ", " ", " ", " ", " ", " ")
    return [
        "".join(chance.choice(pieces) + chance.choice(gaps) for _ in range(chance.randint(1, 9))) for _ in range(count)
    ]


def read_captions(path: Path) -> list[str]:
    """The captions of a file, in order."""
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    text = content.decode()
    if ".jsonl" in path.suffixes:
        return [json.loads(line)["text"] for line in text.splitlines()]
    if ".json" not in path.suffixes:
        return text.splitlines()
    data: Any = json.loads(text)
    if "annotations" in data:
        return [annotation["caption"] for annotation in data["annotations"]]
    return [
        caption for captions in data.values() for caption in ([captions] if isinstance(captions, str) else captions)
    ]


def shared_sources(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield (name, captions) for the shared data that exists."""
    names = ["coco_captions_text_only.json", "flickr8k/captions.json"]
    names += sorted(str(path.relative_to(folder)) for path in folder.glob("metric_fixtures/*/refs.json*"))
    names += sorted(str(path.relative_to(folder)) for path in folder.glob("metric_fixtures/*/cand_*.json"))
    names += sorted(str(path.relative_to(folder)) for path in folder.glob("metric_fixtures/ptb_tokenizer/*.jsonl.gz"))
    for name in names:
        if (folder / name).is_file():
            yield name, read_captions(folder / name)
    for judgements in sorted((folder / "flickr8k" / "human_judgements").glob("*Annotations.txt")):
        karpathy = json.loads((folder / "flickr8k" / "dataset_flickr8k_karpathy.json").read_bytes())
        texts = {
            f"{image['filename']}#{number}": sentence["raw"]
            for image in karpathy["images"]
            for number, sentence in enumerate(image["sentences"])
        }
        candidates = [line.split("\t")[1] for line in judgements.read_text(encoding="utf-8").splitlines()]
        yield f"flickr8k/{judgements.name}", [texts[candidate] for candidate in candidates if candidate in texts]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--captions", nargs="*", type=Path, help="compare on these files instead")
    parser.add_argument("--made-up", type=int, default=50_000, help="number of odd captions to generate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--examples", type=int, default=5, help="number of differences to print per source")
    arguments = parser.parse_args(argv)

    if arguments.captions:
        sources = [(str(path), read_captions(path)) for path in arguments.captions]
    else:
        shared = Path(os.environ.get("CAPTIONER_SHARED", Path(__file__).resolve().parents[2] / "shared")) / "data"
        sources = [*shared_sources(shared), ("made up", made_up(arguments.made_up, arguments.seed))]

    classes: Counter[str] = Counter()
    total = 0
    print(f"{'source':58}{'captions':>9}{'equal':>9}{'%':>9}{'jar s':>8}{'ours s':>8}")
    for name, raw in sources:
        captions = [caption.translate(LINE_BREAKS) for caption in raw]
        begin = time.perf_counter()
        expected = official(captions)
        middle = time.perf_counter()
        found = tokenize(captions)
        end = time.perf_counter()
        differing = [row for row in zip(captions, expected, found, strict=True) if row[1] != row[2]]
        classes.update(difference(caption) for caption, _, _ in differing)
        total += len(captions)
        equal = len(captions) - len(differing)
        share = 100 * equal / max(len(captions), 1)
        print(f"{name:58}{len(captions):9}{equal:9}{share:9.3f}{middle - begin:8.2f}{end - middle:8.2f}", flush=True)
        for row in differing[: arguments.examples]:
            print("    {!r}\n        official {!r}\n        ours     {!r}".format(*row))
    print(f"{total - classes.total()} of {total} captions equal")
    for name, count in classes.most_common():
        print(f"    {count:6} {name}")
    return 1 if classes["unknown"] else 0


if __name__ == "__main__":
    sys.exit(main())
