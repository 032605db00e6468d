"""The archives of published data sets: verified, and unpacked into a folder that `read_listing` reads."""

import hashlib
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from zipfile import ZipFile, ZipInfo

from captioner.data.formats import Format, load_captions
from captioner.errors import AnnotationError, CaptionerError, ResourceError
from captioner.files import write_whole

CHUNK = 1 << 20
"""Bytes to read at a time."""
ZIP_START = b"PK\x03\x04"


@dataclass(frozen=True)
class Archive:
    """A zip archive, and which of its members to unpack."""

    url: str
    size: int
    """Bytes."""
    sha256: str
    members: str
    """Names of the members, where * stands for letters, digits and underscores, so that they cannot leave a folder."""
    count: int
    """Number of these members."""
    folder: str = "."
    """The folder, inside the data set's, that they are unpacked to."""

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]

    def is_unpacked(self, root: Path) -> bool:
        """Whether as many members are in the data set's folder as the archive has."""
        return sum(1 for _ in (root / self.folder).glob(self.members)) >= self.count


@dataclass(frozen=True)
class Published:
    """A published data set: its archives, their format once unpacked, and the number of images in each split."""

    archives: tuple[Archive, ...]
    format: Format
    splits: Mapping[str, int]


COCO = "http://images.cocodataset.org"  # its certificate is for another host, so not https
# Sizes and sums are those of TensorFlow Datasets (url_checksums/coco_captions.txt). Others have found the same:
# torchvision's prototype datasets for COCO's archives, several projects that use Karpathy's splits for the last.
DATA_SETS: dict[str, Published] = {
    "coco": Published(
        archives=(
            Archive(
                url=f"{COCO}/zips/train2014.zip",
                size=13_510_573_713,
                sha256="ede4087e640bddba550e090eae701092534b554b42b05ac33f0300b984b31775",
                members="train2014/COCO_train2014_*.jpg",
                count=82_783,
                folder="images",
            ),
            Archive(
                url=f"{COCO}/zips/val2014.zip",
                size=6_645_013_297,
                sha256="fe9be816052049c34717e077d9e34aa60814a55679f804cd043e3cbee3b9fde0",
                members="val2014/COCO_val2014_*.jpg",
                count=40_504,
                folder="images",
            ),
            Archive(
                url=f"{COCO}/annotations/annotations_trainval2014.zip",
                size=252_872_794,
                sha256="031296bbc80c45a1d1f76bf9a90ead27e94e99ec629208449507a4917a3bf009",
                members="annotations/instances_*2014.json",  # its captions are those of dataset_coco.json
                count=2,
            ),
            Archive(
                url="https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip",
                size=36_745_453,
                sha256="4cfd70132527b80933105e5829dc9034eaab9573482e2e680abbab6130244817",
                members="dataset_coco.json",
                count=1,
            ),
        ),
        format="karpathy",
        splits={"train": 113_287, "val": 5_000, "test": 5_000},
    ),
    "coco2017": Published(
        archives=(
            Archive(
                url=f"{COCO}/zips/train2017.zip",
                size=19_336_861_798,
                sha256="69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
                members="train2017/*.jpg",
                count=118_287,
                folder="images",
            ),
            Archive(
                url=f"{COCO}/zips/val2017.zip",
                size=815_585_330,
                sha256="4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
                members="val2017/*.jpg",
                count=5_000,
                folder="images",
            ),
            Archive(
                url=f"{COCO}/annotations/annotations_trainval2017.zip",
                size=252_907_541,
                sha256="113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
                members="annotations/*2017.json",
                count=6,  # captions, instances and keypoints of both splits
            ),
        ),
        format="coco",
        splits={"train": 118_287, "val": 5_000},
    ),
}


def fetched(archive: Archive, folder: Path) -> int:
    """Bytes of an archive that are in `folder`. Raises CaptionerError where they cannot be its beginning."""
    path = folder / archive.name
    if not path.is_file():
        return 0
    with path.open("rb") as file:
        start = file.read(len(ZIP_START))
    size = path.stat().st_size
    if not ZIP_START.startswith(start):
        raise _wrong(path, archive, f"begins with {start!r}, so it is no zip archive")
    if size > archive.size:
        raise _wrong(path, archive, f"has {size:,} bytes, not {archive.size:,}")
    return size


def verify(archive: Archive, folder: Path, advance: Callable[[int], object]) -> None:
    """Raise CaptionerError if the SHA-256 of an archive is wrong. `advance` is given the bytes read at each step."""
    digest = hashlib.sha256()
    path = folder / archive.name
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            advance(len(chunk))
    if digest.hexdigest() != archive.sha256:
        raise _wrong(path, archive, f"has the SHA-256 {digest.hexdigest()}, not {archive.sha256}")


def unpack(archives: Iterable[Archive], folder: Path, root: Path, advance: Callable[[int], object]) -> None:
    """Unpack the needed members of verified archives into `root`; what is there already is left alone.

    Files are written whole or not at all, so an interrupted call can be repeated. `advance` is given numbers of files.
    Raises ResourceError, before anything is written, if the disk has too little space.
    """
    lacking = {archive: _lacking(archive, folder, root) for archive in archives}
    needed = sum(member.file_size for members in lacking.values() for member in members)
    root.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(root).free
    if needed > free:
        raise ResourceError(
            f"{root}: the files to unpack take {needed / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB are free; "
            "free some space or name a folder on another disk"
        )
    for archive, members in lacking.items():
        advance(archive.count - len(members))
        with ZipFile(folder / archive.name) as file:
            for member in members:
                target = root / archive.folder / member.filename
                target.parent.mkdir(parents=True, exist_ok=True)
                with file.open(member) as source:
                    write_whole(target, partial(shutil.copyfileobj, source))
                advance(1)


def check_splits(data_set: Published, root: Path) -> None:
    """Raise InputError or AnnotationError if an image or a caption of an unpacked data set is missing."""
    found = Counter(str(image.split) for image in load_captions(root, format=data_set.format).images)
    if found != data_set.splits:
        raise AnnotationError(
            f"{root}: has {dict(found)} images, not {dict(data_set.splits)}; its annotations are not the published "
            "ones: move them away and run this again"
        )


def _lacking(archive: Archive, folder: Path, root: Path) -> list[ZipInfo]:
    """The needed members of an archive that are not in `root`."""
    name = re.compile(re.escape(archive.members).replace(r"\*", r"\w*"))
    with ZipFile(folder / archive.name) as file:
        needed = [member for member in file.infolist() if name.fullmatch(member.filename)]
    targets = ((member, root / archive.folder / member.filename) for member in needed)
    return [m for m, target in targets if not (target.is_file() and target.stat().st_size == m.file_size)]


def _wrong(path: Path, archive: Archive, fault: str) -> CaptionerError:
    return CaptionerError(f"{path}: {fault}; delete it and fetch it again from {archive.url}", code="archive")
