"""A report in a real browser: what lights up, what the keyboard and the address do, and what never happens."""

import base64
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from captioner.config import Fit
from captioner.geometry import Geometry
from captioner.image_colors import UPRIGHT
from captioner.images import open_image
from captioner.inspection.legend import COLORS, factor, percent
from captioner.inspection.report import IndexEntry, render_index, render_report
from captioner.inspection.trace import AttentionTrace
from tests.browser import HOSTILE, NARROW, WIDE, launched, needs_chromium, playwright, violations

pytestmark = needs_chromium

Open = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with launched() as browser:
        yield browser


@pytest.fixture
def open_page(browser: Any, tmp_path: Path) -> Iterator[Open]:
    """Open a page from a file. Any error, dialog or request for something else fails the test."""
    contexts, problems = [], []

    def open_page(
        html: str, fragment: str = "", *, size: dict[str, int] = WIDE, scheme: str = "light", script: bool = True
    ) -> Any:
        file = tmp_path / f"{len(contexts)}.html"
        file.write_bytes(html.encode())
        contexts.append(browser.new_context(viewport=size, color_scheme=scheme, java_script_enabled=script))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: problems.append(message.text))
        page.on("dialog", lambda dialog: problems.append(dialog.message))
        own = (file.as_uri(), "data:", "about:srcdoc")
        page.on("request", lambda request: request.url.startswith(own) or problems.append(request.url))
        page.goto(file.as_uri() + (f"#{fragment}" if fragment else ""))
        if script and 'id="data"' in html:
            page.wait_for_selector("html[data-ready]", state="attached")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert problems == []


def trace_of(
    maps: NDArray[np.floating[Any]],
    photo: Image.Image | None = None,
    *,
    words: tuple[str, ...] | None = None,
    size: tuple[int, int] = (64, 64),
    fit: Fit = "squash",
    needs: tuple[float, ...] | None = None,
) -> AttentionTrace:
    """A trace by relevance whose maps (W, L, H, h, w) are these; its attention weights are half of them."""
    photo = photo or Image.new("RGB", (320, 240), (90, 120, 60))
    words = words or tuple(f"w{number}" for number in range(len(maps)))
    evidence = np.concatenate([maps.reshape(*maps.shape[:3], -1), np.zeros((*maps.shape[:3], 1))], axis=3)
    return AttentionTrace(
        text=" ".join(words),
        words=words,
        log_probs=(-0.5,) * len(words),
        weights=(evidence / 2).astype(np.float32),
        grid=(maps.shape[3], maps.shape[4]),
        prefix=0,
        geometry=Geometry.of(*photo.size, size=size, fit=fit),
        photo=photo,
        method="relevance",
        needs=(2.0,) * len(words) if needs is None else needs,
        evidence=evidence.astype(np.float32),
    )


def hot_patches(grid: tuple[int, int]) -> NDArray[np.float64]:
    """(h·w, 1, 1, h, w): for each patch a map with this patch alone."""
    return np.eye(grid[0] * grid[1]).reshape(-1, 1, 1, *grid)


def some_maps() -> NDArray[np.float64]:
    """(3, 2, 2, 3, 4): of three words, with two layers and two heads; the second word has the brightest map."""
    return np.random.default_rng(0).uniform(0.02, 0.4, (3, 2, 2, 3, 4)) * np.reshape([0.5, 1.0, 0.6], (3, 1, 1, 1, 1))


def set_hash(page: Any, fragment: str) -> None:
    changed = "new Promise((done) => { addEventListener('hashchange', () => done(), { once: true }); location.hash = "
    page.evaluate(f"() => {changed}{json.dumps(fragment)}; }})")


def overlay(page: Any, channel: int = 3) -> NDArray[np.uint8]:
    """(height, width): a channel of the overlay's pixels, by default their opacity."""
    width, height, content = page.evaluate(
        """(channel) => {
            const canvas = document.getElementById("overlay");
            const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
            let text = "";
            for (let index = channel; index < data.length; index += 4) text += String.fromCharCode(data[index]);
            return [canvas.width, canvas.height, btoa(text)];
        }""",
        channel,
    )
    return np.frombuffer(base64.b64decode(content), np.uint8).reshape(height, width)


