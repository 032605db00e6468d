import shutil
import tarfile
from pathlib import Path

import pytest

PHOTOS = Path(__file__).resolve().parents[2] / "docs" / "photos"


@pytest.fixture
def words(tmp_path, monkeypatch):
    """A command on 17 files with relative paths, one of which is no photo, two photos in a tar and one in Parquet."""
    pyarrow, parquet = (pytest.importorskip(name) for name in ("pyarrow", "pyarrow.parquet"))
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    for number, photo in enumerate(sorted(PHOTOS.glob("*.jpg"))[:8] * 2):
        shutil.copy(photo, f"photos/{number}.jpg")
    Path("photos/bad.jpg").write_bytes(b"no photo")
    with tarfile.open("more.tar", "w") as archive:
        archive.add("photos/0.jpg")
        archive.add("photos/1.jpg")
    parquet.write_table(pyarrow.table({"image": [{"bytes": Path("photos/2.jpg").read_bytes()}]}), "more.parquet")
    files = ["photos", "more.tar", "more.parquet"]
    return ["caption", *files, "--greedy", "--batch-size", "3", "--workers", "1", "-q"]
