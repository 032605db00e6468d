"""captioner score: what it reads, prints and refuses."""

import contextlib
import gzip
import io
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioner.cli import main
from captioner.metrics import score

ROOT = Path(__file__).resolve().parent.parent.parent
NAMES = ["bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider_d"]
REFERENCES: dict[str, Any] = {"1": ["a dog runs", "A dog."], "2": ["two cats sleep"], "3": ["a man"]}
CANDIDATES = {"2": "two cats", "1": "a dog runs", "3": "a woman"}


class Runner:
    """Runs the verb on files that it writes."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self._capsys = folder, capsys

    def write(self, name: str, content: Any) -> str:
        path = self.folder / name
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return str(path)

    def __call__(self, *flags: str, references: Any = REFERENCES, candidates: Any = CANDIDATES) -> tuple[int, str, str]:
        files = [
            "--references",
            self.write("refs.json", references),
            "--candidates",
            self.write("res.json", candidates),
        ]
        code = main(["score", *files, *flags])
        return code, *self._capsys.readouterr()


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Runner:
    return Runner(tmp_path, capsys)


def test_prints_one_json_object(run: Runner) -> None:
    code, out, err = run()
    report = json.loads(out)
    scores = score(CANDIDATES, REFERENCES)
    assert (code, err) == (0, "")
    assert list(report) == ["metrics", "intervals", "images", "signature"]
    assert report["metrics"] == scores.corpus
    assert list(report["metrics"]) == list(report["intervals"]) == NAMES
    assert all(low <= high for low, high in report["intervals"].values())
    assert report["images"] == 3
    assert report["signature"] == scores.signature


def test_every_form_of_the_files_is_the_same(run: Runner) -> None:
    expected = run()[1]
    coco = {
        "images": [{"id": 1}, {"id": 2}, {"id": 3}],
        "annotations": [
            {"id": number, "image_id": int(image), "caption": caption}
            for number, (image, caption) in enumerate(
                (key, text) for key, several in REFERENCES.items() for text in several
            )
        ],
    }
    results = [{"image_id": int(image), "caption": caption} for image, caption in CANDIDATES.items()]
    assert run(references=coco, candidates=results)[:2] == (0, expected)
    assert run(candidates=[{**each, "image_id": str(each["image_id"])} for each in results])[1] == expected
    packed = run.folder / "packed.json.gz"
    packed.write_bytes(gzip.compress(b"\xef\xbb\xbf" + json.dumps(REFERENCES).encode()))
    assert run("--references", str(packed))[1] == expected


def test_per_image(run: Runner) -> None:
    target = run.folder / "images.json"
    assert run("--per-image", str(target))[0] == 0
    written = json.loads(target.read_text(encoding="utf-8"))
    scores = score(CANDIDATES, REFERENCES)
    assert list(written) == list(CANDIDATES)
    assert written["1"] == {name: scores.per_image[name][1] for name in NAMES}


def test_comparison(run: Runner) -> None:
    other = {"3": "a man", "1": "x", "2": "two", "99": "left out"}
    code, out, err = run("--compare", run.write("other.json", other))
    report = json.loads(out)
    assert (code, err) == (0, "")
    theirs = score({image: other[image] for image in CANDIDATES}, REFERENCES).corpus
    for name, found in report["comparison"].items():
        assert found["difference"] == report["metrics"][name] - theirs[name]
        assert found["interval"][0] <= found["interval"][1]
    assert run("--compare", run.write("other.json", {"1": "x"}))[::2] == (
        2,
        f"captioner: error: {run.folder / 'other.json'}: image 2: no caption, but the candidates have one; "
        "compare equal sets\n",
    )


def test_references_without_candidate_are_reported(run: Runner) -> None:
    code, out, err = run(candidates={"1": "a dog", "3": "a man"})
    assert (code, json.loads(out)["images"]) == (0, 2)
    assert err == "captioner: 1 images with references have no candidate; they are left out\n"


def test_one_image_has_null_and_a_reason(run: Runner) -> None:
    target = run.folder / "images.json"
    code, out, _ = run("--per-image", str(target), candidates={"1": "a dog"})
    report = json.loads(out)
    assert code == 0
    assert report["metrics"]["cider_d"] is None
    assert report["reasons"]["cider_d"].startswith("one image alone: ")
    assert report["metrics"]["rouge_l"] == 1
    assert report["intervals"] == dict.fromkeys(NAMES)
    assert json.loads(target.read_text(encoding="utf-8"))["1"]["cider_d"] is None


def test_metrics_and_tokenizer(run: Runner) -> None:
    code, out, _ = run("--metrics", "rouge_l, bleu,rouge_l", "--tokenizer", "none")
    report = json.loads(out)
    assert (code, list(report["metrics"])) == (0, ["rouge_l", *NAMES[:4]])
    assert "|tok:none|metrics:rouge_l+bleu|" in report["signature"]


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--metrics", "cider"], 2, "metric cider: not known; did you mean cider_d"),
        (["--metrics", ","], 2, "--metrics ',': names no metric"),
        (["--metrics", "spice"], 2, "metric spice: needs the folder of SPICE 1.0; give spice_dir (--spice-dir)"),
        (["--spice-dir", "spice"], 2, "--spice-dir: is for spice; add spice to --metrics"),
        (["--tokenizer", "word"], 2, "argument --tokenizer: invalid choice: 'word'"),
        (["--references", "missing.json"], 3, "missing.json: no such file; check the path"),
        (["--candidates", "scripts"], 3, "scripts: no .txt files in this folder; name the one with the sidecars"),
    ],
)
def test_invalid_flags(run: Runner, flags: list[str], code: int, message: str) -> None:
    found, out, err = run(*flags)
    assert (found, out) == (code, "")
    assert err.startswith(f"captioner: error: {message}")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"candidates": {"9": "a", "1": "b"}},
            "FOLDER/res.json: 1 of 2 candidates fit no reference, or several: '9'; the ids of the 3 references: "
            "'1', '2', '3'",
        ),
        ({"candidates": '{"1": NaN}'}, "candidates: image 1: nan is not a string"),
        ({"candidates": [{"image_id": 1, "caption": None}]}, "candidates: image 1: None is not a string"),
        ({"candidates": '{"1": "a", "2": "b", "1": "a"}'}, "FOLDER/res.json: 1: a duplicate key; keep one of them"),
        (
            {"candidates": [{"image_id": 1, "caption": "a"}, {"image_id": "1", "caption": "b"}]},
            "FOLDER/res.json: image 1: more than one caption; keep one",
        ),
        ({"candidates": [{"caption": "a"}]}, "FOLDER/res.json: [0]: not an object with image_id and caption"),
        ({"candidates": ["a"]}, "FOLDER/res.json: [0]: not an object with image_id and caption"),
        ({"candidates": '[{"image_id": NaN, "caption": "a"}]'}, "FOLDER/res.json: [0]: image_id nan is neither"),
        ({"candidates": [{"image_id": True, "caption": "a"}]}, "FOLDER/res.json: [0]: image_id True is neither"),
        ({"candidates": '"a"'}, "FOLDER/res.json: neither a list of image_id and caption nor"),
        ({"candidates": "[" * 100_000}, "FOLDER/res.json: not JSON"),
        ({"candidates": ""}, "FOLDER/res.json: not JSON"),
        ({"references": '{"1": ["a"], "1": ["b"]}'}, "FOLDER/refs.json: 1: a duplicate key"),
        ({"references": []}, "FOLDER/refs.json: neither COCO annotations nor"),
        ({"references": {"1": [float("nan")], "2": ["a"], "3": ["a"]}}, "references: image 1: nan is not a string"),
        ({"references": {"annotations": [{"image_id": 1}]}}, "FOLDER/refs.json: annotations[0]: not an object with"),
    ],
)
def test_files_that_cannot_be_scored(run: Runner, files: dict[str, Any], message: str) -> None:
    code, out, err = run(**files)
    assert (code, out) == (2, "")
    assert err.startswith(f"captioner: error: {message.replace('FOLDER', str(run.folder))}")
    assert err.count("\n") == 1


def test_no_candidates(run: Runner) -> None:
    assert run(candidates=[]) == (
        3,
        "",
        "captioner: error: no candidates: nothing to score; give a caption for each image\n",
    )


def test_a_packed_file_that_is_cut_short(run: Runner) -> None:
    packed = run.folder / "packed.json.gz"
    packed.write_bytes(gzip.compress(json.dumps(REFERENCES).encode())[:-9])
    code, _, err = run("--references", str(packed))
    assert code == 3
    assert err.startswith(f"captioner: error: {packed}: cannot be read (")


def test_a_packed_file_is_not_unpacked_beyond_a_limit(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("captioner.cli.candidates.MAX_UNPACKED", 2**20)
    packed = run.folder / "packed.json.gz"
    packed.write_bytes(gzip.compress(b" " * 2**21 + json.dumps(REFERENCES).encode()))
    code, _, err = run("--references", str(packed))
    assert (code, err) == (3, f"captioner: error: {packed}: over 1 MiB unpacked; split it\n")


def test_scoring_loads_no_torch(run: Runner) -> None:
    run()
    program = (
        "import sys; from captioner.cli import main; code = main(sys.argv[1:]);"
        "print(code, sorted({'torch', 'timm', 'pydantic', 'PIL', 'pycocoevalcap'} & set(sys.modules)), file=sys.stderr)"
    )
    files = ["--references", str(run.folder / "refs.json"), "--candidates", str(run.folder / "res.json")]
    done = subprocess.run(
        [sys.executable, "-c", program, "score", *files], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stderr == "0 []\n"


KEYS = st.sampled_from(["1", "2", "annotations", "image_id", "caption", "images"]) | st.text(max_size=2)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
JSON = st.recursive(
    SCALARS, lambda each: st.lists(each, max_size=3) | st.dictionaries(KEYS, each, max_size=3), max_leaves=12
)
RESULTS = st.lists(st.fixed_dictionaries({"image_id": st.sampled_from([1, 2]) | JSON, "caption": st.text() | JSON}))
GROUPS = st.dictionaries(KEYS, st.lists(st.text(max_size=8) | SCALARS, max_size=3) | st.text(max_size=8), max_size=4)


@given(references=GROUPS | JSON, candidates=RESULTS | GROUPS | JSON)
def test_no_files_crash_it(references: Any, candidates: Any) -> None:
    out, err = io.StringIO(), io.StringIO()
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, "refs.json"), Path(folder, "res.json")]
        for file, content in zip(files, (references, candidates), strict=True):
            file.write_text(json.dumps(content), encoding="utf-8")
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(["score", "--references", str(files[0]), "--candidates", str(files[1])])
    assert code in (0, 2, 3)
    if code == 0:
        assert json.loads(out.getvalue())["images"] > 0
    else:
        assert out.getvalue() == ""
        assert err.getvalue().startswith("captioner: error: ")


def test_references_in_the_layouts_of_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """CSV and Karpathy's JSON score as plain captions do; the pictures need not be there."""
    texts = {"a.jpg": ["a dog runs", "the dog"], "b.jpg": ["two cats sleep"], "c.jpg": ["a man"]}
    (tmp_path / "refs.csv").write_text(
        "path,caption\n" + "".join(f"{name},{text}\n" for name, each in texts.items() for text in each)
    )
    karpathy = [
        {"imgid": number, "filename": name, "split": "val", "sentences": [{"raw": text} for text in each]}
        for number, (name, each) in enumerate(texts.items())
    ]
    (tmp_path / "karpathy.json").write_text(json.dumps({"images": karpathy, "dataset": "x"}))
    candidates = ["a dog", "two cats", "a woman"]
    found = []
    for references, images in (("refs.csv", list(texts)), ("karpathy.json", [0, 1, 2])):
        results = [{"image_id": image, "caption": text} for image, text in zip(images, candidates, strict=True)]
        (tmp_path / "results.json").write_text(json.dumps(results))
        flags = ["--references", str(tmp_path / references), "--candidates", str(tmp_path / "results.json")]
        assert main(["score", *flags]) == 0
        found.append(json.loads(capsys.readouterr().out)["metrics"])
    (tmp_path / "plain.json").write_text(json.dumps(texts))
    (tmp_path / "results.json").write_text(json.dumps(dict(zip(texts, candidates, strict=True))))
    flags = ["--references", str(tmp_path / "plain.json"), "--candidates", str(tmp_path / "results.json")]
    assert main(["score", *flags, "--per-image", str(tmp_path / "plain.json")]) == 2
    assert "is an input too" in capsys.readouterr().err
    assert main(["score", *flags]) == 0
    plain = json.loads(capsys.readouterr().out)["metrics"]
    assert found == [plain, plain]
