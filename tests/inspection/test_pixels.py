"""Deletion and insertion are right where the truth is known: everything blurred, one patch hidden."""

import numpy as np
import torch

from captioner.inspection.pixels import baselines, pixel_curves
from captioner.inspection.relevance import perturbation


def test_where_everything_is_blurred_all_rankings_are_alike(trained, images):
    table = pixel_curves(*trained, images[:3], fractions=(1.0,))
    maps = {column.rpartition(" ")[0] for column in table.columns}
    assert {"raw", "relevance", "refined", "center", "edges", "random"} <= maps
    for name in maps:
        np.testing.assert_allclose(table.columns[f"{name} deletion"], table.columns["raw deletion"], atol=1e-4)
        # Showing all of the photo gains what blurring all of it loses.
        np.testing.assert_allclose(table.columns[f"{name} insertion"], table.columns["raw deletion"], atol=1e-4)
    assert np.abs(table.columns["raw deletion"]).max() > 0
    assert table.is_object.all()
    assert len(table.words) == 3


def test_the_patch_that_matters_most_is_worth_most(trained, images):
    """One patch is hidden: no other ranking can lose more than that by the patches' own losses."""
    model, tokenizer = trained

    def maps(model, forced):
        encoder = model.encoder
        lost = perturbation(
            model.decoder, forced.memory, forced.tokens, forced.spans, encoder.grid, encoder.patches, size=1
        )
        exact = lost[:, encoder.patches].unflatten(1, encoder.grid).numpy()
        return {"exact": exact - exact.min(), "worst": exact.max() - exact}

    table = pixel_curves(model, tokenizer, images[:4], maps=maps, fractions=(0.01,))
    for name in ("worst", "center", "edges", "random"):
        assert (table.columns["exact memory"] >= table.columns[f"{name} memory"] - 1e-5).all()
    assert (table.columns["exact memory"] > table.columns["worst memory"]).all()


def test_baselines_rank_the_center_and_the_edges_first():
    pixels = torch.zeros(3, 30, 60, dtype=torch.uint8)
    pixels[:, 3:7, 43:57] = 255  # in the upper right patch
    found = baselines(pixels, (3, 3))
    assert found["center"].argmax() == 4
    assert set(np.argsort(found["center"])[:4]) == {0, 2, 6, 8}
    assert found["edges"].argmax() == 2
    assert np.count_nonzero(found["edges"]) == 1
