"""The folder of `--root`: lists its photos, and saves captions in text files beside them."""

import asyncio
import hashlib
import os
import stat
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, StringConstraints
from starlette.responses import Response

from captioner.files import NO_LINK, write_whole
from captioner.images import IMAGE_EXTENSIONS
from captioner.serving.problems import Problem, described
from captioner.serving.service import Service, Upload
from captioner.serving.thumbnails import make_thumbnail
from captioner.text import printable

MAX_CAPTION = 20_000
"""Characters of the captions of a photo."""
MAX_PAGE = 100
"""Photos in a response."""
NO_WAIT = getattr(os, "O_NONBLOCK", 0)
"""Flag of `os.open` that does not wait for the writer of a FIFO."""
ERRORS = described(400, 401, 403, 404, 422, 503)


class FolderPhoto(BaseModel):
    """A photo of the folder."""

    id: str
    name: str
    caption: str | None
    """The content of its text file; None if there is none."""
    read_only: bool
    """Whether its caption cannot be saved: another photo has the same text file, or it is a link or no text."""


class Photos(BaseModel):
    """Some of the folder's photos."""

    total: int
    photos: list[FolderPhoto]


class Edit(BaseModel):
    """Captions of a photo, one a line, to save."""

    caption: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=MAX_CAPTION)]
    replaces: str | None
    """The `caption` that the client has seen."""


class Folder:
    """Photos under a folder, with ids by which clients name them. Hidden files and links are left out."""

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()
        self._paths: dict[str, Path] = {}
        self._uses: Counter[Path] = Counter()
        """Text file -> the number of photos that it belongs to."""
        self._saving = threading.Lock()
        self.scan()

    def scan(self) -> None:
        """Find the photos that are there now."""
        paths = list(self._find())
        names = (os.fsencode(path.relative_to(self._root)) for path in paths)
        self._paths = {hashlib.sha256(name).hexdigest()[:32]: path for name, path in zip(names, paths, strict=True)}
        self._uses = Counter(map(_sidecar, paths))

    def photos(self, start: int, count: int) -> Photos:
        chosen = list(self._paths.items())[start : start + count]
        return Photos(total=len(self._paths), photos=[self._describe(*each) for each in chosen])

    def read(self, id: str, max_bytes: int) -> Upload:
        """A photo. Raises Problem for an unknown id, a link, and a file that cannot be read or is too large."""
        path = self._path(id)
        return Upload(path.name, _read(path, max_bytes))

    def save(self, id: str, edit: Edit) -> FolderPhoto:
        """Write captions into the text file of a photo.

        Raises Problem if the file is not to be overwritten, is no longer as the client saw it, or cannot be written.
        """
        path = self._path(id)
        lines = (" ".join(line.split()) for line in edit.caption.splitlines())
        text = "".join(f"{line}\n" for line in lines if line)
        with self._saving:
            present = self._describe(id, path)
            if present.read_only or present.caption != edit.replaces:
                reason = "cannot be overwritten" if present.read_only else "was changed by another program; reload"
                raise Problem(409, "conflict", f"{_sidecar(path).name}: {reason}")
            try:
                write_whole(_sidecar(path), text.encode("utf-8", "backslashreplace"))
            except OSError as error:
                raise Problem(503, "resource", f"{_sidecar(path).name}: not written ({error.strerror})") from error
            return self._describe(id, path)

    def _find(self) -> Iterator[Path]:
        for folder, subfolders, names in os.walk(self._root):
            subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
            for name in sorted(names):
                path = Path(folder, name)
                if path.suffix.lower() in IMAGE_EXTENSIONS and not name.startswith(".") and not path.is_symlink():
                    yield path

    def _path(self, id: str) -> Path:
        path = self._paths.get(id)
        if path is None or path.parent.resolve() != path.parent:  # a folder has been replaced by a link
            raise Problem(404, "not_found", "no such photo in the folder; reload the list")
        return path

    def _describe(self, id: str, path: Path) -> FolderPhoto:
        name, sidecar = printable(path.relative_to(self._root).as_posix()), _sidecar(path)
        caption, read_only = None, self._uses[sidecar] > 1
        if os.path.lexists(sidecar):
            try:
                caption = _read(sidecar, 4 * MAX_CAPTION).decode("utf-8-sig").strip()
            except (Problem, UnicodeDecodeError):
                read_only = True
        return FolderPhoto(id=id, name=name, caption=caption, read_only=read_only)


def folder_routes(folder: Folder, service: Service) -> APIRouter:
    """The operations on a folder. Clients name photos by the ids of the list; no path is ever taken from them."""
    router = APIRouter(prefix="/v1/photos", responses=ERRORS)
    file: dict[int | str, dict[str, Any]] = {200: {"content": {"application/octet-stream": {}}}}
    jpeg: dict[int | str, dict[str, Any]] = {200: {"content": {"image/jpeg": {}}}}

    @router.get("")
    def photos(
        start: Annotated[int, Query(ge=0, lt=2**31)] = 0, count: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 24
    ) -> Photos:
        """List photos; the first page reads the folder again."""
        if start == 0:
            folder.scan()
        return folder.photos(start, count)

    @router.get("/{id}", response_class=Response, responses=file | described(413))
    def photo(id: str) -> Response:
        """The file of a photo."""
        return Response(folder.read(id, service.options.max_bytes).data, media_type="application/octet-stream")

    @router.get("/{id}/thumbnail", response_class=Response, responses=jpeg | described(413, 415, 429))
    async def thumbnail(id: str) -> Response:
        """A small JPEG of a photo."""
        with service.accept(1):
            file = await asyncio.to_thread(folder.read, id, service.options.max_bytes)
            return Response(await service.decode(file, make_thumbnail), media_type="image/jpeg")

    @router.post("/{id}/caption", responses=described(408, 409, 413, 415, 429))
    def save(id: str, edit: Edit, request: Request) -> FolderPhoto:
        """Save captions in the text file beside a photo. The body must be JSON, which pages of other sites cannot
        send."""
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise Problem(415, "not_json", "send JSON: Content-Type: application/json")
        return folder.save(id, edit)

    return router


def _sidecar(photo: Path) -> Path:
    """The text file of a photo, as `captioner caption --format sidecar` names it."""
    return Path(f"{os.path.splitext(photo)[0]}.txt")


def _read(path: Path, max_bytes: int) -> bytes:
    """The content of a regular file; a link is not followed. Raises Problem."""
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | NO_LINK | NO_WAIT)) as file:
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode):
                raise OSError("not a regular file")
            if about.st_size > max_bytes:
                raise Problem(413, "too_large", f"{path.name}: over {max_bytes:,} bytes; see --max-bytes")
            return file.read(max_bytes)
    except OSError as error:
        raise Problem(404, "not_found", f"{path.name}: cannot be read ({error.strerror or error})") from error
