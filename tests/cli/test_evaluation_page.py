"""The report page, from captions that look like HTML."""

from PIL import Image

from captioner.cli.evaluation_page import page
from captioner.evaluation import evaluate_captions
from captioner.pipeline import Caption


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
