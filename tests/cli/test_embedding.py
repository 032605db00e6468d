"""--embed: captions in the metadata of copies or of the photos themselves; no pixel changes."""

import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from captioner.cli import main
from tests.serving.conftest import save_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("embedding"))


@pytest.fixture(autouse=True)
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.jpg", "sub/b.png", "sub/c.webp", "sub/d.tif"):
        Path("photos", name).parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((60, 40), 90).convert("RGB").save(Path("photos", name))


def caption(model: str, *words: str) -> int:
    return main(["caption", "-r", "photos", "--model", model, "--device", "cpu", "--greedy", *words])


def metadata(path: Path) -> dict[str, str]:
    exiv2: Any = pytest.importorskip("exiv2")
    image = exiv2.ImageFactory.open(str(path))
    image.readMetadata()
    return {each.key(): str(each.value()) for data in (image.xmpData(), image.iptcData()) for each in data}


def pixels(content: bytes) -> bytes:
    return Image.open(io.BytesIO(content)).convert("RGB").tobytes()


@pytest.mark.parametrize(
    ("kind", "key", "lead"),
    [("xmp", "Xmp.dc.description", 'lang="x-default" '), ("iptc", "Iptc.Application2.Caption", "")],
)
def test_copies_have_the_caption_and_the_same_pixels(model: str, kind: str, key: str, lead: str) -> None:
    pytest.importorskip("exiv2")
    originals = {path: path.read_bytes() for path in Path("photos").rglob("*.*")}
    Path("photos/a.jpg").chmod(0o640)
    assert caption(model, "--format", "jsonl", "-o", "out.jsonl") == 0
    assert caption(model, "--embed", kind, "-o", "copies", "--prepend", "ü ") == (kind == "iptc")  # not in WebP
    for record in map(json.loads, Path("out.jsonl").read_text().splitlines()):
        path = Path(record["path"])
        copy = "copies" / path.relative_to("photos")
        if (kind, path.suffix) == ("iptc", ".webp"):
            assert not copy.exists()
            continue
        assert metadata(copy)[key] == f"{lead}ü {record['caption']}"
        assert pixels(copy.read_bytes()) == pixels(originals[path])
        assert path.read_bytes() == originals[path]
    assert Path("copies/a.jpg").stat().st_mode & 0o777 == 0o640
    assert caption(model, "--embed", kind, "-o", "copies") == 2
    assert caption(model, "--embed", kind, "-o", "copies", "--existing", "skip") == (kind == "iptc")


def test_a_photo_itself_gets_the_caption(model: str) -> None:
    pytest.importorskip("exiv2")
    before = Path("photos/a.jpg").read_bytes()
    os.link("photos/a.jpg", "linked.jpg")
    Path("photos/link.jpg").symlink_to("../linked.jpg")
    assert caption(model, "--embed", "xmp", "--in-place") == 0
    assert pixels(Path("photos/a.jpg").read_bytes()) == pixels(before)
    assert "Xmp.dc.description" in metadata(Path("photos/a.jpg"))
    assert Path("photos/link.jpg").is_symlink()


def test_a_photo_that_holds_no_metadata_fails_alone(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("exiv2")
    Image.new("RGB", (60, 40)).save("photos/0.bmp")
    assert caption(model, "--embed", "xmp", "-o", "copies") == 1
    assert "photos/0.bmp: cannot hold XMP; save it as JPEG, PNG or TIFF" in capsys.readouterr().err
    assert len(list(Path("copies").rglob("*.*"))) == 4


@pytest.mark.parametrize(
    "words",
    [
        ["--in-place"],
        ["--embed", "xmp"],
        ["--embed", "xmp", "-o", "copies", "--in-place"],
        ["--embed", "xmp", "-o", "copies", "--format", "jsonl"],
        ["--embed", "xmp", "-o", "copies", "--existing", "append"],
        ["--embed", "xmp", "-o", "photos", "--existing", "overwrite"],
    ],
)
def test_flags_that_do_not_go_together(model: str, words: list[str]) -> None:
    if words[-1] == "overwrite":
        pytest.importorskip("exiv2")
    assert caption(model, *words) == 2


def test_the_extra_is_named(model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "exiv2", None)
    assert caption(model, "--embed", "xmp", "-o", "copies") == 5
    assert 'pip install "captioner[embed]"' in capsys.readouterr().err
