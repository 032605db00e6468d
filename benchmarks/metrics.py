"""The metrics against pycocoevalcap, in one run, and the reward that training uses.

python -m benchmarks.metrics                                    with made-up captions
python -m benchmarks.metrics --references REFS.json --candidates RES.json

What pycocoevalcap (the extra `meteor`) does is timed where it and Java are there. Made-up captions are the COCO
captions of tests/metrics/golden with many words exchanged, so that 5,000 images have about as many different n-grams as
COCO's have; 113,200 images with 566,000 references stand for COCO's training set.
"""

import argparse
import contextlib
import json
import random
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from itertools import accumulate, islice, product
from pathlib import Path
from typing import Any

import numpy as np

from captioner.cli.candidates import read_candidates
from captioner.cli.score import read_references
from captioner.errors import ResourceError
from captioner.metrics.java import find_java
from captioner.metrics.ptb import tokenize
from captioner.metrics.reward import CiderReward
from captioner.metrics.scores import score

GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "metrics" / "golden" / "coco_one_against_four.json"
RARE_WORDS, RARE_SHARE = 25_000, 0.25
BATCH, SAMPLES, REPEATS = 50, 5, 20


def made_up(images: int, captions: int, seed: int) -> dict[str, list[str]]:
    """Image id -> captions."""
    draw = random.Random(seed)
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    templates = [caption.split() for several in golden["references"].values() for caption in several]
    syllables = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
    rare = ["".join(word) for word in islice(product(syllables, repeat=3), RARE_WORDS)]
    weights = list(accumulate(1 / (number + 10) for number in range(RARE_WORDS)))

    def caption() -> str:
        words = draw.choice(templates)
        exchanged = iter(draw.choices(rare, cum_weights=weights, k=len(words)))
        return " ".join(next(exchanged) if draw.random() < RARE_SHARE else word for word in words)

    return {str(image): [caption() for _ in range(captions)] for image in range(images)}


def seconds(action: Callable[[], Any], repeats: int = 1) -> tuple[float, Any]:
    """The best time of some runs, and the result of the last."""
    best, found = float("inf"), None
    for _ in range(repeats):
        start = time.perf_counter()
        found = action()
        best = min(best, time.perf_counter() - start)
    return best, found


def reason_without_official() -> str:
    """Why pycocoevalcap cannot be timed; empty where it can."""
    if find_spec("pycocoevalcap") is None:
        return "pycocoevalcap is not installed (extra meteor)"
    try:
        find_java()
    except ResourceError as error:
        return str(error)
    return ""


def official_tokens(texts: dict[str, list[str]]) -> dict[str, list[str]]:
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    rows = {image: [{"caption": text} for text in several] for image, several in texts.items()}
    tokens: dict[str, list[str]] = PTBTokenizer().tokenize(rows)
    return tokens


def official_scores(references: dict[str, list[str]], candidates: dict[str, list[str]]) -> dict[str, float]:
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    bleu, _ = Bleu(4).compute_score(references, candidates, verbose=0)
    found = {f"bleu_{order}": value for order, value in enumerate(bleu, start=1)}
    found["rouge_l"] = float(Rouge().compute_score(references, candidates)[0])
    found["cider_d"] = float(Cider().compute_score(references, candidates)[0])
    return found


class Counted(list[Any]):
    """A list with a length of its own: pycocoevalcap takes it for the number of images."""

    said = 0

    def __len__(self) -> int:
        return self.said


def scoring(references: dict[str, list[str]], candidates: dict[str, str], official: bool) -> None:
    """BLEU, ROUGE-L and CIDEr-D with and without tokenization."""
    references = {image: references[image] for image in candidates}
    flat = [text for several in references.values() for text in several]
    together, scores = seconds(lambda: score(candidates, references))  # first, so that nothing is warm
    ours = {"tokenization": seconds(lambda: (tokenize(flat), tokenize(list(candidates.values()))))[0]}
    words = iter(tokenize(flat))
    tokenized = {image: [next(words) for _ in several] for image, several in references.items()}
    own = dict(zip(candidates, tokenize(list(candidates.values())), strict=True))
    ours["scores"] = seconds(lambda: score(own, tokenized, tokenizer="none"), 3)[0]
    ours["together"] = together
    theirs: dict[str, float] = {}
    if official:
        lists = {image: [caption] for image, caption in candidates.items()}
        with contextlib.redirect_stdout(sys.stderr):
            theirs["tokenization"], tokens = seconds(lambda: (official_tokens(references), official_tokens(lists)))
            theirs["scores"], found = seconds(lambda: official_scores(*tokens))
        theirs["together"] = theirs["tokenization"] + theirs["scores"]
        apart = max(abs(scores.corpus[name] - value) for name, value in found.items())
    print(f"{len(candidates)} images, {len(flat)} references, seconds")
    print(f"{'':14}{'captioner':>12}{'official':>12}{'ratio':>8}")
    for name, value in ours.items():
        other = theirs.get(name)
        print(f"{name:14}{value:12.2f}" + (f"{other:12.2f}{other / value:8.1f}" if other is not None else ""))
    if official:
        print(f"largest difference of a corpus value: {apart:.1e}")
    print(f"95 % intervals of all metrics: {seconds(scores.intervals)[0]:.2f} s")


