"""A forced caption and its maps."""

import pytest
import torch

from captioner.inspection.maps import force_caption, standard_maps
from tests.inspection.conftest import network


@pytest.mark.parametrize("null_patch", [True, False])
def test_visual_need_is_the_difference_that_the_image_makes(images, null_patch):
    model, tokenizer = network([text for image in images for text in image.captions], null_patch)
    pixels = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    forced = force_caption(model, tokenizer, pixels, "a dog and a red circle")
    memory = model.encode(pixels[None])
    ids = torch.tensor([[tokenizer.bos, *tokenizer.encode("a dog and a red circle")]])
    if null_patch:
        assert model.blind(memory).positions == 1
    for word in range(len(forced.words)):
        logs = [
            model.decoder(ids[:, : word + 1], each).logits.log_softmax(-1)[0, -1, ids[0, word + 1]].item()
            for each in (memory, model.blind(memory))
        ]
        assert forced.log_probs[word] == pytest.approx(logs[0], abs=1e-4)
        assert forced.visual_need[word] == pytest.approx(logs[0] - logs[1], abs=1e-4)


def test_standard_maps_have_a_row_a_word(trained):
    model, tokenizer = trained
    pixels = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    forced = force_caption(model, tokenizer, pixels, "a red circle")
    found = standard_maps(model, forced)
    assert found.pop("refined").shape == (3, 4, 4)
    assert {each.shape for each in found.values()} == {(3, *model.encoder.grid)}
