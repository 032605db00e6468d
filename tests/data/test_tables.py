"""Photos in Parquet files."""

import re
import sys
from pathlib import Path

import pytest

from captioner.data.tables import photo_rows
from captioner.errors import AnnotationError, ResourceError

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

PHOTOS = [b"one", b"", None, b"four"]


def write(path: Path, rows: int | None = None, **columns: list[object]) -> str:
    parquet.write_table(pyarrow.table(columns), path, row_group_size=rows)
    return str(path)


@pytest.mark.parametrize(
    "columns",
    [
        {"caption": ["a"] * 4, "jpg": PHOTOS, "mask": PHOTOS[::-1]},
        {"image": [{"bytes": each, "path": "x.jpg"} for each in PHOTOS], "bytes": PHOTOS[::-1]},
        {"number": [1, 2, 3, 4], "scan": PHOTOS},
    ],
)
def test_rows_are_photos_in_their_order(tmp_path: Path, columns: dict[str, list[object]]) -> None:
    path = write(tmp_path / "x.parquet", 3, **columns)
    found = list(photo_rows(path))
    assert [value.name for value in found] == [f"{path}/{row}" for row in range(4)]
    assert [value.read() for value in found] == [b"one", b"", b"", b"four"]
    assert found[0].read(2) == b"on"
    assert [value.name for value in photo_rows(path, read=False)] == [value.name for value in found]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"caption": ["a"]}, "no column holds bytes, and none is called image, img, photo or jpg"),
        ({"left": [b"a"], "right": [b"b"]}, "several columns hold bytes, and none is called image"),
        ({"image": [{"path": "x.jpg"}]}, "no column holds bytes"),
    ],
)
def test_columns_without_photos(tmp_path: Path, columns: dict[str, list[object]], message: str) -> None:
    path = write(tmp_path / "x.parquet", **columns)
    with pytest.raises(AnnotationError, match=rf"^{re.escape(path)}: {message}"):
        list(photo_rows(path))


def test_files_that_are_not_parquet(tmp_path: Path) -> None:
    whole = Path(write(tmp_path / "x.parquet", image=[b"a" * 999])).read_bytes()
    for content in (b"", b"no table", whole[:-9]):
        (tmp_path / "x.parquet").write_bytes(content)
        with pytest.raises(AnnotationError, match=r"x.parquet: cannot be read as a Parquet file \("):
            list(photo_rows(str(tmp_path / "x.parquet")))


def test_pyarrow_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ResourceError, match=r'pip install "captioner\[parquet\]"'):
        next(photo_rows(str(tmp_path / "x.parquet")))