INVERSE = {**UPRIGHT, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
"""EXIF orientation -> how a camera that writes it has stored the upright picture."""
DARKEST, BRIGHTEST = round(255 * 0.22), round(255 * 0.82)
"""Opacity of the overlay where a map is lowest and where it is highest."""


SHAPES = [(64, 48), (48, 64), (50, 50), (33, 21), (20, 90), (100, 10), (97, 61), (200, 150)]
FITS: tuple[Fit, ...] = ("squash", "crop", "letterbox")
INPUTS = [((224, 224), (3, 3)), ((128, 288), (2, 5))]
"""The model's (height, width) in pixels, and its grid."""


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_hot_patch_lights_exactly_its_pixels(open_page: Open, fit: Fit, orientation: int) -> None:
    """Every patch, whatever the photo's shape and orientation, the fit and the grid."""
    shape = SHAPES[orientation - 1]
    size, grid = INPUTS[(orientation + FITS.index(fit)) % 2]
    upright = Image.new("RGB", shape, "gray")
    upright.paste((255, 0, 0), (0, 0, shape[0] // 2, shape[1] // 2))
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    (upright.transpose(INVERSE[orientation]) if orientation > 1 else upright).save(buffer, "PNG", exif=exif)
    photo = open_image(buffer.getvalue()).image
    assert photo.size == shape
    trace = trace_of(hot_patches(grid), photo, size=size, fit=fit)
    page = open_page(render_report(trace))
    left, top, right, bottom = np.array(trace.geometry.box) * (shape * 2)
    seen = [np.arange(n) + 0.5 for n in shape[::-1]]
    inside = ((seen[0] >= top) & (seen[0] <= bottom))[:, None] & ((seen[1] >= left) & (seen[1] <= right))
    for word in range(len(trace.words)):
        set_hash(page, f"word={word}&smooth=false")
        expected = trace.geometry.heatmap(trace.patches(word), nearest=True) > 0.5
        found = overlay(page)
        np.testing.assert_array_equal(found == BRIGHTEST, expected)
        np.testing.assert_array_equal(found == DARKEST, inside & ~expected)
        page.locator("#smooth").check()
        smooth = DARKEST + (BRIGHTEST - DARKEST) * trace.geometry.heatmap(trace.patches(word))
        np.testing.assert_allclose(overlay(page)[inside], smooth[inside], atol=2)
    # The photo below the overlay is upright too.
    red = page.evaluate(
        """() => {
            const canvas = document.createElement("canvas"), photo = document.getElementById("photo");
            [canvas.width, canvas.height] = [2, 2];
            canvas.getContext("2d").drawImage(photo, 0, 0, 2, 2);
            const { data } = canvas.getContext("2d").getImageData(0, 0, 2, 2);
            return [0, 4, 8, 12].map((start) => data[start] - data[start + 1]);
        }"""
    )
    assert red[0] > 100
    assert max(red[1:]) < 60


def test_the_colors_are_those_of_the_sheet(open_page: Open) -> None:
    page = open_page(render_report(trace_of(hot_patches((1, 2)))), "word=0&smooth=false")
    for channel in range(3):
        found = overlay(page, channel)
        assert abs(int(found[100, 80]) - int(COLORS[255, channel])) <= 2
        assert abs(int(found[100, 240]) - int(COLORS[0, channel])) <= 4  # rounded more at low opacity


def test_the_screen_shows_the_hot_patch_where_it_is(open_page: Open) -> None:
    trace = trace_of(hot_patches((3, 4)))
    page = open_page(render_report(trace), "word=6&smooth=false")
    page.wait_for_timeout(400)  # the photo turns gray
    shot = Image.open(io.BytesIO(page.locator("#frame").screenshot())).convert("RGB")
    red, blue = (np.asarray(shot, float)[..., channel] for channel in (0, 2))
    y, x = np.argwhere(red - blue > 60).mean(axis=0) / shot.size[::-1]
    left, top, right, bottom = trace.geometry.patch_box(1, 2, (3, 4))
    assert (x, y) == pytest.approx(((left + right) / 2, (top + bottom) / 2), abs=0.01)
    assert shot.width / shot.height == pytest.approx(4 / 3, abs=0.01)


def test_a_word_lights_up_under_the_pointer_and_stays_lit_if_clicked(open_page: Open) -> None:
    maps = hot_patches((1, 3)) * np.array([9.0, 0.8, 0.6]).reshape(3, 1, 1, 1, 1)
    trace = trace_of(maps, needs=(0.1, 3.0, 2.0))
    page = open_page(render_report(trace))

    def lit() -> int | None:
        """The word whose map is shown."""
        columns = overlay(page)[100, [50, 160, 270]]
        return int(columns.argmax()) if columns.max() else None

    words = page.locator(".word")
    assert lit() == 1  # at first, the brightest of the words that need the photo
    words.nth(2).hover()
    assert (lit(), page.inner_text("#word")) == (2, "w2")
    page.mouse.move(5, 5)
    assert lit() == 1
    words.nth(0).click()
    page.mouse.move(5, 5)
    page.locator("#method").focus()
    assert (lit(), page.inner_text("#word")) == (0, "w0")
    assert [each.get_attribute("aria-pressed") for each in words.all()] == ["true", "false", "false"]
    assert page.evaluate("location.hash") == "#word=0"
    words.nth(0).click()
    page.locator("#method").focus()
    page.mouse.move(5, 5)
    assert lit() is None
    assert page.evaluate("location.hash") == "#word=null"
    assert page.locator("#photo.gray").count() == 0


def test_the_keyboard_reaches_everything(open_page: Open) -> None:
    page = open_page(render_report(trace_of(some_maps())))
    focused = "document.activeElement.firstChild?.textContent ?? document.activeElement.id"
    page.locator(".word").nth(0).focus()
    for key, word in (("ArrowRight", "w1"), ("End", "w2"), ("ArrowRight", "w2"), ("ArrowLeft", "w1"), ("Home", "w0")):
        page.keyboard.press(key)
        assert (page.evaluate(focused), page.inner_text("#word")) == (word, word)
    page.keyboard.press("End")
    page.keyboard.press("Enter")
    assert page.evaluate("location.hash") == "#word=2"
    page.locator("#surface").focus()
    page.keyboard.press("ArrowRight")  # from nowhere to the middle patch, (1, 2) of 3 x 4
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    assert "at=0.6250%2C0.8333" in page.evaluate("location.hash")
    assert "lower center" in page.inner_text("#spot")
    assert "w2" in page.inner_text("#status")
    page.keyboard.press("Escape")
    assert page.evaluate("location.hash") == "#word=2"
    page.keyboard.press("Escape")
    assert page.evaluate("location.hash") == "#word=null"


def test_a_click_on_the_photo_shades_the_words_that_used_it(open_page: Open) -> None:
    trace = trace_of(some_maps())
    page = open_page(render_report(trace))
    box = page.locator("#surface").bounding_box()
    page.mouse.click(box["x"] + 0.6 * box["width"], box["y"] + 0.9 * box["height"])  # patch (2, 2)
    values = [float(trace.patches(word)[2, 2]) for word in range(3)]
    assert page.locator(".word small").all_inner_texts() == [factor(value) for value in values]
    shares = [
        float(each.evaluate("each => each.style.getPropertyValue('--share')")) for each in page.locator(".word").all()
    ]
    assert shares == pytest.approx([value / max(values) for value in values], abs=0.01)
    page.select_option("#method", "raw")
    raw = replace(trace, method="raw", evidence=None)
    expected = [percent(float(raw.patches(word)[2, 2])).replace(" ", "\u00a0") for word in range(3)]
    assert page.locator(".word small").all_inner_texts() == expected
    page.mouse.click(box["x"] + 0.6 * box["width"], box["y"] + 0.9 * box["height"])
    assert page.locator(".word small").all_inner_texts() == ["61\u00a0%"] * 3


@pytest.mark.parametrize("fit", ["crop", "letterbox"])
def test_what_the_model_did_not_see_is_pale(open_page: Open, fit: Fit) -> None:
    visible = np.array([[True, False, True]])
    trace = replace(trace_of(hot_patches((1, 3)), size=(64, 64), fit=fit), visible=visible)
    page = open_page(render_report(trace), "word=null")
    pale = overlay(page) > 0
    seen = trace.geometry.heatmap(visible.astype(np.float32), nearest=True) > 0
    np.testing.assert_array_equal(pale, ~seen)
    if fit == "crop":
        box = page.locator("#surface").bounding_box()
        page.mouse.click(box["x"] + 3, box["y"] + 30)
        assert page.inner_text("#spot") == "The model did not see the upper left of the photo."


def test_maps_can_be_chosen_and_the_address_keeps_the_choice(open_page: Open) -> None:
    trace = trace_of(some_maps())
    trace = replace(trace, best_heads=((1, 1),))
    html = render_report(trace)
    page = open_page(html)
    assert page.locator("#method option").all_inner_texts() == ["evidence", "attention"]
    page.select_option("#method", "raw")
    page.select_option("#layer", "1")
    page.select_option("#head", "0")
    page.select_option("#scale", "own")
    page.locator("#smooth").uncheck()
    page.locator("#grid").check()
    page.locator("#opacity").fill("60")
    page.locator(".word").nth(2).click()
    fragment = page.evaluate("location.hash")[1:]
    assert set(fragment.split("&")) == {
        *("word=2", "method=raw", "layer=1", "head=0"),
        *("scale=own", "smooth=false", "grid=true", "opacity=60"),
    }
    pixels = overlay(page)
    again = open_page(html, fragment)
    np.testing.assert_array_equal(overlay(again), pixels)
    chosen = replace(trace, method="raw", evidence=None).select(1, 0).patches(2)
    again.locator("#grid").uncheck()
    heat = trace.geometry.heatmap(chosen / chosen.max(), nearest=True)
    np.testing.assert_allclose(overlay(again), 0.6 * (DARKEST + (BRIGHTEST - DARKEST) * heat), atol=2)
    assert again.inner_text("#high") == percent(float(chosen.max())).replace(" ", "\u00a0")
    again.select_option("#layer", "null")
    again.select_option("#head", "best")
    best = replace(trace, method="raw", evidence=None).select(heads=[(1, 1)]).patches(2)
    heat = trace.geometry.heatmap(best / best.max(), nearest=True)
    np.testing.assert_allclose(overlay(again), 0.6 * (DARKEST + (BRIGHTEST - DARKEST) * heat), atol=2)


@pytest.mark.parametrize(
    "fragment",
    ["word=99&layer=7&head=9&method=none", "at=2,3&caption=5", "at=x&opacity=1e9", "%E0%A4%A", "word=-1&at=,"],
)
def test_an_address_of_another_report_does_no_harm(open_page: Open, fragment: str) -> None:
    page = open_page(render_report(trace_of(some_maps())), fragment)
    assert overlay(page).max() > DARKEST


def test_small_pictures_show_all_layers_and_heads(open_page: Open) -> None:
    page = open_page(render_report(trace_of(some_maps())), "method=raw")
    page.click("#multiples summary")
    names = [f"layer {layer}, head {head}" for layer in range(2) for head in range(2)]
    playwright.expect(page.locator(".cell")).to_have_text(names)  # drawn once the browser has told the page
    page.locator(".cell").nth(3).click()
    assert (page.input_value("#layer"), page.input_value("#head")) == ("1", "1")
    assert page.locator(".cell[aria-pressed=true]").all_inner_texts() == names[3:]
    page.select_option("#method", "relevance")
    assert page.locator(".cell").all_inner_texts() == ["layer 0", "layer 1"]


def test_a_word_that_the_sentence_gave_away_is_faint_on_its_own_scale(open_page: Open) -> None:
    maps = hot_patches((1, 2)) * np.array([1.0, 0.01]).reshape(2, 1, 1, 1, 1)
    page = open_page(render_report(trace_of(maps, needs=(3.0, 0.1))), "word=1&smooth=false")
    opacity = overlay(page)
    assert (opacity[:, :160] == 0).all()  # no dark tint
    assert (opacity[:, 160:] == round(255 * 0.55)).all()
    assert page.inner_text("#scale-note") == "Faint, on a scale of its own: the words before it were enough."
    assert "The words before it were enough." in page.inner_text("#sentence")
    unlikely = replace(trace_of(maps, needs=(3.0, 0.1)), log_probs=(-0.5, -4.0))
    assert "The photo hardly supports it." in open_page(render_report(unlikely), "word=1").inner_text("#sentence")
    set_hash(page, "word=0&smooth=false")
    assert page.inner_text("#scale-note") == "All words share this scale."
    assert "20x likelier with the photo" in page.inner_text("#sentence")


def test_doubt_is_said_in_words(open_page: Open) -> None:
    trace = replace(trace_of(some_maps(), words=("a", "red", "guitar")), hallucination={1: 0.1, 2: 0.64})
    page = open_page(render_report(trace), "word=2")
    assert page.inner_text("#doubts") == "By the model's own estimate, this may not be in the photo: guitar (64\u00a0%)"
    assert "It may not be in the photo: 64" in page.inner_text("#sentence")
    assert page.locator(".word span").all_inner_texts() == ["a", "red", "guitar"]


def test_a_photo_unlike_the_training_photos_is_said_to_be_one(open_page: Open) -> None:
    trace = trace_of(some_maps())
    assert not open_page(render_report(replace(trace, unfamiliarity=0.9))).is_visible("#unfamiliar")
    page = open_page(render_report(replace(trace, unfamiliarity=1.1)))
    assert page.inner_text("#unfamiliar").startswith("This photo is unlike the training photos")


def test_the_numbers_of_a_word_are_beside_it(open_page: Open) -> None:
    trace = replace(
        trace_of(some_maps()),
        confidences=(0.25, 0.5, 0.75),
        next_best=((("cat", 0.125), ("", 0.0005)), (), ()),
        log_probs=(float(np.log(0.8)),) * 3,
        needs=(float(np.log(8)), 2.0, 2.0),
    )
    page = open_page(render_report(trace), "word=0")
    facts = dict(zip(page.locator("dt").all_inner_texts(), page.locator("dd").all_inner_texts(), strict=True))
    assert facts == {
        "Probability": "80\u00a0%",
        "Without the photo": "10\u00a0%",
        "A person would use it": "25\u00a0%",
        "Attention off the photo": "0\u00a0%",
        "Patches covered": f"{2 ** trace.entropy[0]:.0f} of 12",
    }
    assert page.inner_text("#next") == "Next-best words: cat 13\u00a0%, (end) 0.1\u00a0%"


def test_other_captions_are_a_click_away(open_page: Open) -> None:
    other = trace_of(some_maps()[:2], words=("another", "one"))
    page = open_page(render_report(replace(trace_of(some_maps()), alternatives=(other,))))
    page.locator("#captions button").nth(1).click()
    assert page.locator(".word span").all_inner_texts() == ["another", "one"]
    assert page.get_attribute("#photo", "alt") == "another one"
    assert page.evaluate("location.hash") == "#caption=1"
    assert overlay(page).max() > DARKEST


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("size", [WIDE, NARROW])
def test_hostile_texts_are_shown_as_they_are(open_page: Open, text: str, size: dict[str, int]) -> None:
    trace = trace_of(some_maps(), words=(text, "a", "dog"))
    trace = replace(trace, next_best=(((text, 0.5),), (), ()), hallucination={0: 0.9}, alternatives=(trace,))
    page = open_page(render_report(trace, name=text, model=text), "word=0", size=size)
    assert page.locator(".word span").nth(0).text_content() == text
    assert page.text_content("#word") == text
    assert page.locator("#captions button").nth(1).text_content().startswith(trace.text)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.locator("script").count() == 2
    assert page.locator("img").count() == 1


def test_the_policy_stops_what_is_not_the_page_s_own(open_page: Open, browser: Any, tmp_path: Path) -> None:
    trace = trace_of(some_maps())
    open_page(render_report(trace))
    html = render_report(trace).replace("</body>", "<script>document.title = 'hacked'</script></body>")
    (tmp_path / "hacked.html").write_text(html, encoding="utf-8")
    context = browser.new_context()
    page = context.new_page()
    page.goto((tmp_path / "hacked.html").as_uri())
    page.wait_for_selector("html[data-ready]", state="attached")
    assert page.title() != "hacked"
    blocked = "fetch('data:text/plain,x').then(() => false, () => true)"
    assert page.evaluate(blocked)
    context.close()


def test_a_notebook_s_frame_works(open_page: Open) -> None:
    page = open_page(f"<!DOCTYPE html><title>notebook</title>{trace_of(some_maps())._repr_html_()}")
    frame = page.frame_locator("iframe")
    frame.locator("html[data-ready]").wait_for(state="attached")
    frame.locator(".word").nth(2).click()
    assert frame.locator("#word").inner_text() == "w2"


def test_without_scripts_the_photo_and_its_caption_are_there(open_page: Open) -> None:
    page = open_page(render_report(trace_of(some_maps(), words=("a", "<b>", "dog"))), script=False)
    assert "a <b> dog" in page.locator("noscript").inner_text()
    assert page.locator("#photo").bounding_box()["width"] > 100


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, NARROW])
def test_everybody_can_use_it(open_page: Open, scheme: str, size: dict[str, int], tmp_path: Path) -> None:
    trace = trace_of(some_maps(), words=("a", "red", "guitar"), needs=(0.2, 2.0, 3.0))
    trace = replace(trace, hallucination={2: 0.9}, alternatives=(trace,), next_best=((("cat", 0.5),),) * 3)
    for fragment in ("", "word=null", "word=0&at=0.5,0.5&grid=true", "method=raw&layer=1&head=1"):
        page = open_page(render_report(trace, name="photo.jpg", index="index.html"), fragment, size=size, scheme=scheme)
        page.click("#multiples summary")
        page.click("#exact summary")
        assert violations(page) == []
    trace.photo.save(tmp_path / "photo.png")
    entry = IndexEntry(tmp_path / "photo.png", "a dog", 0.5, "0.html", references=("a cat",), note="a note")
    page = open_page(render_index([entry] * 3, measure="confidence", model="m"), size=size, scheme=scheme)
    assert violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
