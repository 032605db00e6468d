"""captioner inspect: files, names, numbers, exit codes."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from captioner.cli import main
from captioner.config import DecoderConfig, EncoderConfig, ModelConfig, TokenizerConfig
from captioner.generation import BeamSearch
from captioner.inspection.report import render_report
from captioner.inspection.sheet import draw_sheet
from captioner.inspection.trace import AttentionTrace
from captioner.model.caption_model import CaptionModel
from captioner.model.familiarity import Familiarity
from captioner.pipeline import Captioner
from captioner.tokenizer import Tokenizer
from scripts import inspect_attention


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    tokenizer = Tokenizer.train(["a brown dog runs"], TokenizerConfig(min_count=1))
    config = ModelConfig(
        encoder=EncoderConfig(name="test_vit", image_size=(64, 64)),
        decoder=DecoderConfig(width=16, layers=2, heads=2, max_length=12),
    )
    folder = tmp_path_factory.mktemp("model")
    network = CaptionModel(config, vocabulary=len(tokenizer))
    Captioner(network, tokenizer, name="tiny").save_pretrained(folder)
    return str(folder)


@pytest.fixture
def photo(tmp_path: Path) -> str:
    path = tmp_path / "dog.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(path)
    return str(path)


def inspect(model: str, *words: object) -> int:
    return main(["inspect", "--model", model, "--device", "cpu", *map(str, words)])


def test_a_picture_is_written_and_the_caption_printed(
    model: str, photo: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert inspect(model, photo, "-o", tmp_path / "new" / "out", "--layer", "mean") == 0
    trace = Captioner.from_pretrained(model, device="cpu").inspect(photo)
    written = tmp_path / "new" / "out" / "dog.png"
    assert [each.name for each in written.parent.iterdir()] == ["dog.png"]
    assert Image.open(written).tobytes() == draw_sheet(trace).tobytes()
    assert capsys.readouterr() == (f"{photo}\t{trace.text}\n", f"captioner: wrote {written}\n")


def test_json_has_the_numbers_of_the_trace(model: str, photo: str, tmp_path: Path) -> None:
    assert inspect(model, photo, "-o", tmp_path / "out", "--json", "--caption", "A brown dog.") == 0
    trace = Captioner.from_pretrained(model, device="cpu").inspect(photo, caption="a brown dog")
    assert [each.name for each in (tmp_path / "out").iterdir()] == ["dog.json"]
    record = json.loads((tmp_path / "out" / "dog.json").read_text(encoding="utf-8"))
    words = record.pop("words")
    assert record == {
        "path": photo,
        "model": model,
        "caption": "a brown dog",
        "grid": [4, 4],
        "geometry": {"width": 40, "height": 30, "size": [64, 64], "fit": "squash"},
        "method": "refined",
        "layer": "mean",
        "head": "mean",
    }
    assert [word["text"] for word in words] == ["a", "brown", "dog"]
    assert [word["log_prob"] for word in words] == pytest.approx(trace.log_probs, abs=1e-5)
    assert [word["entropy"] for word in words] == pytest.approx(trace.entropy, abs=1e-5)
    assert [word["null_mass"] for word in words] == pytest.approx(trace.null_mass, abs=1e-5)
    assert [word["peak"] for word in words] == pytest.approx(trace.peak, abs=1e-5)
    np.testing.assert_allclose([word["map"] for word in words], [trace.patches(n) for n in range(3)], atol=1e-6)


def test_png_and_json_can_both_be_had_for_one_layer_and_head(model: str, photo: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    flags = ("--png", "--json", "--layer", 1, "--head", 0, "--caption", "a dog", "--method", "raw")
    assert inspect(model, photo, "-o", out, *flags) == 0
    trace = Captioner.from_pretrained(model, device="cpu").inspect(photo, caption="a dog", method="raw")
    record = json.loads((out / "dog.json").read_text(encoding="utf-8"))
    assert (record["layer"], record["head"]) == (1, 0)
    np.testing.assert_allclose(record["words"][1]["map"], trace.select(layer=1, head=0).patches(1), atol=1e-6)
    np.testing.assert_allclose(record["words"][1]["null_mass"], trace.weights[1, 1, 0, -1], atol=1e-6)
    assert Image.open(out / "dog.png").tobytes() == draw_sheet(trace, layer=1, head=0).tobytes()


def test_a_report_of_one_photo_with_other_captions(model: str, photo: str, tmp_path: Path) -> None:
    assert inspect(model, photo, "-o", tmp_path / "out", "--html", "--num-captions", 3) == 0
    assert [each.name for each in (tmp_path / "out").iterdir()] == ["dog.html"]
    page = (tmp_path / "out" / "dog.html").read_bytes().decode()
    trace = Captioner.from_pretrained(model, device="cpu").inspect(photo, search=BeamSearch(captions=3))
    assert page == render_report(trace, name="dog.jpg", model=model)
    assert len(trace.alternatives) == 2


def test_reports_of_several_photos_have_an_index(model: str, photo: str, tmp_path: Path) -> None:
    other = tmp_path / "index.png"
    Image.new("RGB", (10, 20)).save(other)
    out = tmp_path / "out"
    assert inspect(model, photo, other, tmp_path / "none.jpg", "-o", out, "--html", "--png", "--caption", "a dog") == 1
    names = sorted(each.name for each in out.iterdir())
    assert names == ["dog.html", "dog.png", "index-2.html", "index-2.png", "index.html"]
    index = (out / "index.html").read_text(encoding="utf-8")
    assert re.findall(r'<b><a href="([^"]*)">a dog</a></b>', index) in (
        ["dog.html", "index-2.html"],
        ["index-2.html", "dog.html"],
    )
    assert '<a href="index.html">All photos</a>' in (out / "dog.html").read_text(encoding="utf-8")


def test_a_photo_unlike_the_training_photos_is_noted(
    model: str, photo: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    captioner = Captioner.from_pretrained(model, device="cpu")
    captioner.model.familiarity = Familiarity.fit(torch.randn(200, captioner.model.encoder.width))
    captioner.model.config = replace(captioner.model.config, familiar_distance=1e-6)
    captioner.save_pretrained(tmp_path / "fitted")
    assert inspect(str(tmp_path / "fitted"), photo, "-o", tmp_path / "out", "--html") == 0
    line = f"captioner: {photo}: unlike the photos this model was trained on; its caption may be wrong\n"
    assert line in capsys.readouterr().err


def test_without_a_null_patch_its_mass_is_null(photo: str, tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(["a dog"], TokenizerConfig(min_count=1))
    config = ModelConfig(
        encoder=EncoderConfig(name="test_vit", image_size=(64, 64)),
        decoder=DecoderConfig(width=16, layers=1, heads=1, null_patch=False),
    )
    network = CaptionModel(config, vocabulary=len(tokenizer))
    Captioner(network, tokenizer, name="tiny").save_pretrained(tmp_path / "model")
    assert inspect(str(tmp_path / "model"), photo, "-o", tmp_path, "--json", "--caption", "dog") == 0
    assert json.loads((tmp_path / "dog.json").read_text(encoding="utf-8"))["words"][0]["null_mass"] is None


def test_photos_of_one_name_do_not_overwrite_each_other(model: str, photo: str, tmp_path: Path) -> None:
    for folder in ("b", "c"):
        (tmp_path / folder).mkdir()
    Image.new("RGB", (10, 20)).save(tmp_path / "b" / "Dog.png")
    Image.new("RGB", (20, 10)).save(tmp_path / "c" / "dog-2.png")
    photos = [photo, str(tmp_path / "b" / "Dog.png"), str(tmp_path / "c" / "dog-2.png"), photo]
    out = tmp_path / "out"
    assert inspect(model, *photos, "-o", out, "--json", "--caption", "a dog") == 0
    paths = {each.name: json.loads(each.read_text(encoding="utf-8"))["path"] for each in out.iterdir()}
    assert paths == dict(zip(("dog.json", "Dog-2.json", "dog-2-2.json", "dog-3.json"), photos, strict=True))


def test_a_photo_is_never_overwritten_by_its_own_picture(model: str, tmp_path: Path) -> None:
    photo = tmp_path / "dog.png"
    Image.new("RGB", (10, 20), "red").save(photo)
    before = photo.read_bytes()
    assert inspect(model, photo, "-o", tmp_path, "--caption", "a dog") == 0
    assert photo.read_bytes() == before
    assert (tmp_path / "dog-2.png").exists()


def test_a_bad_photo_is_reported_and_skipped(
    model: str, photo: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"\xff\xd8\xff nothing")
    assert inspect(model, bad, photo, "-o", tmp_path / "out", "--caption", "a dog") == 1
    output = capsys.readouterr()
    assert output.out == f"{photo}\ta dog\n"
    message, wrote = output.err.splitlines()
    assert message.startswith(f"captioner: error: {bad}: ")
    assert wrote == f"captioner: wrote {tmp_path / 'out' / 'dog.png'}"
    assert [each.name for each in (tmp_path / "out").iterdir()] == ["dog.png"]


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_a_link_to_itself_costs_no_other_photo(model: str, photo: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    shutil.copy(photo, folder / "a.jpg")
    (folder / "b.jpg").symlink_to("b.jpg")
    assert main(["inspect", str(folder), "--model", model, "-o", str(tmp_path / "out")]) == 1
    assert [each.name for each in (tmp_path / "out").iterdir()] == ["a.png"]


def test_folders_are_searched(model: str, photo: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").write_text("no photo")
    (tmp_path / "empty").mkdir()
    assert inspect(model, tmp_path, tmp_path / "empty", "-o", tmp_path / "out") == 1
    out, err = capsys.readouterr()
    assert [line.split("\t")[0] for line in out.splitlines()] == [photo]
    [error] = [line for line in err.splitlines() if "error" in line]
    assert error.startswith(f"captioner: error: {tmp_path / 'empty'}: no images in this folder")
    assert inspect(model, tmp_path / "empty", "-o", tmp_path / "out") == 3
    (tmp_path / "empty" / "deeper").mkdir()
    shutil.copy(photo, tmp_path / "empty" / "deeper")
    assert inspect(model, tmp_path / "empty", "-r", "-o", tmp_path / "deep") == 0
    assert [each.name for each in (tmp_path / "deep").iterdir()] == ["dog.png"]


@pytest.mark.skipif(sys.platform != "linux", reason="file names of any bytes")
def test_odd_names_of_files(model: str, photo: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("two\nlines.jpg", os.fsdecode(b"caf\xe9.jpg")):
        shutil.copy(photo, tmp_path / name)
    assert inspect(model, tmp_path, "-o", tmp_path / "out", "--json") == 0
    names = [Path(line.split("\t")[0]).name for line in capsys.readouterr().out.splitlines()]
    assert names == [r"caf\udce9.jpg", "dog.jpg", r"two\nlines.jpg"]
    record = json.loads((tmp_path / "out" / os.fsdecode(b"caf\xe9.json")).read_text(encoding="utf-8"))
    assert record["path"] == str(tmp_path / os.fsdecode(b"caf\xe9.jpg"))


def test_without_a_photo_there_is_nothing_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "-o", str(tmp_path / "out")]) == 3
    assert "no photos given" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--layer", "2"], "layer 2: this model has layers 0 to 1"),
        (["--head", "-1"], "head -1: this model has heads 0 to 1"),
        (["--head", "best"], "has no heads measured; choose mean or a number"),
        (["--head", "best", "--layer", "1"], "names heads of several layers"),
        (["--head", "worst"], "'worst': give mean or a number"),
        (["--method", "perturbation", "--head", "1"], "leave --layer, --head out"),
        (["--tiles", "2"], "not ROWSxCOLUMNS"),
        (["--num-captions", "2"], "is for --html without --caption"),
        (["--num-captions", "2", "--html", "--caption", "a dog"], "is for --html without --caption"),
        (["--num-captions", "0", "--html"], "0"),
        (["--region", "0,0,2,1"], "not within the photo"),
        (["--caption", ""], "no words in it"),
        (["--caption", "a dog " * 9], "18 tokens, this model takes 11"),
    ],
)
def test_what_cannot_be_honored_is_refused_in_one_line(
    model: str, photo: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert inspect(model, photo, "-o", tmp_path / "out", *flags) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list((tmp_path / "out").glob("*"))


def test_the_default_folder_is_a_new_one(
    model: str, photo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("inspection", "inspection-2"):
        assert inspect(model, photo, "--json") == 0
        assert [each.name for each in (tmp_path / folder).iterdir()] == ["dog.json"]


def test_the_output_must_not_be_a_file(model: str, photo: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect(model, photo, "-o", photo) == 2
    assert "a file; name a folder" in capsys.readouterr().err


def test_a_model_that_is_not_there_ends_with_its_own_code(photo: str, tmp_path: Path) -> None:
    assert inspect(str(tmp_path / "none"), photo, "-o", tmp_path / "out") == 4
    assert not (tmp_path / "out").exists()


def test_help_needs_no_torch() -> None:
    program = "import sys; from captioner.cli import main; code = main(['inspect', '--help']); "
    check = "sys.exit(10 if 'torch' in sys.modules else code)"
    done = subprocess.run([sys.executable, "-c", program + check], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "--caption" in done.stdout


def test_the_script_does_the_same(
    model: str, photo: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [photo, "-o", str(tmp_path / "out"), "--model", model, "--caption", "a dog"]
    assert inspect_attention.main(words) == 0
    first = (tmp_path / "out" / "dog.png").read_bytes()
    assert capsys.readouterr().out == f"{photo}\ta dog\n"
    monkeypatch.setattr(sys, "argv", ["inspect_attention.py", *words])
    assert inspect_attention.main() == 0
    assert (tmp_path / "out" / "dog.png").read_bytes() == first


def test_unknown_words_are_reported(model: str, photo: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect(model, photo, "-o", tmp_path / "out", "--caption", "a zebrafish") == 0
    assert "does not know zebrafish: shown as <unk>" in capsys.readouterr().err


def test_the_best_heads_of_a_model_are_shown(model: str, photo: str, tmp_path: Path) -> None:
    captioner = Captioner.from_pretrained(model, device="cpu")
    captioner.model.config = replace(captioner.model.config, best_heads=((1, 0), (0, 1)))
    captioner.save_pretrained(tmp_path / "measured")
    flags = ("--head", "best", "--json", "--png", "--caption", "a dog", "--method", "raw")
    assert inspect(str(tmp_path / "measured"), photo, "-o", tmp_path / "out", *flags) == 0
    record = json.loads((tmp_path / "out" / "dog.json").read_text(encoding="utf-8"))
    trace = captioner.inspect(photo, caption="a dog", method="raw")
    assert (record["head"], record["heads"]) == ("mean", [[1, 0], [0, 1]])
    np.testing.assert_allclose(record["words"][1]["map"], trace.select(heads=[(1, 0), (0, 1)]).patches(1), atol=1e-6)


def test_regions_tiles_and_traces(model: str, photo: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert inspect(model, photo, "-o", out, "--trace", "--json", "--caption", "a dog", "--tiles", "2x3") == 0
    assert "maps by relevance, not refined: the grid of tiles is fine already" in capsys.readouterr().err
    assert sorted(each.name for each in out.iterdir()) == ["dog.json", "dog.npz"]
    assert AttentionTrace.load(out / "dog.npz").grid == (8, 12)
    assert inspect(model, photo, "-o", out, "--json", "--caption", "a dog", "--region", "0,0,0.5,1") == 0
    words = json.loads((out / "dog.json").read_text(encoding="utf-8"))["words"]
    assert np.array([word["map"] for word in words])[:, :, 2:].max() == 0
    assert json.loads((out / "dog.json").read_text(encoding="utf-8"))["region"] == [0, 0, 0.5, 1]


def test_hallucinated_objects_are_marked(model: str, photo: str, tmp_path: Path) -> None:
    captioner = Captioner.from_pretrained(model, device="cpu")
    captioner.model.config = replace(captioner.model.config, hallucination=(0.0,) * 7 + (2.0,))
    captioner.save_pretrained(tmp_path / "wary")
    out = tmp_path / "out"
    assert inspect(str(tmp_path / "wary"), photo, "-o", out, "--json", "--png", "--caption", "a brown dog") == 0
    words = json.loads((out / "dog.json").read_text(encoding="utf-8"))["words"]
    assert [word.get("hallucination") for word in words] == [None, None, pytest.approx(1 / (1 + np.exp(-2)), abs=1e-5)]
    trace = captioner.inspect(photo, caption="a brown dog")
    assert Image.open(out / "dog.png").tobytes() == draw_sheet(trace).tobytes()
    assert draw_sheet(replace(trace, hallucination={})).tobytes() != draw_sheet(trace).tobytes()
    trace.save(tmp_path / "dog.npz")
    assert AttentionTrace.load(tmp_path / "dog.npz").hallucination == trace.hallucination
    assert not captioner.inspect(photo, caption="a brown dog", method="raw").hallucination
