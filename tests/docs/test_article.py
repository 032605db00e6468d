"""The article on cross-attention says what its own Python prints."""

from importlib import import_module

import pytest
from PIL import Image

article = import_module("scripts.build_article")


def test_the_article_is_true_and_its_figure_is_the_one_that_is_there(tmp_path):
    assert article.main(["--figures", str(tmp_path)]) == 0
    for made in tmp_path.iterdir():
        with Image.open(article.DOCS / "figures" / made.name) as kept, Image.open(made) as drawn:
            assert kept.size == drawn.size


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("```python\nprint(1)\n```\n\n```text\n1\n```\n", []),
        (
            "\n```python\nx = 2\nprint(x)\n```\n\n```text\n1\n```\n",
            ["cross_attention.md:8: says\n1\nbut line 3 prints\n2\n"],
        ),
    ],
)
def test_what_is_printed_is_compared_with_what_is_said(text, says):
    assert article.run(text)[1] == says
