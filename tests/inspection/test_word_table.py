"""Tables of words, and their summaries."""

import json
from dataclasses import replace

import numpy as np
import pytest

from captioner.inspection.summary import heads_markdown, heads_summary, markdown, summarize
from captioner.inspection.word_table import WordTable


def table_of(heads, is_object=None, visual_need=None):
    count = len(heads)
    return WordTable(
        photos=np.arange(count),
        words=tuple("dog" for _ in range(count)),
        is_object=np.ones(count, bool) if is_object is None else np.array(is_object),
        visual_need=np.full(count, 2.0, np.float32) if visual_need is None else np.array(visual_need, np.float32),
        columns={"raw mass": np.linspace(0, 1, count).astype(np.float32), "new mass": np.ones(count, np.float32)},
        heads=heads,
    )


def test_summaries():
    table = table_of(
        np.full((6, 1, 2, 2), 0.5, np.float32), is_object=[True] * 4 + [False] * 2, visual_need=[2, 2, 1, 2, 2, 2]
    )
    found = summarize(table)
    assert [group["words"] for group in found.values()] == [3, 1, 2]
    first = found["objects that need the image by more than 1 nat"]["mass"]
    assert first["raw"]["value"] == pytest.approx((0 + 0.2 + 0.6) / 3, abs=1e-4)
    assert first["new"]["minus_raw"]["value"] == pytest.approx(1 - 0.8 / 3, abs=1e-4)
    assert "minus_raw" not in first["raw"]
    assert "over_area" not in first["raw"]
    page = markdown("Title", found)
    assert page.startswith("## Title\n")
    assert "| new | 1.000 (1.000 to 1.000) | +0.733" in page
    assert heads_summary(table)["mass_by_layer_and_head"] == [[1, 1]]
    assert "| 0 | 1.000 | 1.000 |" in heads_markdown(heads_summary(table))
    assert json.dumps(found, allow_nan=False)


def test_intervals_are_over_photos():
    """Words of one photo are not independent: two photos whose words are all 0 and all 1 say next to nothing."""
    heads = np.ones((200, 1, 1, 2), np.float32)
    columns = {"hit": np.repeat([0, 1], 100).astype(np.float32)}
    table = replace(table_of(heads), columns=columns)
    everything = np.ones(200, bool)
    low, high = table.mean("hit", everything)[1:3]
    assert 0.4 < low < 0.5 < high < 0.6
    together = replace(table, photos=np.repeat([0, 1], 100))
    assert together.mean("hit", everything) == (0.5, 0, 1)


def test_mass_is_compared_with_the_area_and_with_the_center():
    """Two photos whose words have different areas: the ratio is that of the means, and certain only if both agree."""
    columns = {"area": [0.1, 0.3], "raw mass": [0.2, 0.6], "center mass": [0.1, 0.7], "center hit": [0, 1]}
    columns = {name: np.array(values, np.float32) for name, values in columns.items()}
    table = replace(table_of(np.ones((2, 1, 1, 2), np.float32)), columns=columns)
    found = summarize(table)["objects that need the image by more than 1 nat"]
    assert found["mass"]["raw"]["over_area"] == {"value": 2, "interval": [2, 2]}
    assert found["mass"]["center"]["over_area"]["value"] == 2
    assert found["mass"]["center"]["over_area"]["interval"] == pytest.approx([1, 7 / 3], abs=1e-4)
    assert found["mass"]["raw"]["minus_center"] == {"value": 0, "interval": [-0.1, 0.1]}
    assert found["hit"]["center"] == {"value": 0.5, "interval": [0, 1]}
    page = markdown("Title", {"words": found})
    assert "| map | area | mass | over area | minus raw | minus center | hit |" in page
    assert "| raw |  | 0.400 (0.200 to 0.600) | 2.00 (2.00 to 2.00) |  | +0.000 (-0.100 to +0.100) |  |" in page
