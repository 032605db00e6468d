"""METEOR: the official scores, odd captions and places, and a program that dies or is interrupted."""

import importlib.util
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from captioner.errors import ResourceError
from captioner.metrics.java import find_java
from captioner.metrics.meteor import JAR, PARAPHRASES, meteor
from captioner.metrics.metric import Captions

CANDIDATE, REFERENCES = "a man is riding a wave", ["a guy surfs on a big wave", "the man rides a wave ."]


def installed() -> Path:
    package = importlib.util.find_spec("pycocoevalcap")
    if package is None:
        pytest.skip("pycocoevalcap is not installed: pip install 'captioner[meteor]'")
    return Path(next(iter(package.submodule_search_locations or ())), "meteor")


@pytest.fixture(scope="module", autouse=True)
def java() -> None:
    installed()
    try:
        find_java()
    except ResourceError as error:
        pytest.skip(str(error))


ODD = {
    "plain": (CANDIDATE, REFERENCES),
    "empty candidate": ("", REFERENCES),
    "empty reference": (CANDIDATE, [""]),
    "both empty": ("", [""]),
    "empty and others": (CANDIDATE, ["", *REFERENCES]),
    "separator in candidate": (CANDIDATE.replace(" is ", " ||| is "), REFERENCES),
    "separator in reference": (CANDIDATE, [" ||| ".join(REFERENCES)]),
    "line breaks": (CANDIDATE.replace(" is ", "\nis\r"), [each.replace(" a ", "\r\na ") for each in REFERENCES]),
}


@pytest.fixture(scope="module")
def odd() -> dict[str, float]:
    """METEOR of odd captions, and of any texts that Hypothesis makes up, each followed by the plain caption.

    One call of METEOR takes seconds to start, so there is one for all of them.
    """
    captions = dict(ODD)

    @settings(max_examples=200)
    @given(st.text(st.characters()), st.lists(st.text(st.characters()), max_size=3))
    def collect(candidate: str, references: list[str]) -> None:
        captions[f"any {len(captions)}"] = (candidate, references)
        captions[f"plain {len(captions)}"] = (CANDIDATE, REFERENCES)

    collect()
    candidates, references = zip(*captions.values(), strict=True)
    scores = meteor(Captions(candidates, references)).per_image[:, 0].tolist()
    return dict(zip(captions, scores, strict=True))


def test_empty_captions(odd: dict[str, float]) -> None:
    assert [odd["empty candidate"], odd["empty reference"], odd["both empty"]] == [0, 0, 0]
    assert odd["empty and others"] == odd["plain"] > 0


def test_separators_inside_captions(odd: dict[str, float]) -> None:
    assert odd["separator in candidate"] == odd["line breaks"] == odd["plain"]
    assert odd["separator in reference"] == odd["plain"]  # as in the official tool: it is two references


def test_any_text_has_a_score_and_the_next_caption_its_own(odd: dict[str, float]) -> None:
    plain = [score for name, score in odd.items() if name.startswith("plain ")]
    assert len(plain) >= 50
    assert set(plain) == {odd["plain"]}
    assert all(0 <= score <= 1 for score in odd.values())


@pytest.mark.parametrize(
    "run",
    [
        pytest.param("abstract48S/candsB", marks=pytest.mark.slow),
        pytest.param("coco_karpathy_test/xe", marks=pytest.mark.slow),
        pytest.param("flickr8k_test_loo/human5", marks=pytest.mark.slow),
        "nlg_eval_example/hyp",
    ],
)
def test_equals_the_official_tool_on_shared_sets(run: str, load_shared: Callable[[str], Any]) -> None:
    from captioner.metrics.scores import score

    folder, name = run.split("/")
    expected = load_shared(f"{folder}/official_{name}.json")
    found = score(load_shared(f"{folder}/cand_{name}.json"), load_shared(f"{folder}/refs.json"), metrics=["meteor"])
    assert found.corpus["meteor"] == pytest.approx(expected["corpus"]["METEOR"], abs=1e-9)
    per_image = [expected["per_image"][image]["METEOR"] for image in found.images]
    np.testing.assert_allclose(found.per_image["meteor"], per_image, rtol=0, atol=1e-9)


def test_no_captions() -> None:
    found = meteor(Captions([], []))
    assert (found.per_image.shape, found.statistics.values.shape) == ((0, 1), (0, 23))


def test_each_candidate_has_references() -> None:
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        meteor(Captions([CANDIDATE, CANDIDATE], [REFERENCES]))


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for METEOR of a pycocoevalcap that is installed at an odd place."""
    package = tmp_path / "my métrics 100%" / "pycocoevalcap"
    folder = package / "meteor"
    (folder / PARAPHRASES.parent).mkdir(parents=True)
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.delitem(sys.modules, "pycocoevalcap", raising=False)
    return folder


def test_a_program_that_dies_is_an_error_with_its_message(elsewhere: Path) -> None:
    for name in (Path(JAR), PARAPHRASES):
        (elsewhere / name).touch()
    with pytest.raises(ResourceError, match=r"METEOR failed: exit code 1, .*corrupt jarfile.*meteor-1\.5\.jar.*memory"):
        meteor(Captions([CANDIDATE], [REFERENCES]))


@pytest.mark.slow
def test_odd_paths_and_decimal_commas(odd: dict[str, float], elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Path(distribution("pycocoevalcap").locate_file("pycocoevalcap/meteor"))  # type: ignore[arg-type]
    for name in (Path(JAR), PARAPHRASES):
        shutil.copyfile(source / name, elsewhere / name)
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-Duser.language=de -Duser.country=DE")
    monkeypatch.setenv("LC_ALL", "C")
    assert meteor(Captions([CANDIDATE], [REFERENCES])).corpus == odd["plain"]


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="no timers that interrupt")
def test_an_interruption_ends_the_program() -> None:
    """In a process of its own: an interruption within coverage's own lock would never give that back."""
    program = """
        import os
        import signal
        from captioner.metrics.meteor import meteor
        from captioner.metrics.metric import Captions

        def interrupt(number, frame):
            raise KeyboardInterrupt

        signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, 4)  # less than a start takes
        try:
            meteor(Captions(["the sea"] * 500_000, [["a wave"]] * 500_000))
        except KeyboardInterrupt:
            print("interrupted")
        try:
            _, status = os.waitpid(-1, 0)
            assert os.WTERMSIG(status) == signal.SIGKILL
        except ChildProcessError:
            pass
        print("Java has ended")
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "interrupted\nJava has ended\n"


def test_the_error_without_the_jar_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocoevalcap", None)
    with pytest.raises(ResourceError, match=r"meteor-1\.5\.jar.*pip install 'captioner\[meteor\]'") as caught:
        meteor(Captions([CANDIDATE], [REFERENCES]))
    assert caught.value.code == "needs_extra"
