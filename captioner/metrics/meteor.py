"""METEOR 1.5, English, by its authors' own program: the jar and the paraphrases of the package pycocoevalcap.

Denkowski and Lavie, Meteor Universal, 2014. The program answers each line `SCORE ||| reference ||| ... ||| candidate`
with the statistics of the candidate. The corpus value comes from their sums: it is not the mean.
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from captioner.errors import ResourceError
from captioner.metrics.java import failure, run_jar
from captioner.metrics.metric import Captions, Result
from captioner.metrics.significance import Statistics

MEMORY = "2G"
"""Java's heap, as the official tool sets it."""

JAR = "meteor-1.5.jar"
PARAPHRASES = Path("data", "paraphrase-en.gz")

ALPHA, BETA, GAMMA, DELTA = 0.85, 0.2, 0.6, 0.75
"""The program's parameters for English: the weight of recall, two of the penalty, the weight of content words."""
WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])
"""The program's weights of matches: exact, by stem, by synonym, by paraphrase."""

_SIZE, _CHUNKS = 23, 20
"""The number of statistics of an image, and the place of the number of chunks among them."""
_LINE_ENDS = str.maketrans("\r\n", "  ")
"""Characters that end a line for the program; it takes other separators of lines for parts of words."""


def meteor(captions: Captions) -> Result:
    """METEOR, equal to the official tool's. Raises ResourceError without Java or the jar, and where the program fails.

    Its statistics (I, 23) are the candidate's and the reference's words and function words (4), matches of content
    and of function words of both by each of the four ways (16), chunks, and matched words of both (2).
    """
    folder = _installed()
    if not captions.candidates:
        return Result(("meteor",), Statistics(np.zeros((0, _SIZE)), meteor_of))
    questions = [_question(*pair) for pair in zip(captions.candidates, captions.references, strict=True)]
    # Without -a the program does not find its paraphrases where the path has a space.
    arguments = ("-", "-", "-stdio", "-l", "en", "-norm", "-a", str(folder / PARAPHRASES))
    done = run_jar(folder / JAR, *arguments, memory=MEMORY, questions="".join(questions).encode(errors="replace"))
    answers = done.stdout.decode().splitlines()
    if done.returncode or len(answers) != len(questions):
        raise ResourceError(f"METEOR failed: {failure(done)}; give Java {MEMORY} of memory, or leave meteor out")
    statistics = np.array([answer.split() for answer in answers], np.float64).reshape(-1, _SIZE)
    # A candidate that is its reference in one chunk has no penalty: the program lets it count as none.
    whole = (statistics[:, [0, 1]] == statistics[:, [21, 22]]).all(axis=1) & (statistics[:, _CHUNKS] == 1)
    statistics[whole, _CHUNKS] = 0
    return Result(("meteor",), Statistics(statistics, meteor_of))


def meteor_of(statistics: NDArray[np.float64]) -> NDArray[np.float64]:
    """(..., 1): METEOR of statistics (..., 23), an image's or sums over images, as the program computes it."""
    lengths, chunks, matched = statistics[..., :2], statistics[..., _CHUNKS], statistics[..., _CHUNKS + 1 :]
    function_words = statistics[..., 2:4]
    matches = statistics[..., 4:_CHUNKS].reshape(*statistics.shape[:-1], 4, 2, 2)  # ways, kind of word, side
    weighted = np.einsum("...wks,w,k->...s", matches, WEIGHTS, np.array([DELTA, 1 - DELTA]))
    possible = DELTA * (lengths - function_words) + (1 - DELTA) * function_words
    with np.errstate(divide="ignore", invalid="ignore"):
        precision, recall = np.moveaxis(weighted / possible, -1, 0)
        mean = precision * recall / (ALPHA * precision + (1 - ALPHA) * recall)
        penalty = GAMMA * (chunks / matched.mean(axis=-1)) ** BETA
    scores: NDArray[np.float64] = np.nan_to_num(mean * (1 - penalty))[..., None]
    return scores


def _installed() -> Path:
    """The folder of pycocoevalcap with the jar; none of its code is run."""
    package = importlib.util.find_spec("pycocoevalcap")
    for place in (package.submodule_search_locations or ()) if package else ():
        folder = Path(place, "meteor")
        if (folder / JAR).is_file() and (folder / PARAPHRASES).is_file():
            return folder
    raise ResourceError(
        f"METEOR needs {JAR} and {PARAPHRASES.name} of the package pycocoevalcap, which are not installed: "
        "pip install 'captioner[meteor]'",
        code="needs_extra",
    )


def _question(candidate: str, references: Sequence[str]) -> str:
    """As the official tool asks: `|||` is removed from candidates, and splits a reference in two."""
    candidate = candidate.replace("|||", "").replace("  ", " ")
    return " ||| ".join(["SCORE", " ||| ".join(references), candidate]).translate(_LINE_ENDS) + "\n"
