"""A store of encoder features.   N = P + h·w positions · E encoder width

A folder with `index.json` (the key, and the rows of each photo) and `features.f16`, a memory-mapped array (rows, N, E)
of float16. A store opens only with the key it was made for. An unfinished store has a `progress.json`, and no index.
"""

import hashlib
import io
import json
import os
import shutil
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from captioner.errors import ConfigError, ResourceError
from captioner.files import write_whole
from captioner.text import first_line

INDEX = "index.json"
ARRAY = "features.f16"
PROGRESS = "progress.json"
LOCK = ".lock"
KEPT_EVERY = 512
"""Number of views between two writes of progress.json."""
FINGERPRINT_BYTES = 16384
"""Number of leading bytes of a photo that are hashed."""


@dataclass(frozen=True, kw_only=True)
class StoreKey:
    """Everything features depend on; a store with another key is stale."""

    encoder: Mapping[str, Any]
    """The encoder's resolved configuration."""
    weights: str
    """A hash of its weights."""
    transform: str
    """The version and number of views, and the mosaics."""
    files: str
    """A hash of the photos' names and contents."""

    def to_dict(self) -> dict[str, Any]:
        """The key as JSON reads it back."""
        return dict(json.loads(json.dumps(asdict(self))))


class FeatureStore:
    """Features of photos by name and view, memory-mapped; each is checked as it is read."""

    def __init__(
        self, folder: Path, rows: Mapping[str, list[int]], shape: tuple[int, int, int], checksums: list[int]
    ) -> None:
        self.folder = folder
        self._rows, self._checksums = rows, checksums
        self._array = np.memmap(folder / ARRAY, dtype=np.float16, mode="r", shape=shape)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle without the array: each process maps the file itself."""
        return FeatureStore, (self.folder, self._rows, self._array.shape, self._checksums)

    @classmethod
    def open(cls, folder: Path, key: StoreKey) -> "FeatureStore | None":
        """The finished store of `folder`, None if there is none. Raises ConfigError if it is stale or damaged."""
        if not (folder / INDEX).exists():
            return None
        try:
            index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
            rows, shape, stored = dict(index["rows"]), tuple(index["shape"]), dict(index["key"])
            checksums = index["crc32"]
            total, positions, width = shape
            if not (_are_counts(shape) and min(positions, width) > 0 and _are_counts(checksums, total)):
                raise ValueError("wrong shape or checksums")
            if not all(_are_counts(each) and each and max(each) < total for each in rows.values()):
                raise ValueError("rows that it does not have")
            store = cls(folder, rows, (total, positions, width), checksums)
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError, OSError) as error:
            reason = first_line(error)
            raise ConfigError(f"{folder} is damaged ({reason}); delete the folder to compute it again") from error
        changed = [name for name, value in key.to_dict().items() if stored.get(name) != value]
        if changed:
            raise ConfigError(
                f"data.features: {folder} was computed with other {' and '.join(changed)}; "
                "delete the folder, or name another one"
            )
        return store

    @property
    def shape(self) -> tuple[int, int]:
        """(N, E) of every photo."""
        return self._array.shape[1], self._array.shape[2]

    def views(self, name: str) -> int:
        """How many views of a photo there are."""
        return len(self._rows_of(name))

    def read(self, name: str, view: int = 0) -> Tensor:
        """The features (N, E) of a view of a photo, float16; view 0 is the plain one. Raises ConfigError if they have
        changed since they were written."""
        row = self._rows_of(name)[view]
        features = np.array(self._array[row])
        if zlib.crc32(features.data) != self._checksums[row]:
            raise ConfigError(f"{self.folder / ARRAY}: the features of {name} are damaged; delete the folder")
        return torch.from_numpy(features)

    def _rows_of(self, name: str) -> list[int]:
        if name not in self._rows:
            raise ConfigError(f"{self.folder}: no features of {name}; delete the folder to compute them again")
        return self._rows[name]


class FeatureWriter:
    """Writes a store view by view; `finish` makes it readable. Raises ResourceError if the disk has no room."""

    def __init__(self, folder: Path, key: StoreKey, *, views: Mapping[str, int], shape: tuple[int, int]) -> None:
        self.folder, self.key = folder, key
        ends = list(accumulate(views.values(), initial=0))
        self.rows = {name: list(range(*edges)) for name, edges in zip(views, pairwise(ends), strict=True)}
        total = ends[-1]
        size = 2 * total * shape[0] * shape[1]
        self._checksums = self._written(total, shape, size)
        folder.mkdir(parents=True, exist_ok=True)
        if not self._checksums:
            (folder / PROGRESS).unlink(missing_ok=True)  # of other features, which are discarded
            (folder / ARRAY).unlink(missing_ok=True)
            require_space(folder, size, "features")
            with (folder / ARRAY).open("wb") as file:
                if hasattr(os, "posix_fallocate"):  # or writing to a sparse file on a full disk would kill the process
                    os.posix_fallocate(file.fileno(), 0, max(1, size))
                file.truncate(size)
        self._array = np.memmap(folder / ARRAY, dtype=np.float16, mode="r+", shape=(total, *shape))

    @property
    def done(self) -> int:
        """The number of views written so far, some by an interrupted writer with the same key."""
        return len(self._checksums)

    def write(self, features: NDArray[np.float16]) -> None:
        """Store the features (B, N, E) of the next views."""
        before = self.done
        self._array[before : before + len(features)] = features
        self._checksums += [zlib.crc32(np.ascontiguousarray(each).data) for each in features]
        if before // KEPT_EVERY != self.done // KEPT_EVERY:
            self._put(PROGRESS, {})

    def finish(self) -> None:
        """Make the store readable."""
        self._put(INDEX, {"rows": self.rows})
        (self.folder / PROGRESS).unlink(missing_ok=True)

    def _written(self, total: int, shape: tuple[int, int], size: int) -> list[int]:
        """The checksums of the views that an interrupted writer with the same key has stored."""
        try:
            progress = json.loads((self.folder / PROGRESS).read_text(encoding="utf-8"))
            same = progress["key"] == self.key.to_dict() and progress["shape"] == [total, *shape]
            whole = same and (self.folder / ARRAY).stat().st_size == size
            checksums: list[int] = progress["crc32"]
            return checksums if whole and _are_counts(checksums) and len(checksums) <= total else []
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return []

    def _put(self, name: str, content: dict[str, Any]) -> None:
        self._array.flush()
        content |= {"key": self.key.to_dict(), "shape": list(self._array.shape), "crc32": self._checksums}
        write_whole(self.folder / name, json.dumps(content).encode())


def _are_counts(values: Any, length: int | None = None) -> bool:
    """Whether JSON holds a list of integers that are not negative, and has that length."""
    return (
        isinstance(values, list | tuple)
        and all(type(each) is int and each >= 0 for each in values)
        and length in (None, len(values))
    )


def free_space(folder: Path) -> int:
    """Free bytes on the disk of `folder`, which need not exist yet."""
    existing = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())
    return shutil.disk_usage(existing).free


def require_space(folder: Path, needed: int, what: str) -> None:
    """Raise ResourceError if the disk of `folder` has less than `needed` bytes free."""
    free = free_space(folder)
    if free < needed:
        raise ResourceError(
            f"{folder}: {what} take about {needed / 2**20:.0f} MiB, and {free / 2**20:.0f} MiB are free; "
            "make room or name another folder"
        )


def hash_photos(photos: Iterable[tuple[str, Path | bytes]]) -> str:
    """A hash of photos' names, sizes and first bytes, which a copied data set keeps."""
    digest = hashlib.sha256()
    for name, source in sorted(photos, key=lambda photo: photo[0]):
        with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
            head = file.read(FINGERPRINT_BYTES)
            size = file.seek(0, 2)
        digest.update(f"{name}\0{size}\0".encode())
        digest.update(head)
    return digest.hexdigest()


def hash_weights(state: Mapping[str, Tensor]) -> str:
    """A hash of a state dict's names and values."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
