"""METEOR's process: the official values, odd captions, and a process that dies, is interrupted or shared."""

import importlib.util
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from captioner.errors import ResourceError
from captioner.metrics.java import find_java
from captioner.metrics.meteor import JAR, PARAPHRASES, Meteor, _warm, meteor, meteor_of
from captioner.metrics.metric import Captions
from tests.metrics.conftest import Official

CANDIDATE, REFERENCES = "a man is riding a wave", ["a guy surfs on a big wave", "the man rides a wave ."]


def installed() -> Path:
    package = importlib.util.find_spec("pycocoevalcap")
    if package is None:
        pytest.skip("pycocoevalcap is not installed: pip install 'captioner[meteor]'")
    return Path(next(iter(package.submodule_search_locations or ())), "meteor")


@pytest.fixture(scope="module")
def warm() -> Meteor:
    """The process that `meteor` and `score` use too: a start takes seconds."""
    installed()
    try:
        find_java()
    except ResourceError as error:
        pytest.skip(str(error))
    return _warm(os.getpid())


def value(process: Meteor, candidate: str, *references: str) -> float:
    return process.score(Captions([candidate], [references])).corpus.item()


def test_equals_the_official_tool(warm: Meteor, official: Official) -> None:
    found = warm.score(official.captions)
    np.testing.assert_allclose(found.corpus.item(), official.corpus["meteor"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.per_image[:, 0], official.per_image["meteor"], rtol=0, atol=1e-12)


def test_scores_come_from_statistics_that_add_up(warm: Meteor, official: Official) -> None:
    found = warm.score(official.captions)
    np.testing.assert_allclose(meteor_of(found.statistics.values), found.per_image, rtol=0, atol=1e-12)
    np.testing.assert_allclose(meteor_of(found.statistics.values.sum(axis=0)), found.corpus, rtol=0, atol=1e-12)


@pytest.mark.usefixtures("warm")
@pytest.mark.parametrize(
    "run",
    [
        pytest.param("abstract48S/candsB", marks=pytest.mark.slow),
        pytest.param("coco_karpathy_test/xe", marks=pytest.mark.slow),
        "flickr8k_test_loo/human5",
        "nlg_eval_example/hyp",
    ],
)
def test_equals_the_official_tool_on_shared_sets(run: str, load_shared: Callable[[str], Any]) -> None:
    from captioner.metrics.scores import score

    folder, name = run.split("/")
    expected = load_shared(f"{folder}/official_{name}.json")
    scores = score(load_shared(f"{folder}/cand_{name}.json"), load_shared(f"{folder}/refs.json"), metrics=["meteor"])
    assert scores.corpus["meteor"] == pytest.approx(expected["corpus"]["METEOR"], abs=1e-9)
    per_image = [expected["per_image"][image]["METEOR"] for image in scores.images]
    np.testing.assert_allclose(scores.per_image["meteor"], per_image, rtol=0, atol=1e-9)


def test_empty_captions(warm: Meteor) -> None:
    assert value(warm, "", *REFERENCES) == 0
    assert value(warm, CANDIDATE, "") == 0
    assert value(warm, "", "") == 0
    assert value(warm, CANDIDATE, "", *REFERENCES) == value(warm, CANDIDATE, *REFERENCES) > 0


def test_no_captions(warm: Meteor) -> None:
    found = warm.score(Captions([], []))
    assert np.isnan(found.corpus)
    assert (found.per_image.shape, found.statistics.values.shape) == ((0, 1), (0, 23))


def test_separators_inside_captions(warm: Meteor) -> None:
    plain = value(warm, CANDIDATE, *REFERENCES)
    assert value(warm, CANDIDATE.replace(" is ", " ||| is "), *REFERENCES) == plain
    assert value(warm, CANDIDATE, " ||| ".join(REFERENCES)) == plain  # as in the official tool: it is two references
    assert value(
        warm, CANDIDATE.replace(" is ", "\nis\r"), *(each.replace(" a ", "\r\na ") for each in REFERENCES)
    ) == (plain)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.text(st.characters()), st.lists(st.text(st.characters()), max_size=3)), max_size=4))
def test_any_text_has_a_score_and_the_next_caption_its_own(warm: Meteor, captions: list[tuple[str, list[str]]]) -> None:
    candidates, references = [each[0] for each in captions], [each[1] for each in captions]
    found = warm.score(Captions([*candidates, CANDIDATE], [*references, REFERENCES]))
    assert found.per_image[-1, 0] == value(warm, CANDIDATE, *REFERENCES)
    assert ((found.per_image >= 0) & (found.per_image <= 1)).all()


