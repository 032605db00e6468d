"""The distance from training photos against its definition, and what a model makes of it."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from captioner.checkpoint import load_model, save_model
from captioner.model import familiarity
from captioner.model.familiarity import Familiarity, summarize
from tests.inspection.conftest import network


@pytest.fixture
def summaries():
    """(S, E), whose directions have clearly different variances."""
    return torch.randn(400, 8) * torch.tensor([8.0, 7, 6, 5, 4, 3, 2, 1]) + 3


def test_a_summary_is_the_mean_in_units_of_the_spread():
    features = torch.tensor([[[1.0, 10.0], [3.0, 30.0]]])
    assert_close(summarize(features), torch.tensor([[2.0, 20.0]]) / 5.5)
    assert_close(summarize(7 * features), summarize(features))
    assert summarize(torch.ones(1, 3, 2)).isfinite().all()


def test_with_all_directions_it_is_the_mahalanobis_distance(summaries):
    fitted = Familiarity.fit(summaries)
    photos = torch.randn(5, 3, 8) * 4
    offset = summarize(photos) - summaries.mean(dim=0)
    expected = torch.einsum("be,ef,bf->b", offset, torch.linalg.inv(torch.cov(summaries.T)), offset).sqrt()
    assert_close(fitted(photos), expected, rtol=1e-4, atol=1e-4)


def test_the_other_directions_share_one_variance(summaries, monkeypatch):
    monkeypatch.setattr(familiarity, "DIRECTIONS", 3)
    fitted = Familiarity.fit(summaries)
    variances, directions = torch.linalg.eigh(torch.cov(summaries.T))
    variances[:5] = variances[:5].mean()
    photos = torch.randn(4, 3, 8)
    offset = summarize(photos) - summaries.mean(dim=0)
    expected = ((offset @ directions).square() / variances).sum(dim=1).sqrt()
    assert_close(fitted(photos), expected, rtol=1e-4, atol=1e-4)


def test_features_that_depend_on_each_other_leave_distances_finite():
    summaries = torch.randn(300, 3) @ torch.randn(3, 8)
    fitted = Familiarity.fit(summaries)
    assert fitted(torch.randn(5, 2, 8)).isfinite().all()


def test_the_distance_of_a_photo_does_not_depend_on_its_batch(summaries):
    fitted, photos = Familiarity.fit(summaries), torch.randn(6, 4, 8)
    assert_close(torch.cat([fitted(photo[None]) for photo in photos]), fitted(photos))


def test_a_model_folder_keeps_it_and_folders_without_it_load(tmp_path):
    model, tokenizer = network(["a dog"])
    features = torch.randn(3, model.encoder.patches.stop, model.encoder.width)
    assert model.unfamiliarity(features) == [None, None, None]
    save_model(tmp_path / "before", model, tokenizer, card="")
    assert load_model(tmp_path / "before")[0].unfamiliarity(features) == [None, None, None]
    model.familiarity = Familiarity.fit(torch.randn(500, model.encoder.width))
    model.config = replace(model.config, familiar_distance=2.0)
    found = model.unfamiliarity(features)
    assert found == pytest.approx((model.familiarity(features) / 2).tolist())
    for half in (False, True):
        save_model(tmp_path / "after", model, tokenizer, card="", half=half)
        loaded, _ = load_model(tmp_path / "after")
        assert loaded.unfamiliarity(features) == pytest.approx(found, rel=1e-2 if half else 0)
