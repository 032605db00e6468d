"""The benchmark of new words, in small."""

from pathlib import Path

from benchmarks.new_words import by_word, main, renamed
from captioner.data.annotations import CaptionedImage
from tests.benchmarks.test_suggestions import TINY
from tests.serving.conftest import save_tiny_model


def image(number, *captions):
    return CaptionedImage(number, Path(f"{number}.png"), captions, "test")


def test_images_are_parted_by_a_word_and_it_is_replaced():
    images = [
        image(1, "a dog", "A Dog runs", "a cat"),
        image(2, "dogs", "a hotdog", "a cat"),
        image(3, "a dog", "a cat", "a cat"),
    ]
    assert by_word(images, "dog") == ([images[0]], [images[1]])
    assert renamed(images[0], "dog", "wuff", "val").captions == ("a wuff", "A wuff runs", "a cat")
    assert renamed(images[1], "dog", "wuff", "val").captions == images[1].captions
    assert renamed(images[0], "dog", "wuff", "val").split == "val"


def test_a_word_is_taught_and_looked_for(shapes, tmp_path, capsys):
    (tmp_path / "tiny.yaml").write_text(TINY)
    flags = ["--config", str(tmp_path / "tiny.yaml"), "--model", save_tiny_model(tmp_path), "--seeds", "1"]
    few = ["--with", "6", "--without", "14", "--test", "4", "--splits", "train", "--words", "red=rubrik"]
    assert main(["--data", str(shapes), *few, *flags, "-o", str(tmp_path / "runs")]) == 0
    *_, row = capsys.readouterr().out.splitlines()
    word, seed, photos, before, recall, _ = [cell.strip() for cell in row.split("|")[1:-1]]
    assert (word, seed) == ("rubrik (red)", "0")
    assert 0 < int(photos) <= 4
    assert 0 <= float(before) <= 1
    assert 0 <= float(recall) <= 1
