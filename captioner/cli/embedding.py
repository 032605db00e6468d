"""Captions in the metadata of photos, whose pixels stay as they are."""

import hashlib
import os
from pathlib import Path
from types import ModuleType
from typing import Any

from captioner import files
from captioner.cli.formats import Result, format_named
from captioner.cli.inputs import Input
from captioner.cli.journal import Journal, Stamp, State, full_disk_error
from captioner.cli.output import Existing, Output, SidecarOutput
from captioner.errors import ConfigError, ImageError, ResourceError
from captioner.text import printable


class EmbeddedOutput(SidecarOutput):
    """Copies of the photos in the folder `root`, or the photos themselves if that is None, with their captions."""

    def __init__(self, root: Path | None, metadata: str, existing: Existing, journal: Journal | None) -> None:
        super().__init__(root, "", format_named("sidecar"), existing, journal)
        self._exiv2, self._metadata = _import_exiv2(), metadata

    def target(self, item: Input) -> Path:
        return Path(os.path.realpath(item.path)) if self.root is None else self.root / item.relative

    def state(self, item: Input) -> State:
        if item.inner is not None:
            raise ConfigError(
                f"{printable(item.path)}: inside another file, where captions are not embedded; unpack it"
            )
        if self.root is not None and os.path.realpath(self.target(item)) == os.path.realpath(item.path):
            raise ConfigError(f"{printable(item.path)}: lies in the folder for the copies; name another, or --in-place")
        last = self.journal.last if self.journal else None
        if self.root is None or self.existing == "overwrite" or (last and last.path == item.path):
            return Output.state(self, item)
        return super().state(item)

    def add(self, item: Input, stamp: Stamp, result: Result) -> None:
        """Raises ImageError for a photo that cannot hold the caption."""
        target, caption = self.target(item), result.rows[0].caption if result.rows else ""
        content = self._embed(item.path, caption, result.record["sha256"]) if caption else b""
        if self.journal:
            self.journal.add(result, stamp, target, 0, caption)
        if content:
            mode = os.stat(item.path).st_mode
            target.parent.mkdir(parents=True, exist_ok=True)
            with full_disk_error(target):
                files.write_whole(target, content)
            os.chmod(target, mode)

    def _embed(self, path: str, caption: str, sha256: str) -> bytes:
        content = Path(path).read_bytes()
        if hashlib.sha256(content).hexdigest() != sha256:
            raise ImageError(f"{printable(path)}: changed since it was captioned; caption it again", "unreadable")
        exiv2, name = self._exiv2, self._metadata.upper()
        problem = f"{printable(path)}: cannot hold {name}; save it as JPEG, PNG or TIFF"
        try:
            image: Any = exiv2.ImageFactory.open(content)
            kind = exiv2.MetadataId.Xmp if self._metadata == "xmp" else exiv2.MetadataId.Iptc
            if image.checkMode(kind) != exiv2.AccessMode.ReadWrite:
                raise ImageError(problem, "corrupt")
            image.readMetadata()
            if self._metadata == "xmp":
                image.xmpData()["Xmp.dc.description"] = f"lang=x-default {caption}"
            else:
                image.iptcData()["Iptc.Envelope.CharacterSet"] = "\x1b%G"  # UTF-8
                image.iptcData()["Iptc.Application2.Caption"] = caption
            image.writeMetadata()
            return bytes(image.data())
        except exiv2.Exiv2Error as error:
            raise ImageError(f"{problem} ({error.message})", "corrupt") from error


def _import_exiv2() -> ModuleType:
    try:
        import exiv2
    except ImportError as error:
        raise ResourceError('--embed needs exiv2; pip install "captioner[embed]"') from error
    exiv2.LogMsg.setLevel(exiv2.LogMsg.Level.mute)
    module: ModuleType = exiv2
    return module
