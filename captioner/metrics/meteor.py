"""METEOR 1.5, English, by its authors' own program: the jar and the paraphrases of the wheel pycocoevalcap.

Denkowski and Lavie, Meteor Universal, 2014. The program reads one question a line from standard input:
`SCORE ||| reference ||| ... ||| candidate` gives the statistics of a caption, `EVAL ||| statistics ||| ...` a score for
each of them and then that of all. The corpus value comes from summed statistics: it is not the mean.

I images · K = 23 statistics of an image
"""

import contextlib
import functools
import importlib.util
import os
import subprocess
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from captioner.errors import ResourceError
from captioner.metrics.java import find_java, java_command, java_environment
from captioner.metrics.metric import Captions, Result
from captioner.metrics.significance import Statistics

NAMES = ("meteor",)

MEMORY = "2G"
"""Java's heap, as the official tool sets it."""

JAR = "meteor-1.5.jar"
PARAPHRASES = Path("data", "paraphrase-en.gz")

ALPHA, BETA, GAMMA, DELTA = 0.85, 0.2, 0.6, 0.75
"""The program's parameters for English: the weight of recall, two of the penalty, the weight of content words."""
WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])
"""The program's weights of matches: exact, by stem, by synonym, by paraphrase."""

_CHUNKS = 20
_LINES = str.maketrans("\r\n", "  ")  # these end a question; the program accepts other line separators


class Meteor:
    """One METEOR process that starts with the first question and ends with `close`, `with` or this program.

    Threads take turns. A process that died is restarted, once a question. `folder` holds the jar and the paraphrases;
    by default those of pycocoevalcap. Raises ResourceError without Java or the jar.
    """

    def __init__(self, folder: Path | None = None, java: str | None = None) -> None:
        folder = _installed() if folder is None else folder
        # Without -a the program does not find its paraphrases where the path has a space.
        arguments = ("-", "-", "-stdio", "-l", "en", "-norm", "-a", str(folder / PARAPHRASES))
        self._command = java_command(java or find_java(), folder / JAR, *arguments, memory=MEMORY)
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._complaints: deque[str] = deque(maxlen=20)
        self._stop: Callable[[], object] = lambda: None

    def score(self, captions: Captions) -> Result:
        """METEOR, equal to the official tool's; NaN of no images.

        Its statistics (I, 23) are the candidate's and the reference's words and function words (4), matches of content
        and of function words of both by each of the four ways (16), chunks, and matched words of both (2).
        """
        if not captions.candidates:
            return Result(NAMES, np.full(1, np.nan), np.empty((0, 1)), Statistics(np.empty((0, 23)), meteor_of))
        with self._lock:
            pairs = zip(captions.candidates, captions.references, strict=True)
            counts = [self._ask(_question(candidate, several))[0] for candidate, several in pairs]
            answers = self._ask(" ||| ".join(["EVAL", *counts]), len(counts) + 1)
        *per_image, corpus = map(float, answers)
        statistics = np.array([list(map(float, each.split())) for each in counts])
        # A candidate that is its reference in one chunk has no penalty: the program lets it count as none.
        whole = (statistics[:, [0, 1]] == statistics[:, [21, 22]]).all(axis=1) & (statistics[:, _CHUNKS] == 1)
        statistics[whole, _CHUNKS] = 0
        return Result(NAMES, np.array([corpus]), np.array(per_image)[:, None], Statistics(statistics, meteor_of))

    def close(self) -> None:
        """End the process; another question would start a new one."""
        self._stop()
        self._process = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, question: str, answers: int = 1) -> list[str]:
        """The lines that answer a question; if the process dies of it, from a second one."""
        for _ in range(2):
            try:
                return self._exchange(question, answers)
            except OSError as error:
                complaint = str(error)
                self.close()
            except BaseException:
                self.close()  # after an interruption the next question would get this one's answer
                raise
        complaint = " ".join(self._complaints) or complaint
        raise ResourceError(
            f"METEOR died twice over one caption: {complaint}; give Java {MEMORY} of memory, or leave meteor out"
        )

    def _exchange(self, question: str, answers: int) -> list[str]:
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{question}\n".encode(errors="replace"))
        process.stdin.flush()
        lines = [process.stdout.readline() for _ in range(answers)]
        if not lines[-1]:
            raise BrokenPipeError("it ended without an answer")
        return [line.decode().strip() for line in lines]

    def _start(self) -> subprocess.Popen[bytes]:
        pipe = subprocess.PIPE
        process = subprocess.Popen(self._command, stdin=pipe, stdout=pipe, stderr=pipe, env=java_environment())
        self._complaints.clear()
        drain = threading.Thread(target=_drain, args=(process, self._complaints), daemon=True)
        drain.start()
        self._stop = weakref.finalize(self, _end, process, drain)
        self._process = process
        return process


def meteor(captions: Captions) -> Result:
    """METEOR by a process that stays warm for the next call. Raises ResourceError without Java or the jar."""
    return _warm(os.getpid()).score(captions)


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


@functools.lru_cache(maxsize=1)
def _warm(process: int) -> Meteor:
    """The METEOR process of the process with this id: a fork must not share its parent's."""
    return Meteor()


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
    return " ||| ".join(["SCORE", " ||| ".join(references), candidate]).translate(_LINES)


def _drain(process: subprocess.Popen[bytes], complaints: deque[str]) -> None:
    """Read its standard error: a full pipe would block it."""
    assert process.stderr is not None
    complaints.extend(line.decode(errors="replace").strip() for line in process.stderr)


def _end(process: subprocess.Popen[bytes], drain: threading.Thread) -> None:
    """Close its input, which ends it."""
    assert process.stdin is not None
    with contextlib.suppress(OSError):
        process.stdin.close()
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    drain.join()
    for pipe in (process.stdout, process.stderr):
        assert pipe is not None
        pipe.close()
