"""Captions in Chinese and Hebrew, end to end: byte-level BPE, captions, overlays with the right words, and scores."""

import json
from dataclasses import replace

import pytest

from captioner import Captioner, Greedy
from captioner.cli import main
from captioner.config_files import load_config
from captioner.data.formats import load_captions
from captioner.inspection.fonts import font_for, has_letters
from captioner.inspection.sheet import draw_sheet
from captioner.training.run import train

SETTINGS = """
data: {batch_images: 4, captions_per_image: 2, control: language}
encoder: {name: test_convnext, image_size: [64, 64]}
decoder: {width: 32, layers: 1, heads: 2, max_length: 40, dropout: 0.0}
tokenizer: {kind: bpe, vocabulary_size: 260, min_count: 2}
optimization: {learning_rate: 1.0e-2, warmup_steps: 5, label_smoothing: 0.0}
training:
  epochs: 16
  patience: 0
  metric_tokenizer: char
  trainer: {enable_progress_bar: false, accelerator: cpu, check_val_every_n_epoch: 16}
"""
TEXTS = {"zh": "一只狗奔跑。", "he": "כלב רץ על הדשא."}
WORDS = {"zh": ["一", "只", "狗", "奔", "跑。"], "he": ["כלב", "רץ", "על", "הדשא."]}


@pytest.fixture(scope="module")
def data(tmp_path_factory, shapes):
    folder = tmp_path_factory.mktemp("languages")
    rows = [
        {"path": image.path.name, "caption": text, "split": image.split, "language": language}
        for image in load_captions(shapes).images
        for language, text in TEXTS.items()
    ]
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "captions.jsonl").write_text("".join(lines), encoding="utf-8")
    (folder / "config.yaml").write_text(SETTINGS, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def model(data, shapes):
    where = [f"data.root={data}", f"data.annotations={data / 'captions.jsonl'}", f"data.images={shapes / 'images'}"]
    return train(load_config(data / "config.yaml", where), data / "run")


@pytest.mark.parametrize("language", TEXTS)
def test_captions_and_overlays_have_the_words_of_the_language(model, shapes, language):
    captioner = Captioner.from_pretrained(model, device="cpu").styled(language)
    photo = load_captions(shapes).images[0].path
    caption = captioner(photo, search=Greedy())
    assert caption.text == TEXTS[language]
    assert [word.text for word in caption.words] == WORDS[language]
    trace = captioner.inspect(photo, caption=TEXTS[language])
    assert list(trace.words) == WORDS[language]
    assert all(json.dumps(word) in trace._repr_html_().replace("&quot;", '"') for word in WORDS[language])
    sheet = draw_sheet(trace)
    if not has_letters(font_for(TEXTS[language], 26), set(TEXTS[language]) - {" "}):
        pytest.skip(f"no font with the letters of {TEXTS[language]} is installed")
    missing = draw_sheet(replace(trace, text="\U0010fffe" * len(TEXTS[language])))
    assert sheet.tobytes() != missing.tobytes()


def test_scores_by_characters(data, shapes, tmp_path, capsys):
    references = {str(place): [text] for place, text in enumerate(TEXTS.values())}
    (tmp_path / "references.json").write_text(json.dumps(references), encoding="utf-8")
    candidates = {"0": "一只猫奔跑。", "1": TEXTS["he"]}
    (tmp_path / "candidates.json").write_text(json.dumps(candidates, ensure_ascii=False), encoding="utf-8")
    flags = ["--references", str(tmp_path / "references.json"), "--candidates", str(tmp_path / "candidates.json")]
    assert main(["score", *flags, "--tokenizer", "char"]) == 0
    by_characters = json.loads(capsys.readouterr().out)["metrics"]
    assert main(["score", *flags, "--tokenizer", "none"]) == 0
    by_words = json.loads(capsys.readouterr().out)["metrics"]
    assert 0.8 < by_characters["bleu_1"] < 1
    assert by_words["bleu_1"] < by_characters["bleu_1"]


def test_words_without_spaces_are_reported(data, shapes, tmp_path, caplog):
    caplog.set_level("WARNING")
    rows = [
        json.dumps({"path": image.path.name, "caption": f"{image.path.stem}号图里有一只狗 圖", "split": image.split})
        for image in load_captions(shapes).images
    ]
    (tmp_path / "captions.jsonl").write_text("\n".join(rows), encoding="utf-8")
    where = [f"data.root={tmp_path}", f"data.images={shapes / 'images'}", "tokenizer.kind=word", "data.control=null"]
    train(load_config(data / "config.yaml", where), tmp_path / "run", fast_dev_run=True)
    assert "50% of the words of the captions are unknown; set tokenizer.kind to bpe" in caplog.text
