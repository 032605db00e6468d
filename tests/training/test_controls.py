"""A model that learns styles and lengths from a column, and the command line that chooses them."""

import json
from itertools import product

import pytest

from captioner import Captioner, Greedy
from captioner.cli import main
from captioner.config_files import load_config
from captioner.data.formats import load_captions
from captioner.errors import ConfigError
from captioner.model_files import model_folder
from captioner.training.run import train

TINY = """
data: {batch_images: 4, captions_per_image: 6, control: style, length_control: true}
encoder: {name: test_convnext, image_size: [64, 64]}
decoder: {width: 32, layers: 1, heads: 2, max_length: 16, dropout: 0.0}
tokenizer: {min_count: 1}
optimization: {learning_rate: 1.0e-2, warmup_steps: 5, label_smoothing: 0.0}
training:
  epochs: 16
  patience: 0
  trainer: {enable_progress_bar: false, accelerator: cpu, check_val_every_n_epoch: 16}
"""
STYLES, MORE = ("formal", "in verse"), {"short": "", "medium": " one two", "long": " one two three four five"}


def text(style, length):
    return style + MORE[length]


@pytest.fixture(scope="module")
def data(tmp_path_factory, shapes):
    """Annotations with six captions for each drawn picture: two styles in three lengths."""
    folder = tmp_path_factory.mktemp("styled")
    rows = [
        {"path": image.path.name, "caption": text(style, length), "split": image.split, "style": style}
        for image in load_captions(shapes).images
        for style, length in product(STYLES, MORE)
    ]
    (folder / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "tiny.yaml").write_text(TINY)
    return folder


def configured(data, shapes, *overrides):
    where = [f"data.root={data}", f"data.annotations={data / 'captions.jsonl'}", f"data.images={shapes / 'images'}"]
    return load_config(data / "tiny.yaml", [*where, *overrides])


@pytest.fixture(scope="module")
def model(data, shapes):
    return train(configured(data, shapes), data / "run")


def test_styles_and_lengths_are_learned(model, shapes):
    captioner = Captioner.from_pretrained(model, device="cpu")
    photo = load_captions(shapes).images[0].path
    for style, length in product(STYLES, MORE):
        caption = captioner.styled(style, length)(photo, search=Greedy())
        assert (caption.text, caption.style) == (text(style, length), style)
        assert caption.log_prob > -1
    free = captioner(photo, search=Greedy())
    assert free.style is None
    assert free.text in {text(*each) for each in product(STYLES, MORE)}
    assert free.log_prob < -1
    with pytest.raises(ConfigError, match="style loud: not known to this model; choose from formal, in verse"):
        captioner.styled("loud")


def test_a_styled_caption_is_inspected_in_its_style(model, shapes):
    captioner = Captioner.from_pretrained(model, device="cpu").styled("in verse", "medium")
    photo = load_captions(shapes).images[0].path
    caption, trace = captioner(photo), captioner.inspect(photo, method="raw")
    assert trace.text == caption.text
    assert trace.log_probs == pytest.approx([word.log_prob for word in caption.words], abs=1e-4)
    assert captioner.inspect(photo, caption=caption.text, method="raw").log_probs == trace.log_probs


def test_the_command_line_chooses_them(model, shapes, capsys):
    photo = str(load_captions(shapes).images[0].path)
    command = ["caption", photo, "--model", str(model), "--device", "cpu"]
    assert main([*command, "--style", "formal", "--length", "long", "--format", "jsonl"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["caption"], record["style"]) == (text("formal", "long"), "formal")
    assert main([*command, "--style", "in verse", "--length", "short", "--greedy"]) == 0
    assert capsys.readouterr().out == "in verse\n"
    assert main([*command, "--format", "jsonl"]) == 0
    assert "style" not in json.loads(capsys.readouterr().out)
    assert main([*command, "--style", "loud"]) == 2
    assert "style loud: not known to this model; choose from formal, in verse" in capsys.readouterr().err
    flags = ["--annotations", str(shapes / "captions.json"), "--split", "val", "--style", "formal", "--greedy"]
    assert main(["evaluate", "--model", str(model), *flags]) == 0
    assert json.loads(capsys.readouterr().out)["captions"]["distinct_captions"] <= 0.5


def test_a_model_without_styles_says_so(shapes, capsys):
    photo = str(load_captions(shapes).images[0].path)
    assert main(["caption", photo, "--style", "formal"]) == 2
    assert "it has learned no styles" in capsys.readouterr().err


def test_learned_styles_are_kept_when_training_goes_on(model, data, shapes, tmp_path):
    overrides = (
        "data.control=null",
        "data.length_control=false",
        "training.epochs=1",
        "optimization.learning_rate=1e-9",
    )
    again = Captioner.from_pretrained(train(configured(data, shapes, *overrides), tmp_path / "run", init=model))
    before = Captioner.from_pretrained(model)
    for kind in ("style", "length"):
        assert again.tokenizer.controls(kind) == before.tokenizer.controls(kind) != {}


def test_a_column_must_hold_styles(data, shapes, tmp_path):
    with pytest.raises(ConfigError, match=r"data.control: tone has no value for any training caption"):
        train(configured(data, shapes, "data.control=tone"), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"need decoder.language: train"):
        train(configured(data, shapes, "decoder.language=freeze"), tmp_path / "run", init=model_folder("bundled"))
