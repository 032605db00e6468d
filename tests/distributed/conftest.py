import shutil
import tarfile
from pathlib import Path

import pytest

PHOTOS = Path(__file__).resolve().parents[2] / "docs" / "photos"


@pytest.fixture
def words(tmp_path, monkeypatch):
    """A command on 17 files with relative paths, one of which is no photo, and on two photos in a tar."""
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    for number, photo in enumerate(sorted(PHOTOS.glob("*.jpg"))[:8] * 2):
        shutil.copy(photo, f"photos/{number}.jpg")
    Path("photos/bad.jpg").write_bytes(b"no photo")
    with tarfile.open("more.tar", "w") as archive:
        archive.add("photos/0.jpg")
        archive.add("photos/1.jpg")
    return ["caption", "photos", "more.tar", "--greedy", "--batch-size", "3", "--workers", "1", "-q"]
