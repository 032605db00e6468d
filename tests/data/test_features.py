"""Feature stores: a hostile index, or one of other photos, is refused in one line."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from captioner.data.features import ARRAY, INDEX, PROGRESS, FeatureStore, FeatureWriter, StoreKey
from captioner.errors import ConfigError

KEY = StoreKey(encoder={"name": "test"}, weights="0", transform="plain", files="1")
VIEWS, SHAPE = {"a.jpg": 1, "b.jpg": 2}, (3, 4)
ODD = (None, True, -1, 2**70, 1e999, "", [], [1], ["a", "b"], [[[]]], {}, {"a.jpg": 1}, {"a.jpg": [3], "b.jpg": [0, 1]})


@pytest.fixture
def store(tmp_path: Path) -> Path:
    writer = FeatureWriter(tmp_path, KEY, views=VIEWS, shape=SHAPE)
    writer.write(np.arange(36, dtype=np.float16).reshape(3, *SHAPE))
    writer.finish()
    return tmp_path


def read_all(folder: Path) -> list[float]:
    store = FeatureStore.open(folder, KEY)
    assert store is not None
    return [float(store.read(name, view)[0, 0]) for name in VIEWS for view in range(store.views(name))]


def test_what_was_written_is_read(store: Path) -> None:
    assert read_all(store) == [0, 12, 24]


@pytest.mark.parametrize("value", ODD, ids=repr)
@pytest.mark.parametrize("field", ["rows", "shape", "crc32", "key"])
def test_an_index_of_other_values_is_refused(store: Path, field: str, value: Any) -> None:
    index = json.loads((store / INDEX).read_text())
    for changed in ({**index, field: value}, {name: each for name, each in index.items() if name != field}):
        (store / INDEX).write_text(json.dumps(changed))
        with pytest.raises(ConfigError, match=r"delete the folder"):
            read_all(store)


@pytest.mark.parametrize("content", [b"[" * 10**5, b'{"rows": ' + b"[" * 10**5, b"\xff", b"null", b"[]"])
def test_another_file_is_no_index(store: Path, content: bytes) -> None:
    (store / INDEX).write_bytes(content)
    with pytest.raises(ConfigError, match="damaged"):
        read_all(store)


@pytest.mark.parametrize("checksums", [None, "abc", [0] * 9, [-1], ["0"], {}], ids=repr)
def test_hostile_progress_is_begun_again(store: Path, checksums: Any) -> None:
    index = json.loads((store / INDEX).read_text())
    (store / INDEX).unlink()
    (store / PROGRESS).write_text(json.dumps({**index, "crc32": checksums}))
    assert FeatureWriter(store, KEY, views=VIEWS, shape=SHAPE).done == 0
    (store / PROGRESS).write_text(json.dumps({**index, "crc32": index["crc32"][:2]}))
    (store / ARRAY).write_bytes(bytes(72))
    assert FeatureWriter(store, KEY, views=VIEWS, shape=SHAPE).done == 2
