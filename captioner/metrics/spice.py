"""SPICE 1.0 by its authors' own program, from a folder that the user supplies (Anderson et al. 2016).

It parses captions with Stanford CoreNLP, whose models are too large to ship; nothing here stands in for it.
"""

import json
import math
import subprocess
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from captioner.errors import ResourceError
from captioner.metrics.java import find_java, java_command, java_environment
from captioner.metrics.metric import Captions, Result

MEMORY = "8G"
"""Java's heap, as the official tool sets it."""

JAR = "spice-1.0.jar"
_CORENLP = "https://nlp.stanford.edu/software/stanford-corenlp-full-2015-12-09.zip"


def spice(captions: Captions, folder: Path) -> Result:
    """SPICE by the program in `folder`, where nothing is written; NaN for images that the program does not score.

    Raises ResourceError where the folder lacks something, Java does not run, or the program fails.
    """
    check_folder(folder)
    java = find_java()
    with tempfile.TemporaryDirectory() as scratch:
        questions, answers = Path(scratch, "captions.json"), Path(scratch, "scores.json")
        questions.write_text(spice_input(captions), encoding="utf-8")
        command = spice_command(java, folder, questions, answers)
        done = subprocess.run(
            command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, env=java_environment(), check=False
        )
        if done.returncode or not answers.is_file():
            raise ResourceError(f"SPICE in {folder} failed: {_complaint(done)}; it wants {MEMORY} of memory and Java 8")
        return read_scores(json.loads(answers.read_text(encoding="utf-8")), len(captions.candidates))


def check_folder(folder: Path) -> None:
    """Raise a ResourceError that names every missing file of the folder, and where to get it."""
    missing = [name for name in _libraries(folder) if not (folder / name).is_file()]
    if not missing:
        return
    corenlp = [Path(name).name for name in missing if "corenlp" in name]
    sources = []
    if len(corenlp) < len(missing):
        sources.append("copy the folder `spice` of the package pycocoevalcap (pip install 'captioner[meteor]')")
    if corenlp or JAR in missing:
        names = " and ".join(corenlp or ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar"))
        sources.append(f"put {names} of {_CORENLP} into its lib")
    raise ResourceError(f"SPICE folder {folder} lacks {', '.join(missing)}: {', then '.join(sources)}", "needs_extra")


def spice_command(java: str, folder: Path, questions: Path, answers: Path) -> list[str]:
    """The official command without its cache, which it would write into the folder."""
    jar = folder.resolve() / JAR
    return java_command(java, jar, str(questions), "-out", str(answers), "-subset", "-silent", memory=MEMORY)


def spice_input(captions: Captions) -> str:
    """The JSON that the program reads: images are numbered from 0."""
    pairs = zip(captions.candidates, captions.references, strict=True)
    return json.dumps(
        [{"image_id": image, "test": caption, "refs": list(others)} for image, (caption, others) in enumerate(pairs)]
    )


def read_scores(answers: Sequence[Any], images: int) -> Result:
    """The F-scores over all tuples from the program's answers, which may be in any order."""
    per_image = np.full(images, math.nan)
    for answer in answers:
        score = answer["scores"]["All"]["f"]
        per_image[answer["image_id"]] = math.nan if score is None else score
    return Result.from_mean("spice", per_image, "SPICE gave no score for an image")


def _libraries(folder: Path) -> list[str]:
    """The files that must be in the folder: the jar, and once it is there the jars that its manifest names."""
    jar = folder / JAR
    if not jar.is_file():
        return [JAR]
    try:
        with zipfile.ZipFile(jar) as archive:
            manifest = archive.read("META-INF/MANIFEST.MF").decode()
    except (zipfile.BadZipFile, KeyError, OSError) as error:
        raise ResourceError(f"{jar}: not a jar ({error}); copy it again from the package pycocoevalcap") from error
    lines = manifest.replace("\r\n", "\n").replace("\n ", "").splitlines()  # a line break and a space continue a line
    paths = next((line.partition(":")[2].split() for line in lines if line.startswith("Class-Path:")), [])
    return [JAR, *paths]


def _complaint(done: subprocess.CompletedProcess[bytes]) -> str:
    """The exit code and the first line with an exception, else the last line."""
    lines = [line.strip() for line in done.stderr.decode(errors="replace").splitlines() if line.strip()]
    last = lines[-1] if lines else "no message"
    telling = (line for line in lines if "Exception" in line or "Error" in line)
    return f"exit code {done.returncode}, {next(telling, last)}"
