"""The report page, from captions that look like HTML."""

from PIL import Image

from captioner.caption import Caption, CaptionWord
from captioner.cli.evaluation_page import Compared, marked_objects, missing_objects, page
from captioner.evaluation import evaluate_captions
from captioner.templates import read_template, security_policy


def caption(text):
    return Caption(text, -1.0, tuple(CaptionWord(word, -0.5) for word in text.split()), ())


def test_texts_are_escaped(tmp_path):
    path = tmp_path / "<i>.png"
    Image.new("RGB", (4, 4)).save(path)
    captions = {"<u>": Caption("<b> & a dog", -1.0, (), ()), "2": Caption("", -1.0, (), ())}
    evaluation = evaluate_captions(captions, {"<u>": ["a <s> dog"], "2": ["a cat"]})
    html = page(evaluation, {"<u>": path, "2": path}, {"model": "<em>"})
    for text in ("&lt;b&gt; &amp; a dog", "&lt;i&gt;.png", "image &lt;u&gt;", "a &lt;s&gt; dog", "of &lt;em&gt;"):
        assert text in html
    assert "(an empty caption)" in html
    assert not any(tag in html for tag in ("<b> ", "<i>", "<u>", "<s>", "<em>"))


def test_the_page_loads_nothing(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    evaluation = evaluate_captions({1: caption("a dog")}, {1: ["a dog runs"]})
    html = page(evaluation, {1: tmp_path / "a.png"}, {"model": "m"})
    assert f'content="{security_policy([read_template("cli/evaluation_page.html")], img_src="data:")}"' in html
    assert "{{" not in html


def test_objects_are_marked_by_what_the_references_name():
    references = ["a dog plays with a ball", "a puppy on the grass"]
    assert marked_objects(caption("A dog chases a cat."), references) == (
        "A <mark>dog</mark> chases a <mark class=wrong>cat.</mark>"
    )
    assert marked_objects(caption("a <b> teddy bear"), ["a teddy bear"]) == "a &lt;b&gt; <mark>teddy bear</mark>"
    assert missing_objects("a cat", ["a dog on grass", "the dog", "a ball"]) == ["dog"]
    assert missing_objects("a puppy", ["a dog", "the dog"]) == []


def test_two_models_are_shown_side_by_side(tmp_path):
    references = {number: [f"a dog and a ball {number}", "a dog"] for number in range(6)}
    for number in references:
        Image.new("RGB", (4, 4)).save(tmp_path / f"{number}.png")
    paths = {number: tmp_path / f"{number}.png" for number in references}
    old = {number: caption("a dog" if number == 5 else "a cat on grass") for number in references}
    new = {number: caption("a cat on grass" if number == 5 else f"a dog and a ball {number}") for number in references}
    before, after = (evaluate_captions(captions, references) for captions in (old, new))
    html = page(after, paths, {"model": "new <b>"}, Compared("old", before))
    improved, worsened = html.split("The most worsened images")
    assert "The most improved images (3)" in improved
    assert worsened.index("5.png") < min(
        worsened.index(f"{number}.png") for number in range(5) if f"{number}.png" in worsened
    )
    assert improved.count("lacks dog") == 3
    difference = after.scores.compare(before.scores)["cider_d"]
    row = f"<td>{difference['difference']:.4f}</td><td>{difference['interval'][0]:.4f} to"
    assert row in html
    assert "First: old; then: new &lt;b&gt;." in html
