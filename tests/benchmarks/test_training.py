"""The training benchmark, in small: that it measures all it says."""

import json

import pytest

from benchmarks.training import main


@pytest.mark.slow
def test_it_measures_all_it_says(capsys, recwarn):
    assert main(["--steps", "3", "--images", "4"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {
        "step_seconds",
        "share_of_peak",
        "grouped_over_single",
        "mixed_over_float32",
        "reading_over_step",
        "padded_share",
        "lightning_over_bare",
        "product_gflops",
    }
    assert all(value > 0 for value in found.values())
