import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.familiarity import area_interval, main, unfamiliarity
from benchmarks.ranking import area_under_curve
from benchmarks.unlike_pictures import diagram, document
from captioner import Captioner
from captioner.errors import ConfigError
from captioner.model.familiarity import Familiarity
from tests.inspection.conftest import network


@pytest.fixture
def captioner():
    return Captioner(*network(["a dog"]), name="tiny")


def test_the_interval_holds_the_area_and_narrows_with_more_pictures():
    rng = np.random.default_rng(0)
    unlike, photos = rng.normal(1, 1, 400), rng.normal(0, 1, 400)
    low, high = area_interval(unlike, photos)
    assert low < area_under_curve(unlike, photos) < high
    narrow = area_interval(unlike[:20], photos)
    assert high - low < narrow[1] - narrow[0]


def test_drawn_pictures_are_measured_as_captioning_does(captioner, shapes, tmp_path, capsys):
    pictures = [draw(random.Random(seed)) for seed in range(3) for draw in (diagram, document)]
    assert len({picture.tobytes() for picture in pictures}) == 6
    with pytest.raises(ConfigError, match="tiny: has no familiar distance"):
        unfamiliarity(captioner, pictures)
    captioner.model.familiarity = Familiarity.fit(torch.randn(300, captioner.model.encoder.width))
    captioner.model.config = replace(captioner.model.config, familiar_distance=3.0)
    found = unfamiliarity(captioner, pictures)
    assert found == pytest.approx([caption.unfamiliarity for caption in captioner(pictures)], rel=1e-4)
    (tmp_path / "kinds" / "drawn").mkdir(parents=True)
    for number, picture in enumerate(pictures):
        picture.save(tmp_path / "kinds" / "drawn" / f"{number}.png")
    captioner.save_pretrained(tmp_path / "model")
    assert main(["--model", str(tmp_path / "model"), "--data", str(shapes), "--unlike", str(tmp_path / "kinds")]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("| drawn | 6 | ")
    assert last.endswith(f"{(found > 1).mean():.0%} |")
