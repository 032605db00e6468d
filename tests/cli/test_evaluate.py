"""`captioner evaluate` from the command line, on a model trained for a moment on the drawn data set."""

import json
import os
import subprocess
from html.parser import HTMLParser

import pytest

from captioner.cli import main
from captioner.config_files import load_config
from captioner.data.formats import load_captions
from captioner.training.run import train

TINY = """
data: {batch_images: 4, captions_per_image: 2}
encoder: {name: test_convnext, image_size: [64, 64]}
decoder: {width: 32, layers: 1, heads: 2, max_length: 24}
tokenizer: {min_count: 1}
training: {epochs: 2, trainer: {enable_progress_bar: false, accelerator: cpu}}
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory, shapes):
    folder = tmp_path_factory.mktemp("evaluated")
    (folder / "tiny.yaml").write_text(TINY)
    return train(load_config(folder / "tiny.yaml", [f"data.root={shapes}"]), folder / "run")


@pytest.fixture
def evaluate(model, shapes, capsys):
    def run(*flags, annotations=shapes / "captions.json"):
        code = main(["evaluate", "--model", str(model), "--annotations", str(annotations), *map(str, flags)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def report(evaluate, *flags, **more):
    code, out, err = evaluate(*flags, **more)
    assert code == 0, err
    return json.loads(out)


def test_it_prints_what_score_prints_of_its_results(evaluate, shapes, tmp_path, capsys):
    found = report(evaluate, "--split", "val", "-o", tmp_path / "results.json")
    results = json.loads((tmp_path / "results.json").read_text())
    images = load_captions(shapes).split("val").images
    assert [result["image_id"] for result in results] == [image.image_id for image in images]
    flags = ["--references", str(shapes / "captions.json"), "--candidates", str(tmp_path / "results.json")]
    assert main(["score", *flags]) == 0
    scored = json.loads(capsys.readouterr().out)
    assert {name: found[name] for name in scored} == scored
    assert found["captions"]["novel"] is not None


@pytest.mark.parametrize("flags", [["--greedy"], ["--batch-size", "1"], ["--workers", "1", "--device", "cpu"]])
def test_batches_and_machines_change_nothing(evaluate, flags):
    search = ["--greedy"] if "--greedy" in flags else []
    assert report(evaluate, "--split", "val", *flags) == report(evaluate, "--split", "val", *search)


def test_the_default_split(evaluate, shapes, tmp_path):
    assert report(evaluate)["images"] == len(load_captions(shapes).split("test"))
    data = json.loads((shapes / "captions.json").read_text())
    for image in data["images"]:
        image["split"] = "dev" if image["split"] == "test" else image["split"]
    (tmp_path / "dev.json").write_text(json.dumps(data))
    code, _, err = evaluate("--images", shapes / "images", annotations=tmp_path / "dev.json")
    assert code == 2
    assert "no split 'test'; choose one: --split dev, train, val" in err
    for image in data["images"]:
        del image["split"]
    (tmp_path / "plain.json").write_text(json.dumps(data))
    code, out, err = evaluate("--images", shapes / "images", annotations=tmp_path / "plain.json")
    assert code == 0
    line = err.splitlines()[-1]
    assert line.startswith(f"captioner: split all of {tmp_path / 'plain.json'}, {len(data['images'])} images: bleu_1 ")
    assert f"cider_d {json.loads(out)['metrics']['cider_d']:.3f}" in line
    assert "names no splits: all of its images" in err
    plain = json.loads(out)
    assert plain["images"] == len(data["images"])
    assert plain["captions"]["novel"] is None
    assert report(evaluate, "--split", "val", annotations=shapes)["images"] == len(load_captions(shapes).split("val"))


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data


def test_the_report_shows_the_worst_and_the_best(evaluate, shapes, tmp_path):
    found = report(evaluate, "--split", "train", "--report", tmp_path / "report")
    assert [path.name for path in (tmp_path / "report").iterdir()] == ["report.html"]
    page = Page((tmp_path / "report" / "report.html").read_text())
    pictures = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    images = load_captions(shapes).split("train").images
    assert len(pictures) == len(set(pictures)) == min(20, len(images))
    assert all(picture.startswith("data:image/jpeg;base64,") for picture in pictures)
    assert f"{found['metrics']['cider_d']:.4f}" in page.text
    assert found["signature"] in page.text
    assert images[0].captions[0] in page.text


def test_two_models_are_compared(evaluate, shapes, tmp_path, model):
    found = report(evaluate, "--split", "train", "--compare", "bundled", "--report", tmp_path)
    alone = report(evaluate, "--split", "train")
    assert found == alone | {"comparison": found["comparison"]}
    other = report(evaluate, "--split", "train", "--model", "bundled")
    for name, compared in found["comparison"].items():
        assert compared["difference"] == pytest.approx(found["metrics"][name] - other["metrics"][name])
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "most improved" in page.text
    assert f"First: bundled; then: {model}." in page.text
    same = report(evaluate, "--split", "val", "--compare", model)["comparison"]
    assert {name: compared["difference"] for name, compared in same.items()} == dict.fromkeys(same, 0.0)


def test_chair_from_coco_instances(evaluate, shapes, tmp_path):
    images = load_captions(shapes).split("val").images
    instances = {
        "images": [{"id": image.image_id} for image in images],
        "categories": [{"id": 1, "name": "person"}],
        "annotations": [{"image_id": images[0].image_id, "category_id": 1}],
    }
    (tmp_path / "instances.json").write_text(json.dumps(instances))
    found = report(evaluate, "--split", "val", "--grounding", tmp_path / "instances.json")
    assert set(found["chair"]) == {"instances", "sentences"}
    instances["images"].pop()
    (tmp_path / "fewer.json").write_text(json.dumps(instances))
    code, _, err = evaluate("--split", "val", "--grounding", tmp_path / "fewer.json")
    assert (code, f"image {images[-1].image_id}: not in it" in err) == (2, True)
    (tmp_path / "other.json").write_text("[]")
    code, _, err = evaluate("--split", "val", "--grounding", tmp_path / "other.json")
    assert (code, "no COCO instances" in err) == (2, True)


def test_a_damaged_picture_is_left_out_and_told(evaluate, shapes, tmp_path):
    data = json.loads((shapes / "captions.json").read_text())
    (tmp_path / "images").mkdir()
    for image in data["images"]:
        (tmp_path / "images" / image["file_name"]).write_bytes((shapes / "images" / image["file_name"]).read_bytes())
    (tmp_path / "captions.json").write_text(json.dumps(data))
    val = load_captions(shapes).split("val").images
    (tmp_path / "images" / val[0].path.name).write_bytes(b"no picture")
    code, out, err = evaluate("--split", "val", annotations=tmp_path / "captions.json")
    assert code == 1
    assert val[0].path.name in err
    assert json.loads(out)["images"] == len(val) - 1
    assert json.loads(out)["failed"] == [val[0].image_id]
    for image in val:
        (tmp_path / "images" / image.path.name).write_bytes(b"no picture")
    code, out, err = evaluate("--split", "val", annotations=tmp_path / "captions.json")
    assert (code, out) == (1, "")
    assert f"none of {len(val)} images could be captioned" in err


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--num-captions", "2"], 2, "one caption an image is scored"),
        (["--split", "nowhere"], 2, "no split 'nowhere'; choose one: --split test, train, val"),
        (["--split", "val", "-o", "missing/results.json"], 2, "missing; create it, or name another"),
        (["--split", "val", "--metrics", "spice"], 2, "--spice-dir"),
        (["--split", "val", "--greedy", "--length-penalty", "2"], 2, "is for beam search"),
        (["--split", "val", "--images", "nowhere"], 3, "nowhere: no such folder"),
    ],
)
def test_bad_usage(evaluate, flags, code, message):
    found, out, err = evaluate(*flags)
    assert (found, out) == (code, "")
    assert message in err


def test_what_cannot_be_written_is_told_before_the_work(evaluate, tmp_path):
    (tmp_path / "file").touch()
    for flags in (["-o", tmp_path], ["--report", tmp_path / "file"]):
        code, out, err = evaluate("--split", "val", *flags)
        assert (code, out) == (2, "")
        assert "; name a f" in err


def test_no_input_and_no_device_is_replaced(evaluate, shapes, tmp_path):
    for name in ("captions.json", "instances.json"):
        (tmp_path / name).write_bytes((shapes / name).read_bytes())
    flags = ["--split", "val", "--images", shapes / "images"]
    code, _, err = evaluate(*flags, "-o", tmp_path / "captions.json", annotations=tmp_path / "captions.json")
    assert (code, "is an input too" in err) == (2, True)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link.json").symlink_to(tmp_path / "target.json")
    reader = subprocess.Popen(["cat", str(tmp_path / "pipe")], stdout=subprocess.PIPE)
    assert evaluate(*flags, "-o", tmp_path / "pipe")[0] == 0
    assert len(json.loads(reader.communicate(timeout=60)[0])) == len(load_captions(shapes).split("val"))
    assert evaluate(*flags, "-o", tmp_path / "link.json")[0] == 0
    assert (tmp_path / "link.json").is_symlink()
    assert json.loads((tmp_path / "target.json").read_text())


def test_mistakes_are_found_before_the_work(evaluate, shapes, tmp_path):
    for flags, message in (
        (["--metrics", "cider"], "metric cider: not known; did you mean cider_d?"),
        (["--metrics", "bleu_4"], "did you mean bleu?"),
        (["--metrics", "spice", "--spice-dir", tmp_path], "lacks"),
        (["--grounding", shapes / "instances.json"], "no categories of COCO"),
        (["-o", "/proc/results.json"], "cannot be written"),
    ):
        code, out, err = evaluate("--split", "val", *flags)
        assert code != 0
        assert out == ""
        assert message in err
        assert "captioned" not in err


def test_pictures_of_other_splits_may_be_missing(evaluate, shapes, tmp_path):
    data = json.loads((shapes / "captions.json").read_text())
    (tmp_path / "images").mkdir()
    for image in data["images"]:
        if image["split"] == "val":
            (tmp_path / "images" / image["file_name"]).write_bytes(
                (shapes / "images" / image["file_name"]).read_bytes()
            )
    (tmp_path / "captions.json").write_text(json.dumps(data))
    found = report(evaluate, "--split", "val", annotations=tmp_path)
    assert found == report(evaluate, "--split", "val")


def test_images_without_captions_are_told(evaluate, shapes, tmp_path):
    data = json.loads((shapes / "captions.json").read_text())
    first = next(image["id"] for image in data["images"] if image["split"] == "val")
    data["annotations"] = [each for each in data["annotations"] if each["image_id"] != first]
    (tmp_path / "fewer.json").write_text(json.dumps(data))
    code, _, err = evaluate("--split", "val", "--images", shapes / "images", annotations=tmp_path / "fewer.json")
    assert code == 0
    assert "1 images without captions are left out" in err


def test_no_annotations(evaluate, tmp_path):
    code, _, err = evaluate(annotations=tmp_path / "none.json")
    assert code == 3
    assert "cannot be read (No such file or directory)" in err


def test_the_page_opens_in_a_browser(evaluate, tmp_path):
    from shutil import which

    chromium = which("chromium") or which("chromium-browser") or which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium: apt-get install chromium")
    report(evaluate, "--split", "val", "--report", tmp_path)
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    picture = tmp_path / "page.png"
    command += [f"--screenshot={picture}", "--window-size=1200,1600", (tmp_path / "report.html").as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    assert picture.stat().st_size > 20_000
