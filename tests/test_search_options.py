"""Searches by method and length."""

import pytest

from captioner.errors import ConfigError
from captioner.generation import BeamSearch, Greedy, Sampling
from captioner.search_options import SearchOptions, parse_region


@pytest.mark.parametrize(
    ("options", "strategy"),
    [
        ({}, BeamSearch(width=5)),
        ({"beam": 3, "captions": 2}, BeamSearch(width=3, captions=2)),
        ({"captions": 7}, BeamSearch(width=7, captions=7)),
        ({"consensus": False}, BeamSearch(consensus=False)),
        ({"length": "short"}, BeamSearch(length_penalty=0.0)),
        ({"length": "long"}, BeamSearch(min_length=14, max_length=48, length_penalty=1.5)),
        ({"length": "long", "length_penalty": 0.0}, BeamSearch(min_length=14, max_length=48, length_penalty=0.0)),
        ({"length": "long", "max_length": 9}, BeamSearch(min_length=8, max_length=9, length_penalty=1.5)),
        ({"method": "greedy", "length": "long"}, Greedy(min_length=14, max_length=48)),
        ({"method": "sample", "captions": 3, "seed": 4}, Sampling(samples=3, seed=4)),
        (
            {"method": "sample", "temperature": 0.7, "top_p": 0.5, "max_length": 8},
            Sampling(temperature=0.7, top_p=0.5, max_length=8),
        ),
    ],
)
def test_options_give_a_strategy(options, strategy):
    assert SearchOptions(**options).strategy() == strategy


@pytest.mark.parametrize(
    "options", [{"beam": 2, "captions": 3}, {"method": "sample", "temperature": 0.0}, {"max_length": 0}]
)
def test_numbers_that_do_not_fit_together(options):
    with pytest.raises(ConfigError):
        SearchOptions(**options).strategy()


def test_a_region_is_four_fractions_within_the_photo():
    assert parse_region("0,0.5, .25,0.5") == (0.0, 0.5, 0.25, 0.5)


@pytest.mark.parametrize("text", ["", "1,2", "0,0,1,1,1", "a,b,c,d", "0,0,2,1", "-0.1,0,1,1", "0,0,0,1", "nan,0,1,1"])
def test_other_regions_are_refused(text):
    with pytest.raises(ValueError, match=r"not (four numbers|within the photo)"):
        parse_region(text)
