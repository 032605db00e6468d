"""`captioner inspect --annotations` from the command line."""

import html
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from captioner import Captioner
from captioner.checkpoint import load_model
from captioner.cli import main
from captioner.config_files import load_config
from captioner.data.formats import load_captions
from captioner.evaluation import evaluate_captions
from captioner.training.run import train

TINY = """
data: {batch_images: 4, captions_per_image: 2}
encoder: {name: test_convnext, image_size: [64, 64]}
decoder: {width: 32, layers: 1, heads: 2, max_length: 24}
tokenizer: {min_count: 1}
training: {epochs: 1, trainer: {enable_progress_bar: false, accelerator: cpu}}
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory, shapes):
    """The drawn data set, with a dog in every caption: shapes are not on the list of object words."""
    folder = tmp_path_factory.mktemp("named")
    captions = json.loads((shapes / "captions.json").read_text())
    for annotation in captions["annotations"]:
        annotation["caption"] = f"a dog and {annotation['caption']}"
    (folder / "captions.json").write_text(json.dumps(captions))
    (folder / "images").symlink_to(shapes / "images")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("trained")
    (folder / "tiny.yaml").write_text(TINY)
    return train(load_config(folder / "tiny.yaml", [f"data.root={data}"]), folder / "run")


def test_tables_and_numbers(model, data, shapes, tmp_path, capsys, monkeypatch):
    flags = ["--annotations", str(data / "captions.json"), "--split", "train", "--mosaics", "6", "--photos", "2"]
    flags += ["--grounding", str(shapes / "instances.json"), "--perturbation", "--store", "--captions", "4"]
    # This model has hardly seen an image: without a threshold all objects need it.
    monkeypatch.setattr("captioner.inspection.word_table.NEED_THRESHOLD", -100.0)
    model = shutil.copytree(model, tmp_path / "model")
    assert main(["inspect", "--model", str(model), "-o", str(tmp_path / "report"), *flags]) == 0
    printed = capsys.readouterr().out
    report = json.loads((tmp_path / "report" / "faithfulness.json").read_text())
    assert set(report) == {
        "model",
        "split",
        "random_weights",
        "pointing",
        "heads",
        "pixels",
        "grounding",
        "hallucination",
    }
    for title in (
        "## Pointing in 6 mosaics",
        "## Deletion and insertion in 2 photos",
        "## Pointing at annotated objects",
    ):
        assert title in printed
    others = report["pointing"]["other words"]
    assert {"raw", "relevance", "perturbation", "raw, layer 0"} <= set(others["mass"])
    assert f"{others['hit']['raw']['value']:.3f}" in printed
    assert report["heads"]["best_heads"]
    assert load_model(model)[0].config.best_heads == tuple(tuple(pair) for pair in report["heads"]["best_heads"])


def test_a_split_has_an_index_of_its_worst_and_best_captions(model, data, tmp_path, capsys):
    flags = ["--annotations", data / "captions.json", "--split", "train", "--mosaics", 0, "--captions", 0, "--html"]
    assert main(["inspect", "--model", str(model), "-o", str(tmp_path / "out"), *map(str, flags)]) == 0
    images = load_captions(data, None, None).split("train").images
    pages = {each.name for each in (tmp_path / "out").glob("*.html")}
    assert pages == {"index.html", *(f"{image.path.stem}.html" for image in images)}
    index = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    captions = Captioner.from_pretrained(model)([image.path for image in images])
    scores = evaluate_captions(
        {image.image_id: caption for image, caption in zip(images, captions, strict=True)},
        {image.image_id: image.captions for image in images},
    ).scores.per_image["cider_d"]
    best = images[int(np.argmax(scores))]
    figures = index.split("<figure>")
    assert f"cider_d {max(scores):.2f}" in figures[1]
    assert f"cider_d {min(scores):.2f}" in figures[1 + len(images) // 2]
    assert html.escape(best.captions[0]) in index
    assert f"wrote {tmp_path / 'out' / 'index.html'}" in capsys.readouterr().err


def test_findings_that_are_not_measured_again_stay(model, data, tmp_path):
    captioner = Captioner.from_pretrained(model)
    found = {"best_heads": ((0, 1),), "hallucination": (0.5,) * 8}
    captioner.model.config = replace(captioner.model.config, **found)
    captioner.save_pretrained(tmp_path / "model")
    flags = ["--annotations", str(data), "--mosaics", "0", "--captions", "0", "--store", "-o", str(tmp_path)]
    assert main(["inspect", "--model", str(tmp_path / "model"), *flags]) == 0
    config = load_model(tmp_path / "model")[0].config
    assert {"best_heads": config.best_heads, "hallucination": config.hallucination} == found


def test_random_weights_have_maps_of_their_own(model, data, tmp_path, capsys):
    flags = [
        "inspect",
        "--model",
        str(model),
        "--annotations",
        str(data),
        "--split",
        "train",
        "--mosaics",
        "4",
        "--captions",
        "0",
    ]
    found = []
    for more in ([], ["--random-weights"]):
        assert main([*flags, "-o", str(tmp_path / "report"), *more]) == 0
        found.append(json.loads((tmp_path / "report" / "faithfulness.json").read_text()))
    assert [each["random_weights"] for each in found] == [False, True]
    assert found[0]["pointing"] != found[1]["pointing"]


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["photo.jpg"], 2, "leave the photos out"),
        (["--split", "none"], 2, "no split 'none'"),
        (["--store", "--model", "bundled"], 2, "not a model folder of yours"),
        (["--split", "val", "--grounding", "nothing.json"], 2, "no COCO instances"),
    ],
)
def test_mistakes(model, data, tmp_path, capsys, flags, code, message):
    words = ["inspect", "--model", str(model), "--annotations", str(data), "-o", str(tmp_path), "--mosaics", "4"]
    assert main([*words, *flags]) == code
    assert message in capsys.readouterr().err
