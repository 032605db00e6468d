"""SPICE's adapter: the files it needs, how it runs the program, what it reads; the real one up to its parser."""

import importlib.util
import json
import math
import os
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from captioner.errors import ResourceError
from captioner.metrics.java import find_java
from captioner.metrics.metric import Captions
from captioner.metrics.spice import JAR, check_folder, read_scores, spice

CORENLP = ["lib/stanford-corenlp-3.6.0.jar", "lib/stanford-corenlp-3.6.0-models.jar"]
DOWNLOAD = "https://nlp.stanford.edu/software/stanford-corenlp-full-2015-12-09.zip"
CAPTIONS = Captions(["a dog runs"], [["the dog is running", "a brown dog"]])


@pytest.fixture
def jar_only(tmp_path: Path) -> Path:
    """A folder with a jar that needs two others."""
    with zipfile.ZipFile(tmp_path / JAR, "w") as jar:
        manifest = f"Manifest-Version: 1.0\r\nClass-Path: {CORENLP[0]} {CORENLP[1][:20]}\r\n {CORENLP[1][20:]}\r\n"
        jar.writestr("META-INF/MANIFEST.MF", f"{manifest}Main-Class: some.Scorer\r\n")
    return tmp_path


def complete(folder: Path) -> Path:
    (folder / "lib").mkdir()
    for name in CORENLP:
        (folder / name).write_bytes(b"")
    return folder


def test_a_folder_that_lacks_all(tmp_path: Path) -> None:
    with pytest.raises(ResourceError) as caught:
        spice(CAPTIONS, tmp_path)
    assert str(caught.value) == (
        f"SPICE folder {tmp_path} lacks spice-1.0.jar: copy the folder `spice` of the package pycocoevalcap "
        "(pip install 'captioner[meteor]'), then put stanford-corenlp-3.6.0.jar and "
        f"stanford-corenlp-3.6.0-models.jar of {DOWNLOAD} into its lib"
    )
    assert caught.value.code == "needs_extra"


def test_a_folder_that_lacks_the_parser(jar_only: Path) -> None:
    with pytest.raises(ResourceError) as caught:
        check_folder(jar_only)
    assert str(caught.value) == (
        f"SPICE folder {jar_only} lacks {CORENLP[0]}, {CORENLP[1]}: put stanford-corenlp-3.6.0.jar and "
        f"stanford-corenlp-3.6.0-models.jar of {DOWNLOAD} into its lib"
    )
    (jar_only / "lib").mkdir()
    (jar_only / CORENLP[0]).write_bytes(b"")
    with pytest.raises(ResourceError, match=rf"lacks {CORENLP[1]}: put stanford-corenlp-3\.6\.0-models\.jar of"):
        check_folder(jar_only)


def test_a_complete_folder_is_accepted(jar_only: Path) -> None:
    check_folder(complete(jar_only))


def test_a_jar_that_is_none(tmp_path: Path) -> None:
    (tmp_path / JAR).write_bytes(b"<html>")
    with pytest.raises(ResourceError, match=r"spice-1\.0\.jar: not a jar .* copy it again"):
        check_folder(tmp_path)


def answer(image: int, score: float | None) -> dict[str, object]:
    empty = {"pr": 0.0, "re": 0.0, "f": 0.0, "fn": 1.0, "numImages": 1.0}
    return {"image_id": image, "scores": {"Relation": empty, "All": {**empty, "f": score}, "Object": empty}}


def test_scores_are_those_of_the_images() -> None:
    found = read_scores([answer(1, 0.25), answer(0, 0.5)], 2)
    assert found.corpus == 0.375
    np.testing.assert_array_equal(found.per_image[:, 0], [0.5, 0.25])


@pytest.mark.parametrize("answers", [[answer(0, 0.5), answer(1, None)], [answer(0, 0.5)]])
def test_a_score_that_is_missing_is_no_zero(answers: list[dict[str, object]]) -> None:
    found = read_scores(json.loads(json.dumps(answers)), 2)
    assert math.isnan(found.corpus.item())
    np.testing.assert_array_equal(found.per_image[:, 0], [0.5, math.nan])


def test_the_error_of_a_program_without_a_parser(tmp_path: Path) -> None:
    """The real program; in place of the parser it finds files that are none."""
    package = importlib.util.find_spec("pycocoevalcap")
    if package is None:
        pytest.skip("pycocoevalcap is not installed: pip install 'captioner[meteor]'")
    try:
        find_java()
    except ResourceError as error:
        pytest.skip(str(error))
    folder = tmp_path / "my spice"
    shutil.copytree(Path(next(iter(package.submodule_search_locations or ())), "spice"), folder)
    for name in CORENLP:
        (folder / name).touch()
    before = sorted(folder.rglob("*"))
    with pytest.raises(ResourceError, match=r"my spice failed: exit code 1, .*NoClassDefFoundError: edu/stanford/nlp"):
        spice(CAPTIONS, folder)
    assert sorted(folder.rglob("*")) == before


@pytest.mark.skipif(os.name == "nt", reason="the program here is a shell script")
def test_the_program_gets_the_captions_and_gives_the_scores(jar_only: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a Java that stores what it is asked, and answers with one over the number of references."""
    home = jar_only / "home"
    (home / "bin").mkdir(parents=True)
    program = f"""
        import json, pathlib, sys
        *options, jar, asked, out, answered, subset, silent = sys.argv[1:] + 6 * [""] * ("-version" in sys.argv)
        if asked:
            questions = json.load(open(asked))
            f = [1 / len(each["refs"]) for each in questions]
            scores = [{{"image_id": image, "scores": {{"All": {{"f": value}}}}}} for image, value in enumerate(f)]
            json.dump(scores[::-1], open(answered, "w"))
            command = [*options, jar, out, subset, silent]
            json.dump([command, str(pathlib.Path.cwd()), questions], open({str(home / "calls.json")!r}, "w"))
    """
    java = home / "bin" / "java"
    java.write_text(f"#!{sys.executable}\n" + "\n".join(line[8:] for line in program.splitlines()))
    java.chmod(0o755)
    monkeypatch.setenv("JAVA_HOME", str(home))
    found = spice(Captions(["a dog", "café"], [["the dog"], ["a sign", "a café"]]), complete(jar_only))
    assert found.corpus == 0.75
    np.testing.assert_array_equal(found.per_image[:, 0], [1, 0.5])
    command, folder, questions = json.loads((home / "calls.json").read_text())
    # The official command, without its cache.
    assert (command[0], command[-5:]) == ("-Xmx8G", ["-jar", str(jar_only / JAR), "-out", "-subset", "-silent"])
    assert folder == str(jar_only)
    assert questions == [
        {"image_id": 0, "test": "a dog", "refs": ["the dog"]},
        {"image_id": 1, "test": "café", "refs": ["a sign", "a café"]},
    ]


def test_each_candidate_has_references(jar_only: Path) -> None:
    with pytest.raises(ValueError, match="shorter"):
        spice(Captions(["a dog", "a cat"], [["the dog"]]), complete(jar_only))
