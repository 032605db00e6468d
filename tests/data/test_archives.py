import re
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from zipfile import ZipFile

import pytest

from captioner.cli.data import prepare
from captioner.data import archives
from captioner.data.archives import DATA_SETS, Archive, Published
from captioner.data.formats import load_captions
from captioner.errors import AnnotationError, CaptionerError, InputError, ResourceError

COUNTS = {"train2014.zip": 10, "val2014.zip": 14, "annotations_trainval2014.zip": 2, "caption_datasets.zip": 1}
"""Needed members of the drawn archives."""


@pytest.fixture
def folder(coco_archives: Path, tmp_path: Path) -> Path:
    """A copy of the drawn archives."""
    return shutil.copytree(coco_archives, tmp_path / "zips")


@pytest.fixture
def coco(folder: Path) -> Published:
    """The entry of COCO, with the sizes and sums of the drawn archives."""

    def drawn(archive: Archive) -> Archive:
        content = (folder / archive.name).read_bytes()
        return replace(archive, size=len(content), sha256=sha256(content).hexdigest(), count=COUNTS[archive.name])

    entry = DATA_SETS["coco"]
    return replace(entry, archives=tuple(map(drawn, entry.archives)), splits={"train": 20, "val": 2, "test": 2})


def files(root: Path) -> dict[str, int]:
    """Files of a folder, with the times of their last change."""
    return {path.relative_to(root).as_posix(): path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}


def test_the_table_is_well_formed() -> None:
    for entry in DATA_SETS.values():
        for archive in entry.archives:
            assert re.fullmatch("[0-9a-f]{64}", archive.sha256)
        pictures = sum(each.count for each in entry.archives if each.folder == "images")
        assert pictures == sum(entry.splits.values())


def test_only_what_is_needed_is_unpacked(
    coco: Published, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "deep" / "coco"
    assert prepare(coco, root, folder) == 0
    assert capsys.readouterr().out == f"{root}\n"
    names = files(root)
    assert Counter(name.rpartition("/")[0] for name in names) == {
        "": 1,
        "annotations": 2,
        "images/train2014": 10,
        "images/val2014": 14,
    }
    assert not list(tmp_path.rglob("outside.jpg"))
    captions = load_captions(root)  # captions in annotations/ would be taken for the data set
    assert Counter(image.split for image in captions.images) == coco.splits

    shutil.rmtree(folder)
    assert prepare(coco, root, folder) == 0
    assert files(root) == names


def test_an_interrupted_call_is_continued(coco: Published, folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "coco"
    archives.unpack(coco.archives, folder, tmp_path / "whole", advance=lambda number: None)
    done = 0

    def stop(number: int) -> None:
        nonlocal done
        done += number
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        archives.unpack(coco.archives, folder, root, advance=stop)
    first = files(root)
    assert len(first) == 7
    cut = root / sorted(first)[0]
    cut.write_bytes(cut.read_bytes()[:100])  # as another program's unpacking leaves it
    assert prepare(coco, root, folder) == 0
    assert {name: time for name, time in files(root).items() if name in first and root / name != cut} == {
        name: time for name, time in first.items() if root / name != cut
    }
    contents = [{name: (each / name).read_bytes() for name in files(each)} for each in (root, tmp_path / "whole")]
    assert contents[0] == contents[1]


def test_missing_and_incomplete_archives_are_listed(
    coco: Published, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train, val, *_ = coco.archives
    (folder / train.name).unlink()
    whole = (folder / val.name).read_bytes()
    (folder / val.name).write_bytes(whole[:5000])
    with pytest.raises(InputError, match=r"zips: missing or incomplete: train2014\.zip, val2014\.zip; fetch them"):
        prepare(coco, tmp_path / "coco", folder)
    assert capsys.readouterr().out.splitlines() == [
        f"# train2014.zip: 0 of {train.size:,} bytes are there; SHA-256 {train.sha256}",
        "curl --fail --location --create-dirs --continue-at - "
        f"--output {folder}/train2014.zip http://images.cocodataset.org/zips/train2014.zip",
        f"# val2014.zip: 5,000 of {val.size:,} bytes are there; SHA-256 {val.sha256}",
        "curl --fail --location --create-dirs --continue-at - "
        f"--output {folder}/val2014.zip http://images.cocodataset.org/zips/val2014.zip",
    ]
    assert not (tmp_path / "coco").exists()


def html(content: bytes) -> bytes:
    return b"<html>404"


def longer(content: bytes) -> bytes:
    return content + b"\0"


def flipped(content: bytes) -> bytes:
    return content[:3000] + bytes([content[3000] ^ 1]) + content[3001:]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (html, r"begins with b'<htm', so it is no zip archive"),
        (longer, r"has [\d,]+ bytes, not [\d,]+"),
        (flipped, r"has the SHA-256 [0-9a-f]{64}, not [0-9a-f]{64}"),
    ],
)
def test_a_wrong_file_is_named(
    coco: Published, folder: Path, tmp_path: Path, change: Callable[[bytes], bytes], fault: str
) -> None:
    file = folder / "val2014.zip"
    file.write_bytes(change(file.read_bytes()))
    advice = r"; delete it and fetch it again from http://images\.cocodataset\.org/zips/val2014\.zip$"
    with pytest.raises(CaptionerError, match=f"^{re.escape(str(file))}: {fault}{advice}") as caught:
        prepare(coco, tmp_path / "coco", folder)
    assert (caught.value.exit_code, caught.value.code) == (1, "archive")
    assert not (tmp_path / "coco").exists()


def test_too_little_space_is_told_before_anything_is_written(folder: Path, tmp_path: Path) -> None:
    with ZipFile(folder / "huge.zip", "w") as file:
        file.writestr("small.jpg", b"")
        file.writestr("huge.jpg", b"")
        file.filelist[1].file_size = 10**18  # what the archive says of itself
    huge = Archive(url="huge.zip", size=0, sha256="", members="*.jpg", count=2)
    message = r"coco: the files to unpack take 1,000,000,000\.0 GB, and [\d,.]+ GB are free; free some space or name a"
    with pytest.raises(ResourceError, match=message):
        archives.unpack([huge], folder, tmp_path / "coco", advance=lambda number: None)
    assert files(tmp_path / "coco") == {}


def test_annotations_of_another_data_set_are_refused(coco: Published, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match=r"coco: has {'train': 20, .*} images, not {'train': 21}; its annota"):
        prepare(replace(coco, splits={"train": 21}), tmp_path / "coco", folder)