def test_each_candidate_has_references(warm: Meteor) -> None:
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        warm.score(Captions([CANDIDATE, CANDIDATE], [REFERENCES]))
    assert value(warm, CANDIDATE, *REFERENCES) > 0


@pytest.mark.slow
def test_a_process_that_died_is_started_again(warm: Meteor) -> None:
    expected = value(warm, CANDIDATE, *REFERENCES)
    process = warm._process
    assert process is not None
    process.kill()
    assert value(warm, CANDIDATE, *REFERENCES) == expected
    assert warm._process is not process


@pytest.mark.usefixtures("warm")
def test_a_process_that_dies_again_is_an_error_with_its_words(tmp_path: Path) -> None:
    (tmp_path / JAR).write_bytes(b"")
    with pytest.raises(ResourceError, match=r"died twice.*corrupt jarfile.*meteor-1\.5\.jar.*memory"):
        Meteor(tmp_path).score(Captions([CANDIDATE], [REFERENCES]))


@pytest.mark.slow
@pytest.mark.usefixtures("warm")
@pytest.mark.skipif(os.name == "nt", reason="no timers that interrupt")
def test_an_interruption_leaves_no_answer_behind() -> None:
    """In a process of its own: an interruption within coverage's own lock would never give that back."""
    program = f"""
        import signal
        from captioner.metrics.meteor import Meteor
        from captioner.metrics.metric import Captions

        def interrupt(number, frame):
            raise KeyboardInterrupt

        with Meteor() as process:
            expected = process.score(Captions([{CANDIDATE!r}], [{REFERENCES!r}])).corpus
            signal.signal(signal.SIGALRM, interrupt)
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            try:
                process.score(Captions(["the sea"] * 200_000, [["a wave"]] * 200_000))
            except KeyboardInterrupt:
                print((process.score(Captions([{CANDIDATE!r}], [{REFERENCES!r}])).corpus == expected).all())
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    assert subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout == "True\n"


def test_threads_take_turns(warm: Meteor) -> None:
    captions = [f"{count} dogs in the park" for count in ("two", "three", "many", "no")] * 5
    references = [["two dogs run in a park"]] * len(captions)
    expected = warm.score(Captions(captions, references)).per_image
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: warm.score(Captions(captions, references)), range(8)):
            np.testing.assert_array_equal(found.per_image, expected)


@pytest.mark.slow
def test_odd_paths_decimal_commas_and_the_end(warm: Meteor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three tests in one: a start takes seconds."""
    folder = tmp_path / "my métrics 100%" / "meteor"
    (folder / PARAPHRASES.parent).mkdir(parents=True)
    for name in (Path(JAR), PARAPHRASES):
        shutil.copyfile(installed() / name, folder / name)
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-Duser.language=de -Duser.country=DE")
    monkeypatch.setenv("LC_ALL", "C")
    with Meteor(folder) as process:
        assert value(process, CANDIDATE, *REFERENCES) == value(warm, CANDIDATE, *REFERENCES)
        started = process._process
    assert started is not None
    assert started.returncode == 0


@pytest.mark.slow
@pytest.mark.usefixtures("warm")
@pytest.mark.skipif(os.name == "nt", reason="asks for a process by its number")
def test_the_warm_process_is_one_and_ends_with_the_program() -> None:
    program = """
        from captioner.metrics import meteor as module
        from captioner.metrics.metric import Captions
        first = module.meteor(Captions(["a dog"], [["a dog"]]))
        process = module._warm(module.os.getpid())._process
        module.meteor(Captions(["a dog"], [["a dog"]]))
        assert module._warm(module.os.getpid())._process is process
        print(process.pid, first.corpus.item())
    """
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    number, corpus = done.stdout.split()
    assert float(corpus) == 1
    with pytest.raises(ProcessLookupError):
        os.kill(int(number), 0)


def test_the_error_without_the_jar_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocoevalcap", None)
    with pytest.raises(ResourceError, match=r"meteor-1\.5\.jar.*pip install 'captioner\[meteor\]'") as caught:
        Meteor(java="java")
    assert caught.value.code == "needs_extra"


def test_the_function_gives_what_a_process_gives(warm: Meteor) -> None:
    assert meteor(Captions([CANDIDATE], [REFERENCES])).corpus == value(warm, CANDIDATE, *REFERENCES)
