"""What every test can rely on: one thread, fixed seeds, and the data sets that tests share."""

import importlib
import os
import random
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

# Before torch is loaded, and for the processes that tests start: sums in one order, and no quarrel over few cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _seeds() -> None:
    random.seed(0)
    np.random.seed(0)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of large data that is not part of the repository."""
    folder = Path(os.environ.get("CAPTIONER_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there: set CAPTIONER_SHARED to the folder of shared data")
    return folder


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny drawn data set: captions.json with splits, and images/."""
    folder = tmp_path_factory.mktemp("shapes")
    draw_shapes = importlib.import_module("scripts.draw_shapes")
    assert draw_shapes.main(["--output", str(folder), "--images", "24"]) in (0, None)
    return folder
