"""The benchmark of growth, in small: that it measures all it says, and that reducers reduce."""

import json
from dataclasses import replace

import pytest
import torch

from benchmarks import scaling
from benchmarks.reducers import LearnedQueries, Pooled
from benchmarks.scaling import growth, main


@pytest.mark.slow
def test_it_measures_all_it_says(capsys, monkeypatch):
    monkeypatch.setattr(scaling, "CONFIG", replace(scaling.CONFIG, width=64, layers=1))
    monkeypatch.setattr(scaling, "VOCABULARY", 100)
    assert main(["--rounds", "1", "--sides", "2", "3", "4", "--words", "2", "4"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["patches"] for row in found["patches"]["none"]["sizes"]] == [4, 9, 16]
    assert [row["patches"] for row in found["patches"]["pool 2"]["sizes"]] == [4, 16]
    assert set(found["patches"]["none"]["growth"]) == {"project_seconds", "step_seconds", "train_seconds"}
    assert [row["words"] for row in found["words"]["sizes"]] == [2, 4]


def test_growth_is_the_exponent():
    rows = [{"patches": size, "step_seconds": 3 * size**1.5} for size in (2.0, 4.0, 8.0, 16.0)]
    assert growth(rows, "patches") == {"step_seconds": [1.5, 1.5]}


def test_reducers_reduce():
    features = torch.randn(2, 12, 8)
    pooled = Pooled((2, 6), 2)(features)
    assert pooled.shape == (2, 3, 8)
    torch.testing.assert_close(pooled[:, 0], features[:, [0, 1, 6, 7]].mean(dim=1))
    assert LearnedQueries(8, 5, heads=2)(features).shape == (2, 5, 8)
