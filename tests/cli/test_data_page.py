"""The page of problems: texts are escaped, nothing is loaded, and pictures come from the image folder only."""

from pathlib import Path

from PIL import Image

from captioner.cli.data_page import MAX_SHOWN, page
from captioner.data.annotations import ListedCaption, ListedImage, Listing, Problem
from captioner.templates import read_template, security_policy


def test_problems_are_shown_with_their_pictures(tmp_path: Path) -> None:
    root = tmp_path / "images"
    root.mkdir()
    for name in ("<i>.png", "b.png", "../secret.png"):
        Image.new("RGB", (40, 30), "red").save(root / name)
    images = tuple(
        ListedImage(name, name, (ListedCaption("<u>", f"captions.csv:{number}"),), "train", f"captions.csv:{number}")
        for number, name in enumerate(("<i>.png", "b.png", "../secret.png", "missing.png"), start=2)
    )
    problems = [
        Problem("similar_picture", "<i>.png", "looks like b.png", harmless=True, pictures=("<i>.png", "b.png")),
        Problem("empty_caption", "captions.csv:3", "<script>alert(1)</script>"),
        Problem("unsafe_path", "captions.csv:4", "leaves the folder"),
        Problem("missing_image", "captions.csv:5", "is not there"),
        *(Problem("bom", f"{number}.txt", "a mark") for number in range(MAX_SHOWN + 2)),
    ]
    html = page(Listing(tmp_path / "<b>.csv", root, images), problems, "4 images usable")
    assert [html.count(f">{code} ({number})<") for code, number in (("empty_caption", 1), ("bom", MAX_SHOWN + 2))] == [
        1,
        1,
    ]
    assert html.index("empty_caption") < html.index("similar_picture")  # errors first
    assert html.count('<img src="data:image/jpeg;base64,') == html.count("<img") == 3
    assert "and 2 more" in html
    assert 'alt="&lt;i&gt;.png"' in html
    assert not any(tag in html for tag in ("<i>", "<u>", "<script", "<b>.csv"))
    assert f'content="{security_policy([read_template("cli/data_page.html")], img_src="data:")}"' in html
