"""The runner without PyTorch gives what the package gives: pixels, captions, probabilities, attention."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("onnxruntime", reason="takes the extra `onnx`")

from captioner.caption import caption_memory
from captioner.export.runner import Beams, BeamSearch, main
from captioner.generation import BeamSearch as TorchBeamSearch
from captioner.generation.search import mask_choices
from captioner.generation.strategies import BeamState
from captioner.inspection.forced_pass import ForcedPass

PHOTOS = sorted((Path(__file__).resolve().parents[2] / "docs" / "photos").glob("*.jpg"))
SEARCHES = [
    {"width": 1},
    {"width": 3, "captions": 3},
    {"width": 5, "captions": 2, "length_penalty": 0.0},
    {"width": 5, "min_length": 14, "max_length": 48, "length_penalty": 1.5},
    {"width": 4, "max_length": 2},
    {"width": 2, "length_penalty": -0.5, "no_repeat_ngram": 0},
    {"width": 3, "no_repeat_ngram": 1, "min_length": 11},
    {"width": 5, "no_repeat_ngram": 3, "min_length": 20},
]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("consensus", [False, True])
@pytest.mark.parametrize("options", SEARCHES)
def test_beams_follow_the_rules_of_the_package(options, consensus, seed):
    """The same random log-probabilities, step by step; few words, so that many captions end, and some cannot go on."""
    words, eos, suppressed, once = 12, 3, (0, 7), (4, 5)
    options = options | {"consensus": consensus}
    ours, theirs = TorchBeamSearch(**options), BeamSearch(**options)
    state = BeamState(ours, torch.zeros(1, 0, dtype=torch.long), torch.zeros(1, 0), eos, pad=0)
    beams = Beams(theirs, eos, suppressed, once)
    generator = torch.Generator().manual_seed(seed)
    rules = {"suppressed": torch.tensor(suppressed), "once": torch.tensor(once)}
    rules |= {"no_repeat_ngram": ours.no_repeat_ngram or 0, "min_length": ours.min_length}
    for length in range(ours.max_length):
        choices = (3 * torch.randn(ours.width, words, generator=generator)).log_softmax(dim=1)
        if length == 0:
            choices = choices[:1].expand(ours.width, -1)
        parents = state.step(mask_choices(choices, state.tokens, eos=eos, **rules))
        continued = beams.step(choices.numpy().copy())
        possible = int(state.scores.isfinite().sum())  # rows that had no choice left come last
        assert continued[:possible] == parents.tolist()[:possible]
        assert [list(row.tokens) for row in beams.running[:possible]] == state.tokens.tolist()[:possible]
        assert beams.settled == bool(state.settled())  # and its captions no longer change
    tokens, log_probs, counts = (part[0].tolist() for part in state.sequences())
    found = beams.captions()
    assert len(found) == min(counts, ours.captions)
    if consensus:  # in another order, which captions of the package are compared with below
        places = [
            next(n for n, ids in enumerate(tokens) if list(row.tokens) == ids[: len(row.tokens)]) for row in found
        ]
        tokens, log_probs = ([part[place] for place in places] for part in (tokens, log_probs))
    for row, ids, values in zip(found, tokens, log_probs, strict=False):
        end = len(row.tokens)
        assert list(row.tokens) == ids[:end]
        assert (eos in row.tokens) or end == state.length
        assert row.token_log_probs == tuple(values[:end])


@pytest.mark.parametrize("options", SEARCHES)
def test_captions_are_the_same(exported, options):
    captioner, onnx = exported.captioner, exported.onnx
    photos = [captioner.prepare(path) for path in PHOTOS]
    with torch.inference_mode():
        memory = captioner.model.encode(torch.from_numpy(np.stack([photo.pixels for photo in photos])))
    expected = caption_memory(captioner.model.decoder, captioner.tokenizer, memory, TorchBeamSearch(**options))
    found = onnx.caption([onnx.prepare(path) for path in PHOTOS], BeamSearch(**options))
    for captions, others in zip(found, expected, strict=True):
        assert [(each.text, each.tokens) for each in captions] == [(each.text, each.tokens) for each in others]
        for one, other in zip(captions, others, strict=True):
            assert one.log_prob == pytest.approx(other.log_prob, abs=1e-4)
            assert [text for text, _ in one.words] == [word.text for word in other.words]
            assert [value for _, value in one.words] == pytest.approx([w.log_prob for w in other.words], abs=1e-4)


def test_a_batch_gives_what_single_photos_give(exported):
    onnx = exported.onnx
    photos = [onnx.prepare(path) for path in PHOTOS]
    together = onnx.caption(photos, BeamSearch(captions=3))
    for photo, captions in zip(photos, together, strict=True):
        [alone] = onnx.caption([photo], BeamSearch(captions=3))
        assert [each.tokens for each in alone] == [each.tokens for each in captions]
        assert [each.log_prob for each in alone] == pytest.approx([each.log_prob for each in captions], abs=1e-4)
    assert onnx.caption([]) == []


def test_attention_is_the_same(exported):
    captioner, onnx = exported.captioner, exported.onnx
    photo = onnx.prepare(PHOTOS[0])
    [[caption]] = onnx.caption([photo])
    with torch.inference_mode():
        memory = captioner.model.encode(torch.from_numpy(photo.pixels)[None])
    forced = ForcedPass.of(captioner.model.decoder, captioner.tokenizer, memory, caption.tokens)
    np.testing.assert_allclose(onnx.attention(photo, caption), forced.weights, atol=1e-5)
    assert [text for text, _ in caption.words] == list(forced.words)


def test_an_overlay_is_colored_where_a_word_looked(exported):
    """White photo: how far each patch is from white follows its attention."""
    onnx = exported.onnx
    photo = onnx.prepare(Image.new("RGB", (192, 192), "white"))
    [[caption]] = onnx.caption([photo])
    sheet = onnx.draw_attention(photo, caption)
    columns = min(5, len(caption.words))
    assert sheet.size == (192 * columns, 212 * -(-len(caption.words) // columns))
    (high, wide), start = onnx.config["onnx"]["grid"], onnx.config["onnx"]["prefix"]
    weights = onnx.attention(photo, caption)[0, :, :, start : start + high * wide].mean(axis=(0, 1))
    heat = photo.geometry.heatmap(weights.reshape(high, wide), size=(192, 192)) / weights.max()
    blue = np.asarray(sheet)[20:212, :192, 2]
    np.testing.assert_allclose(blue, 255 * (1 - 0.75 * heat), atol=2)


def test_the_command_line(exported, capsys, tmp_path):
    """In batches of two; a broken file among them is reported."""
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no photo")
    paths = [*map(str, PHOTOS[:2]), str(broken), str(PHOTOS[2])]
    expected = exported.captioner(list(PHOTOS[:3]))
    assert main([*paths, "--batch-size", "2", "--overlays", str(tmp_path / "new")], exported.folder) == 1
    captured = capsys.readouterr()
    names = [path for path in paths if path != str(broken)]
    assert captured.out == "".join(f"{name}\t{each.text}\n" for name, each in zip(names, expected, strict=True))
    assert captured.err.startswith(f"run.py: {broken}: not an image")
    assert {path.name for path in (tmp_path / "new").iterdir()} == {f"{path.stem}.png" for path in PHOTOS[:3]}
    assert main([paths[0]], exported.folder) == 0
    assert capsys.readouterr().out == f"{expected[0].text}\n"
    assert main([paths[0], "--json"], exported.folder) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["path"], record["caption"]) == (paths[0], expected[0].text)
    assert record["log_prob"] == pytest.approx(expected[0].log_prob, abs=1e-3)
    assert [word["text"] for word in record["words"]] == [word.text for word in expected[0].words]