def rewarding(references: dict[str, list[str]], candidates: dict[str, str], official: bool) -> None:
    """A batch of samples, as training draws them."""
    images = list(candidates)
    flat = iter(tokenize([text for image in images for text in references[image]]))
    tokenized = [[next(flat) for _ in references[image]] for image in images]
    reward = CiderReward.of(tokenized, lambda captions: captions, eos=False)
    draw = random.Random(0)
    chosen = draw.sample(range(len(images)), BATCH)
    texts = [[draw.choice(tokenized[draw.choice(chosen)]) for _ in range(SAMPLES)] for _ in chosen]
    samples = [[text.split() for text in several] for several in texts]
    best, values = seconds(lambda: reward.reward(chosen, samples), REPEATS)
    print(f"\nreward of {BATCH} x {SAMPLES} samples: {best * 1000:.2f} ms")
    if not official:
        return
    from pycocoevalcap.cider.cider_scorer import CiderScorer

    whole = CiderScorer()
    for several in tokenized:
        whole += ("", several)
    whole.compute_doc_freq()

    def theirs() -> list[float]:
        scorer = CiderScorer()
        for image, several in zip(chosen, texts, strict=True):
            for text in several:
                scorer += (text, tokenized[image])
        scorer.document_frequency = whole.document_frequency
        scorer.crefs = Counted(scorer.crefs)
        scorer.crefs.said = len(images)
        found: list[float] = scorer.compute_cider()
        return found

    other, expected = seconds(theirs, 5)
    print(f"pycocoevalcap: {other * 1000:.0f} ms, ratio {other / best:.1f}")
    print(f"largest difference: {np.abs(values.ravel() - expected).max():.1e}")


def remembering(images: int) -> None:
    """Memory and time of the reward with a large training set."""
    references = list(made_up(images, 5, seed=1).values())
    before = peak()
    build, reward = seconds(lambda: CiderReward.of(references, lambda captions: captions))
    size = sum(array.nbytes for array in (*reward.references, reward.keys))
    print(f"\n{5 * images} references: {size / 2**20:.0f} MiB, {len(reward.keys)} n-grams, ", end="")
    print(f"built in {build:.1f} s (without tokenization), peak of the process {peak() - before:.0f} MiB more")
    chosen = random.Random(0).sample(range(images), BATCH)
    samples = [[text.split() for text in references[image]] for image in chosen]
    best, _ = seconds(lambda: reward.reward(chosen, samples), REPEATS)
    print(f"reward of {BATCH} x {SAMPLES} samples there: {best * 1000:.2f} ms")


def peak() -> float:
    """Peak resident MiB of this process; 0 where it is unknown."""
    if find_spec("resource") is None:
        return 0.0
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="The metrics against pycocoevalcap, and the reward of training.")
    parser.add_argument("--references", type=Path, metavar="REFS.json")
    parser.add_argument("--candidates", type=Path, metavar="RES.json")
    parser.add_argument("--images", type=int, default=5000, metavar="N", help="made-up ones")
    parser.add_argument("--train-images", type=int, default=113_200, metavar="N", help="made-up ones, for memory")
    arguments = parser.parse_args(argv)
    if (arguments.references is None) != (arguments.candidates is None):
        parser.error("--references and --candidates go together")
    if arguments.references is None:
        references = made_up(arguments.images, 5, seed=0)
        candidates = {image: several[0] for image, several in made_up(arguments.images, 1, seed=2).items()}
    else:
        references, candidates = read_references(arguments.references)[0], read_candidates(arguments.candidates)
    reason = reason_without_official()
    if reason:
        print(f"without the official tool: {reason}", file=sys.stderr)
    scoring(references, candidates, not reason)
    rewarding(references, candidates, not reason)
    remembering(arguments.train_images)
    return 0


if __name__ == "__main__":
    sys.exit(main())
