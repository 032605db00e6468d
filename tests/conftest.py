"""What every test can rely on: one thread, fixed seeds, and the data sets that tests share."""

import importlib
import json
import os
import random
import sys
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

# Before torch is loaded, and for the processes that tests start: sums in one order, and no quarrel over few cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Threads that wait sleep: by default they keep a core busy, which other tests could use.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

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


@pytest.fixture(scope="session")
def coco_archives(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The drawn data set as archives with the names and the layout of COCO's, which hold more than is needed."""
    folder = tmp_path_factory.mktemp("archives")
    data = json.loads((shapes / "captions.json").read_text())
    images = []
    names = ("train2014", "val2014", "annotations_trainval2014", "caption_datasets")
    files = {name: ZipFile(folder / f"{name}.zip", "w") for name in names}
    for place in ("train2014", "val2014"):
        files[place].mkdir(place)
        files[place].writestr(f"{place}/../../../outside.jpg", b"")
    for image in data["images"]:
        number, split = image["id"], image["split"]
        place = "train2014" if split == "train" and number % 2 else "val2014"
        name = f"COCO_{place}_{number:012}.jpg"
        with files[place].open(f"{place}/{name}", "w") as file:
            Image.open(shapes / "images" / image["file_name"]).save(file, "JPEG")
        captions = [each["caption"] for each in data["annotations"] if each["image_id"] == number]
        if (place, split) == ("val2014", "train"):
            split = "restval"
        sentences = [{"raw": caption} for caption in captions]
        record = {"filename": name, "filepath": place, "cocoid": number, "split": split, "sentences": sentences}
        images.append(record)
    files["caption_datasets"].writestr("dataset_coco.json", json.dumps({"images": images}))
    files["caption_datasets"].writestr("dataset_flickr8k.json", "{}")
    for kind in ("instances", "captions"):
        for year in ("train2014", "val2014"):
            files["annotations_trainval2014"].writestr(f"annotations/{kind}_{year}.json", "{}")
    for file in files.values():
        file.close()
    return folder
