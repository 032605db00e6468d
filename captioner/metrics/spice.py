"""SPICE 1.0 by its authors' own program, from a folder that the user supplies (Anderson et al. 2016).

It parses captions with Stanford CoreNLP, whose models are too large to ship; nothing here stands in for it.
"""

import json
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from captioner.errors import ConfigError, ResourceError
from captioner.metrics.java import failure, run_jar
from captioner.metrics.metric import Captions, Result
from captioner.metrics.significance import Statistics

MEMORY = "8G"
"""Java's heap, as the official tool sets it."""

JAR = "spice-1.0.jar"
_CORENLP = "https://nlp.stanford.edu/software/stanford-corenlp-full-2015-12-09.zip"


def spice(captions: Captions, folder: Path | None) -> Result:
    """SPICE by the program in `folder`, where nothing is written; NaN for images that the program does not score.

    Raises ResourceError without Java and where the program fails, and the errors of `check_folder`.
    """
    folder = check_folder(folder)
    pairs = zip(captions.candidates, captions.references, strict=True)
    questions = [{"image_id": image, "test": text, "refs": list(others)} for image, (text, others) in enumerate(pairs)]
    with tempfile.TemporaryDirectory() as scratch:
        asked, answered = Path(scratch, "captions.json"), Path(scratch, "scores.json")
        asked.write_text(json.dumps(questions), encoding="utf-8")
        # The official command without its cache, which it would write into the folder.
        arguments = (str(asked), "-out", str(answered), "-subset", "-silent")
        done = run_jar(folder.resolve() / JAR, *arguments, memory=MEMORY, folder=folder)
        if done.returncode or not answered.is_file():
            raise ResourceError(f"SPICE in {folder} failed: {failure(done)}; it needs {MEMORY} of memory and Java 8")
        return read_scores(json.loads(answered.read_text(encoding="utf-8")), len(questions))


def check_folder(folder: Path | None) -> Path:
    """The folder if it is complete. Raises ConfigError for None, ResourceError that names every missing file."""
    if folder is None:
        raise ConfigError("metric spice: needs the folder of SPICE 1.0; give spice_dir (--spice-dir)")
    missing = [name for name in _libraries(folder) if not (folder / name).is_file()]
    if not missing:
        return folder
    corenlp = [Path(name).name for name in missing if "corenlp" in name]
    sources = []
    if len(corenlp) < len(missing):
        sources.append("copy the folder `spice` of the package pycocoevalcap (pip install 'captioner[meteor]')")
    if corenlp or JAR in missing:
        names = " and ".join(corenlp or ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar"))
        sources.append(f"put {names} of {_CORENLP} into its lib")
    raise ResourceError(f"SPICE folder {folder} lacks {', '.join(missing)}: {', then '.join(sources)}", "needs_extra")


def read_scores(answers: Sequence[Any], images: int) -> Result:
    """The F-scores over all tuples from the program's answers, which may be in any order."""
    scores = np.full(images, np.nan)
    for answer in answers:
        scores[answer["image_id"]] = answer["scores"]["All"]["f"]  # None becomes NaN
    return Result(("spice",), Statistics.mean(scores), "SPICE gave no score for an image")


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
