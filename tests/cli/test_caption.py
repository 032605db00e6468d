"""captioner caption: every format, files that are never lost, interruptions, exit codes."""

import csv
import io
import json
import os
import re
import shutil
import signal
import sys
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from captioner.cli import main
from captioner.config import DecoderConfig, EncoderConfig, ModelConfig, TokenizerConfig
from captioner.model.caption_model import CaptionModel
from captioner.model.familiarity import Familiarity
from captioner.model.linear import AVAILABLE
from captioner.pipeline import Captioner
from captioner.tokenizer import Tokenizer
from scripts import caption as script

ROOT = Path(__file__).resolve().parent.parent.parent
NAMES = ("a.jpg", "b 2.png", "ü.jpg", "z/c 3.png", "z/d.jpg")
posix = pytest.mark.skipif(sys.platform == "win32", reason="signals and names of POSIX systems")

Caption = Callable[..., int]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    tokenizer = Tokenizer.train(["a brown dog runs on the green grass near two people"], TokenizerConfig(min_count=1))
    config = ModelConfig(
        encoder=EncoderConfig(name="test_vit", image_size=(64, 64)),
        decoder=DecoderConfig(width=16, layers=1, heads=2, max_length=12),
    )
    folder = tmp_path_factory.mktemp("model")
    network = CaptionModel(config, vocabulary=len(tokenizer))
    # Untrained weights see next to nothing: louder ones tell photos apart.
    with torch.no_grad():
        for parameter in network.decoder.parameters():
            parameter.mul_(4)
    Captioner(network, tokenizer, name="tiny").save_pretrained(folder)
    return str(folder)


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of a test, with photos/ in it."""
    for number, name in enumerate(NAMES):
        draw(tmp_path / "photos" / name, number)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def caption(model: str, photos: Path) -> Caption:
    def run(*words: object) -> int:
        return main(["caption", "--model", model, "--device", "cpu", *map(str, words)])

    return run


@pytest.fixture
def out(photos: Path) -> Path:
    return photos / "out.jsonl"


def draw(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((40, 30), Image.Resampling.NEAREST).save(path)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_one_photo_gives_its_caption_alone(caption: Caption, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert caption("photos/a.jpg") == 0
    text = Captioner.from_pretrained(model, device="cpu")("photos/a.jpg").text
    assert capsys.readouterr() == (f"{text}\n", "captioner: 1 captioned, 0 failed\n")


def test_several_photos_give_a_line_each(caption: Caption, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert caption("-r", "photos") == 0
    paths = [os.path.join("photos", *name.split("/")) for name in NAMES]
    found = Captioner.from_pretrained(model, device="cpu")([*paths])
    assert len({each.text for each in found}) > 1
    shown = capsys.readouterr()
    assert shown.out == "".join(f"{path}\t{each.text}\n" for path, each in zip(paths, found, strict=True))
    assert shown.err == "captioner: 5 captioned, 0 failed\n"


@pytest.mark.skipif(not AVAILABLE, reason="PyTorch without oneDNN, or no x86")
def test_weights_of_8_bits_write_other_numbers(caption: Caption, out: Path) -> None:
    for words in (("--no-consensus",), ("--no-consensus", "--int8")):  # its votes change more
        assert caption("-r", "photos", "--format", "jsonl", "-o", out, "--existing", "append", *words) == 0
    whole, rounded = (read(out)[start : start + len(NAMES)] for start in (0, len(NAMES)))
    for one, other in zip(whole, rounded, strict=True):
        assert one["log_prob"] != other["log_prob"]
        assert one["log_prob"] == pytest.approx(other["log_prob"], abs=0.5)


def test_photos_of_a_tar_give_the_captions_of_their_files(
    caption: Caption, photos: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "photos" / "z" / "notes.txt").write_text("no photo")
    (photos / "photos" / "bad.jpg").write_bytes(b"no photo")
    with tarfile.open("all.tar", "w") as archive:
        archive.add("photos", ".")
    (photos / "cut.tar").write_bytes((photos / "all.tar").read_bytes()[:6000])
    (photos / "no.tar").write_bytes(b"no tar" * 200)
    assert caption("-r", "photos", "-o", out) == 1
    expected = {record.pop("path"): record for record in read(out)}
    assert caption("all.tar", "-o", "tar.jsonl") == 1
    found = {record.pop("path"): record for record in read(photos / "tar.jsonl")}
    assert sorted(found) == sorted(f"all.tar/{path.removeprefix('photos/')}" for path in expected)
    for path, record in expected.items():
        inside = found[f"all.tar/{path.removeprefix('photos/')}"]
        if path == "photos/bad.jpg":
            assert inside["error"]["code"] == "not_an_image"
            assert inside["error"]["message"].startswith("all.tar/bad.jpg: ")
        else:
            assert inside == record
    capsys.readouterr()
    assert caption("*.tar", "-o", "globbed.jsonl") == 1
    assert "no.tar: is not a tar file" in capsys.readouterr().err
    assert len(read(photos / "globbed.jsonl")) > len(NAMES) + 1  # and what is whole of the one cut short
    assert caption("all.tar", "--format", "sidecar", "-o", "texts") == 1
    assert (photos / "texts" / "all" / "z" / "d.txt").read_text() == f"{expected['photos/z/d.jpg']['caption']}\n"
    assert caption("all.tar", "--format", "sidecar") == 2
    assert "a.jpg: inside another file, which holds no sidecars; name a folder with -o" in capsys.readouterr().err
    assert caption("all.tar", "--embed", "xmp", "-o", "copies") == 2
    assert "inside another file, where captions are not embedded; unpack it" in capsys.readouterr().err


def test_photos_of_a_parquet_file_give_the_captions_of_their_files(
    caption: Caption, photos: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    (photos / "photos" / "bad.jpg").write_bytes(b"no photo")
    assert caption("-r", "photos", "-o", out) == 1
    expected = read(out)
    rows = [{"bytes": (photos / record.pop("path")).read_bytes(), "path": "a.jpg"} for record in expected]
    parquet.write_table(pyarrow.table({"image": rows}), "all.parquet", row_group_size=2)
    (photos / "no.parquet").write_bytes(b"no table")
    assert caption("*.parquet", "-o", "rows.jsonl") == 1
    assert "no.parquet: cannot be read as a Parquet file" in capsys.readouterr().err
    for row, (inside, record) in enumerate(zip(read(photos / "rows.jsonl"), expected, strict=True)):
        assert inside.pop("path") == f"all.parquet/{row}"
        if "error" in record:
            assert inside["error"]["code"] == "not_an_image"
            assert inside["error"]["message"].startswith(f"all.parquet/{row}: ")
        else:
            assert inside == record
    assert caption("all.parquet", "--format", "sidecar", "-o", "texts") == 1
    first = next(row for row, record in enumerate(expected) if "error" not in record)
    assert (photos / "texts" / "all" / f"{first}.txt").read_text() == f"{expected[first]['caption']}\n"


def test_all_formats_say_the_same(caption: Caption, photos: Path, out: Path) -> None:
    for format in ("jsonl", "csv", "coco", "text"):
        assert caption("-r", "photos", "--format", format, "-o", f"out.{format}") == 0
    assert caption("-r", "photos", "--format", "sidecar", "-o", "texts", "--ext", ".caption") == 0
    records = read(out)
    texts = [record["caption"] for record in records]
    assert [record["path"].replace(os.sep, "/") for record in records] == [f"photos/{name}" for name in NAMES]
    assert [record["width"] for record in records] == [40] * 5
    rows = list(csv.DictReader(io.StringIO((photos / "out.csv").read_text(encoding="utf-8"))))
    assert [(row["caption"], float(row["log_prob"])) for row in rows] == [
        (r["caption"], r["log_prob"]) for r in records
    ]
    entries = json.loads((photos / "out.coco").read_text(encoding="utf-8"))
    assert entries == [
        {"image_id": identity, "caption": text} for identity, text in zip(["a", 2, "ü", 3, "d"], texts, strict=True)
    ]
    lines = (photos / "out.text").read_text(encoding="utf-8").splitlines()
    assert lines == [f"{record['path']}\t{record['caption']}" for record in records]
    sidecars = [(photos / "texts" / name).with_suffix(".caption").read_text(encoding="utf-8") for name in NAMES]
    assert sidecars == [f"{text}\n" for text in texts]
    assert sorted(each.name for each in photos.iterdir()) == [
        *("out.coco", "out.csv", "out.jsonl", "out.text", "photos", "texts")
    ]


@pytest.mark.parametrize("flags", [["--beam", "3", "--num-captions", "2"], ["--sample", "--seed", "7"], ["--greedy"]])
def test_records_are_equal_for_any_batch_order_and_workers(
    caption: Caption, photos: Path, out: Path, flags: list[str]
) -> None:
    wanted: dict[str, Any] = {}
    forms = [("1", "1", NAMES), ("3", "4", NAMES[::-1]), ("8", "2", NAMES[2:] + NAMES[:2])]
    for batch, workers, names in forms:
        inputs = [f"photos/{name}" for name in names]
        words = [*inputs, "--format", "jsonl", "-o", out, "--existing", "overwrite", *flags]
        assert caption(*words, "--batch-size", batch, "--workers", workers) == 0
        records = read(out)
        assert [record["path"] for record in records] == inputs
        for record in records:
            known = wanted.setdefault(record["path"], record)
            assert record["log_prob"] == pytest.approx(known["log_prob"], abs=1e-3)
            assert [each["text"] for each in record["captions"]] == [each["text"] for each in known["captions"]]
            assert {**record, "log_prob": 0, "confidence": 0, "captions": []} == {
                **known,
                **{"log_prob": 0, "confidence": 0, "captions": []},
            }


def test_shards_are_every_nth_input(caption: Caption, capsys: pytest.CaptureFixture[str]) -> None:
    lines = []
    for shard in ("1/2", "2/2", "7/9"):
        assert caption("-r", "photos", "--shard", shard) == 0
        lines.append(capsys.readouterr().out.splitlines())
    assert caption("-r", "photos") == 0
    whole = capsys.readouterr().out.splitlines()
    assert lines == [whole[0::2], whole[1::2], []]


def test_an_empty_shard_writes_an_empty_file(caption: Caption, photos: Path) -> None:
    for format, content in (("jsonl", ""), ("coco", "[]\n"), ("csv", "path,")):
        assert caption("photos/a.jpg", "--shard", "2/2", "--format", format, "-o", f"o.{format}") == 0
        assert (photos / f"o.{format}").read_text(encoding="utf-8")[:5] == content


def test_failures_are_recorded_and_reported_and_do_not_stop_the_run(
    caption: Caption, photos: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "empty.jpg").write_bytes(b"")
    (photos / "notes.txt").write_text("no image")
    cut = photos / "cut.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8)).save(cut)
    cut.write_bytes(cut.read_bytes()[:3000])
    inputs = ("empty.jpg", "photos/a.jpg", "notes.txt", "missing.jpg", "cut.jpg")
    assert caption(*inputs, "--format", "jsonl", "-o", out) == 1
    records = read(out)
    assert [record["path"] for record in records] == list(inputs)
    codes = [record.get("error", {}).get("code") for record in records]
    assert codes == ["empty", None, "not_an_image", "unreadable", "truncated"]
    messages = capsys.readouterr().err.splitlines()
    assert messages == [
        *(f"captioner: {record['error']['message']}" for record in records if "error" in record),
        "captioner: 1 captioned, 4 failed",
    ]
    assert caption("cut.jpg", "--allow-truncated", "--format", "jsonl") == 0
    assert json.loads(capsys.readouterr().out)["notes"] == ["truncated"]
    assert caption("photos/a.jpg", "*.bmp") == 1
    assert "captioner: *.bmp: no file matches\n" in capsys.readouterr().err


@posix
def test_odd_names(caption: Caption, photos: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["two\nlines.jpg", " space .jpg", "-dash.jpg", "日本語 🐶.jpg", 'q"uo,te.jpg', os.fsdecode(b"caf\xe9.jpg")]
    for number, name in enumerate(names):
        draw(photos / name, number)
    stdin = io.TextIOWrapper(io.BytesIO(b"\0".join(map(os.fsencode, names))))
    monkeypatch.setattr(sys, "stdin", stdin)
    assert caption("-", "-0", "--format", "jsonl", "-o", out) == 0
    assert [record["path"] for record in read(out)] == names
    assert caption("--format", "csv", "-o", "out.csv", "--", *names) == 0
    with (photos / "out.csv").open(encoding="utf-8", newline="") as file:
        # A spreadsheet would take -dash.jpg for a formula.
        expected = [name.replace("-dash", "./-dash").replace("\udce9", "\\udce9") for name in names]
        assert [row["path"] for row in csv.DictReader(file)] == expected
    assert caption("--format", "sidecar", "--", *names) == 0
    assert sorted(each.stem for each in photos.glob("*.txt")) == sorted(name[:-4] for name in names)


@pytest.mark.parametrize("format", ["jsonl", "csv", "text", "coco"])
def test_what_is_done_with_a_file_that_exists(
    caption: Caption, photos: Path, format: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = photos / "out"
    words = ["--format", format, "-o", file]
    assert caption("photos/a.jpg", *words) == 0
    first = file.read_bytes()
    assert caption("photos/ü.jpg", *words) == 2
    assert "out: exists; choose --existing skip, overwrite or append" in capsys.readouterr().err
    assert caption("photos/ü.jpg", *words, "--existing", "skip") == 0
    assert file.read_bytes() == first
    assert caption("photos/ü.jpg", *words, "--existing", "append") == 0
    both = file.read_bytes()
    assert caption("photos/ü.jpg", *words, "--existing", "overwrite") == 0
    second = file.read_bytes()
    if format == "coco":
        assert json.loads(both) == json.loads(first) + json.loads(second)
    elif format == "csv":
        assert both == first + second.split(b"\n", 1)[1]
    else:
        assert both == first + second
    assert first != second
    assert not list(photos.glob(".*"))


def test_nothing_is_appended_to_something_else(
    caption: Caption, photos: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for format, content in (("csv", "a,b\n1,2\n"), ("coco", '{"a": 1}'), ("coco", "no json")):
        out.write_text(content)
        assert caption("photos/a.jpg", "--format", format, "-o", out, "--existing", "append") == 2
        assert "nothing can be appended" in capsys.readouterr().err
        assert out.read_text() == content
    out.write_text("no line end")
    assert caption("photos/a.jpg", "--format", "jsonl", "-o", out, "--existing", "append") == 0
    assert out.read_text().splitlines()[0] == "no line end"
    assert json.loads(out.read_text().splitlines()[1])["path"] == "photos/a.jpg"


def test_an_existing_file_outlives_a_run_that_does_not_come_to_a_result(caption: Caption, out: Path) -> None:
    out.write_text("precious")
    words = ["--format", "jsonl", "-o", out, "--existing", "overwrite"]
    assert caption("photos/a.jpg", *words, "--model", "nowhere") == 4
    assert caption("photos/a.jpg", *words, "--prefix", "a zebra") == 2
    assert caption("nothing/*.jpg", *words) == 3
    assert out.read_text() == "precious"


def test_what_is_done_with_sidecars_that_exist(
    caption: Caption, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["-r", "photos", "--format", "sidecar"]
    old = photos / "photos" / "a.txt"
    old.write_text("mine")
    assert caption(*words) == 2
    refused = "a.txt: exists; continue an interrupted run with --resume, or choose --existing skip, overwrite or append"
    assert refused in capsys.readouterr().err
    assert caption(*words, "--resume") == 0
    assert capsys.readouterr().err == "captioner: 4 captioned, 0 failed, 1 skipped\n"
    assert caption(*words, "--existing", "skip") == 0
    assert capsys.readouterr().err == "captioner: 0 captioned, 0 failed, 5 skipped\n"
    assert old.read_text() == "mine"
    assert len(list((photos / "photos").rglob("*.txt"))) == 5
    assert caption("photos/a.jpg", "--format", "sidecar", "--existing", "append") == 0
    mine, text = old.read_text().splitlines()
    assert mine == "mine"
    assert caption("photos/a.jpg", "--format", "sidecar", "--existing", "overwrite") == 0
    assert old.read_text() == f"{text}\n"


@pytest.mark.parametrize(("existing", "count"), [("error", 1), ("skip", 1), ("overwrite", 1), ("append", 2)])
def test_two_photos_do_not_share_a_sidecar_unless_it_is_appended_to(
    caption: Caption, photos: Path, existing: str, count: int, capsys: pytest.CaptureFixture[str]
) -> None:
    draw(photos / "photos" / "a.png", 9)
    words = ["photos/a.jpg", "photos/a.png", "--format", "sidecar", "--existing", existing]
    assert caption(*words) == (0 if count == 2 else 1)
    assert len((photos / "photos" / "a.txt").read_text().splitlines()) == count
    assert ("another input has the sidecar photos/a.txt; rename the file" in capsys.readouterr().err) == (count == 1)


def test_photos_of_the_same_coco_id_get_their_paths(
    caption: Caption, photos: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["100CANON/IMG_0001.png", "101CANON/IMG_0001.png", "101CANON/IMG_0002.png"]
    for number, name in enumerate(names):
        (photos / "trip" / name).parent.mkdir(parents=True, exist_ok=True)
        draw(photos / "trip" / name, number)
    for words in (("trip", "-r"), ("trip/100CANON", "trip/101CANON")):
        assert caption(*words, "--format", "coco", "-o", "ids.json", "--existing", "overwrite") == 0
        assert [entry["image_id"] for entry in json.loads((photos / "ids.json").read_text())] == names
    assert caption("trip/101CANON", "--format", "coco", "-o", "ids.json", "--existing", "overwrite") == 0
    assert json.loads((photos / "ids.json").read_text())[1].keys() == {"image_id", "caption"}
    assert [entry["image_id"] for entry in json.loads((photos / "ids.json").read_text())] == [1, 2]
    capsys.readouterr()
    assert caption(*["trip/101CANON/IMG_0001.png"] * 2, "--format", "coco") == 1
    assert "another input has the path trip/101CANON/IMG_0001.png" in capsys.readouterr().err


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.is_file() else 0


@pytest.fixture
def interrupt(model: str, photos: Path, launch: Callable[..., Any]) -> Callable[..., tuple[int, str]]:
    """Caption photos named on standard input, which stays open, and send a signal once three are `written`."""

    def run(number: signal.Signals, written: Callable[[], bool], *words: object) -> tuple[int, str]:
        process = launch("caption", "--model", model, "--device", "cpu", "-", *words, "--batch-size", 1)
        named = 4 if number == signal.SIGKILL else 3  # other signals would let the fourth finish
        process.write("".join(f"photos/{name}\n" for name in NAMES[:named]))
        process.wait_until(written)
        os.kill(process.pid, number)
        return process.wait(), process.read(2)

    return run


@posix
@pytest.mark.parametrize(
    ("number", "code", "format"),
    [
        (signal.SIGKILL, -signal.SIGKILL, "jsonl"),
        (signal.SIGKILL, -signal.SIGKILL, "coco"),
        (signal.SIGTERM, 143, "csv"),
        (signal.SIGINT, 130, "sidecar"),
        (signal.SIGKILL, -signal.SIGKILL, "lost sidecar"),
    ],
)
def test_an_interrupted_run_keeps_what_it_wrote_and_is_resumed(
    caption: Caption,
    interrupt: Callable[..., tuple[int, str]],
    photos: Path,
    number: signal.Signals,
    code: int,
    format: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lost = format == "lost sidecar"
    format = format.removeprefix("lost ")
    words = ["--format", format, "-o", "part"]
    journal = photos / ".part.journal.jsonl"
    part = photos / "part"
    # The journal comes first, the output second, the tally last: the signal may be faster than the tally.
    written = {
        "jsonl": lambda: lines(part) == 3,
        "csv": lambda: lines(part) == 4,
        "coco": lambda: lines(journal) == 4,
        "sidecar": lambda: (part / "photos" / "ü.txt").exists(),
    }
    found, messages = interrupt(number, written[format], *words)
    assert found == code
    if number != signal.SIGKILL:
        assert re.search(r"captioner: stopped: [23] captioned, 0 failed; continue with --resume\n", messages)
    assert journal.exists()
    before = part.read_bytes() if part.is_file() else b""
    if format == "jsonl":
        assert len(read(part)) == 3
    if format == "sidecar":
        texts = {each.name: each.read_text() for each in part.rglob("*") if each.is_file()}
        assert sorted(texts) == ["a.txt", "b 2.txt", "ü.txt"]
    if lost:  # as if the signal had come between the journal and the sidecar
        (part / "photos" / "ü.txt").unlink()
    if format != "sidecar":
        assert caption("photos/a.jpg", *words) == 2
        assert "part: of a run that was interrupted; continue it with --resume" in capsys.readouterr().err
        assert caption("-r", "photos", *words, "--resume", "--greedy") == 2
        assert "other settings (greedy False)" in capsys.readouterr().err
    inputs = [f"photos/{name}" for name in NAMES]
    assert caption(*inputs, *words, "--resume") == 0
    assert capsys.readouterr().err == f"captioner: {2 + lost} captioned, 0 failed, {3 - lost} skipped\n"
    assert not journal.exists()
    assert caption(*inputs, "--format", format, "-o", "whole", "--batch-size", 1) == 0
    if format == "sidecar":
        whole = {each.relative_to("whole"): each.read_bytes() for each in Path("whole").rglob("*.txt")}
        assert {each.relative_to("part"): each.read_bytes() for each in Path("part").rglob("*.txt")} == whole
        assert len(whole) == 5
    else:
        assert part.read_bytes() == (photos / "whole").read_bytes()
        assert part.read_bytes().startswith(before)


@posix
def test_every_path_of_a_pipe_has_its_record_before_the_next(
    model: str, photos: Path, launch: Callable[..., Any]
) -> None:
    process = launch("caption", "--model", model, "--device", "cpu", "-")
    for count, name in enumerate(NAMES[:3], start=1):
        process.write(f"photos/{name}\n")
        process.wait_until(lambda count=count: process.read(1).count("\n") == count)
        assert process.read(1).splitlines()[-1].startswith(f"photos/{name}\t")
    os.kill(process.pid, signal.SIGINT)
    assert process.wait() == 130
    assert re.search(r"captioner: stopped: [23] captioned, 0 failed\ncaptioner: error: interrupted\n$", process.read(2))


@posix
@pytest.mark.parametrize(("old", "tar"), [(0, False), (9000, False), (0, True)])
def test_a_full_disk_loses_nothing(
    caption: Caption, model: str, photos: Path, out: Path, launch: Callable[..., Any], old: int, tar: bool
) -> None:
    """Once the journal is what cannot grow, once OUT, in the middle of a line."""
    out.write_bytes(b"x" * (old - 1) + b"\n" if old else b"")
    inputs = [f"photos/{name}" for name in NAMES]
    words = [*inputs, "--format", "jsonl", "-o", "out.jsonl", "--existing", "append"]
    if tar:
        with tarfile.open("all.tar", "w") as archive:
            for name in inputs:
                archive.add(name)
        words[: len(inputs)] = ["all.tar"]
        inputs = [f"all.tar/{name}" for name in inputs]
    limit = 2500 if not old else old + 700
    process = launch("caption", "--model", model, "--device", "cpu", *words, limit=limit)
    assert process.wait() == 5, process.read(2)
    assert "the disk is full; free some space and continue with --resume" in process.read(2).splitlines()[-1]
    torn = out.read_bytes()
    assert not old or not torn.endswith(b"\n")
    assert caption(*words, "--resume") == 0
    lines = out.read_bytes()[old:]
    assert out.read_bytes().startswith(torn)
    assert [json.loads(line)["path"] for line in lines.splitlines()] == inputs


@posix
def test_resume_checks_what_changed(
    caption: Caption,
    interrupt: Callable[..., tuple[int, str]],
    photos: Path,
    out: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    journal = photos / ".out.jsonl.journal.jsonl"
    (photos / "photos" / "b 2.png").write_bytes(b"")
    words = ["--format", "jsonl", "-o", "out.jsonl"]
    interrupt(signal.SIGKILL, lambda: lines(out) == 3, *words)
    kept_journal, kept = journal.read_bytes(), out.read_bytes()
    inputs = [f"photos/{name}" for name in NAMES]

    def restore(content: bytes = kept, notes: bytes = kept_journal) -> None:
        out.write_bytes(content)
        journal.write_bytes(notes)
        capsys.readouterr()

    # A failure of before counts.
    assert caption(*inputs, *words, "--resume", "--dry-run") == 1
    assert capsys.readouterr().out.splitlines() == inputs[3:]
    assert (journal.read_bytes(), out.read_bytes()) == (kept_journal, kept)
    assert caption(*inputs, *words, "--resume") == 1
    assert capsys.readouterr().err == "captioner: 2 captioned, 1 failed, 2 skipped\n"
    whole = out.read_bytes()

    # The last write was torn, or did not come about; the journal's last line was torn.
    last = kept.rstrip(b"\n").rfind(b"\n") + 1
    for content in (kept[:-9], kept[:last]):
        restore(content)
        assert caption(*inputs, *words, "--resume") == 1
        assert out.read_bytes() == whole
    restore(notes=kept_journal + b'{"path": "photos/z')
    assert caption(*inputs, *words, "--resume") == 1
    assert out.read_bytes() == whole

    # A file touched is the same file; one with other bytes is done again.
    restore()
    os.utime(photos / "photos" / "a.jpg", (1, 1))
    draw(photos / "photos" / "b 2.png", 1)
    os.utime(photos / "photos" / "ü.jpg", (1, 1))
    same = (photos / "photos" / "ü.jpg").read_bytes()
    (photos / "photos" / "ü.jpg").write_bytes(same[:-1] + b"\0")
    assert caption(*inputs, *words, "--resume", "--allow-truncated") == 2
    capsys.readouterr()
    assert caption(*inputs, *words, "--resume") == 1  # for ü.jpg, now cut short
    assert capsys.readouterr().err.splitlines()[-1] == "captioner: 3 captioned, 1 failed, 1 skipped"
    assert [record["path"] for record in read(out)][3:] == inputs[1:]

    # What is not ours is not touched.
    for content in (kept[:last] + b"something else", kept[: last - 5], kept + b"more"):
        restore(content)
        assert caption(*inputs, *words, "--resume") == 2
        assert "not as the interrupted run left it" in capsys.readouterr().err
        assert out.read_bytes() == content
    for notes in (b'{"journal": 99}\n', b"no json\n", b"[]\n"):
        restore(notes=notes)
        assert caption(*inputs, *words, "--resume") == 2
        assert "not a journal of this program" in capsys.readouterr().err


def test_resume_starts_a_new_run_if_there_is_nothing_to_resume(caption: Caption, out: Path) -> None:
    words = ["photos/a.jpg", "--format", "jsonl", "-o", out, "--resume"]
    out.with_name(f".{out.name}.journal.jsonl").write_text("")
    assert caption(*words) == 0
    assert len(read(out)) == 1


@posix
def test_resume_notices_another_model_in_the_same_folder(
    caption: Caption,
    model: str,
    interrupt: Callable[..., tuple[int, str]],
    photos: Path,
    out: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["--format", "jsonl", "-o", "out.jsonl"]
    copy = shutil.copytree(model, photos / "model")
    interrupt(signal.SIGKILL, lambda: lines(out) == 3, *words, "--model", "model")
    state = load_file(copy / "model.safetensors")
    state["decoder.token_embedding.weight"][5] += 1e-3
    save_file(state, copy / "model.safetensors")
    before = out.read_bytes()
    assert caption("photos", *words, "--model", "model", "--resume") == 2
    assert "the weights of the model have changed" in capsys.readouterr().err
    assert out.read_bytes() == before


@pytest.mark.parametrize("words", [("--format", "jsonl", "-o", "out"), ("--format", "sidecar", "-o", "texts")])
def test_a_complete_run_has_nothing_to_resume(
    caption: Caption, photos: Path, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert caption("photos", *words) == 0
    before = {path: path.read_bytes() for path in photos.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert caption("photos", *words, "--resume") == 0
    assert re.search("nothing to resume|0 captioned, 0 failed, 3 skipped", capsys.readouterr().err)
    assert {path: path.read_bytes() for path in photos.rglob("*") if path.is_file()} == before


@posix
def test_one_run_at_a_time_writes_an_output(
    caption: Caption, model: str, photos: Path, launch: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--format", "jsonl", "-o", "out.jsonl")
    process = launch("caption", "--model", model, "--device", "cpu", "-", *words)
    process.write("photos/a.jpg\n")
    process.wait_until(lambda: lines(photos / "out.jsonl") == 1)
    for more in ((), ("--resume",), ("--existing", "overwrite")):
        assert caption("photos/a.jpg", *words, *more) == 5
        assert capsys.readouterr().err.endswith(
            "out.jsonl: another run is writing it; wait for it, or name another output\n"
        )
    assert caption("photos/a.jpg", *words, "--dry-run", "--resume") == 0
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert caption("photos", *words, "--resume") == 0
    assert len(read(photos / "out.jsonl")) == 3
    assert not list(photos.glob(".*"))


@pytest.mark.parametrize("existing", ["overwrite", "append"])
def test_inputs_are_not_overwritten(
    caption: Caption, photos: Path, existing: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "list").write_text("photos/a.jpg\n")
    (photos / "c.txt").write_bytes((photos / "photos" / "a.jpg").read_bytes())
    before = {path: path.read_bytes() for path in photos.rglob("*") if path.is_file()}
    for words in (
        ("photos/a.jpg", "-o", "photos/b 2.png"),
        ("@list", "-o", "list"),
        ("c.txt", "--format", "sidecar"),
        ("photos/a.jpg", "--format", "coco", "-o", "photos/a.jpg"),
    ):
        assert caption(*words, "--existing", existing) == 2, words
        assert re.search("an image, which|the list of inputs|cannot be appended|nothing can", capsys.readouterr().err)
        assert {path: path.read_bytes() for path in photos.rglob("*") if path.is_file()} == before


@posix
def test_every_format_follows_a_link_that_the_output_is(caption: Caption, photos: Path) -> None:
    (photos / "elsewhere").mkdir()
    for name in ("jsonl", "coco"):
        (photos / "link").unlink(missing_ok=True)
        (photos / "link").symlink_to(photos / "elsewhere" / name)
        assert caption("photos/a.jpg", "--format", name, "-o", "link") == 0
        assert (photos / "link").is_symlink()
        assert (photos / "elsewhere" / name).stat().st_size > 0


def test_sidecars_of_long_names(caption: Caption, photos: Path) -> None:
    name = "字" * 83
    draw(photos / "long" / f"{name}.jpg", 3)
    assert caption("long", "--format", "sidecar") == 0
    assert (photos / "long" / f"{name}.txt").read_text()


def test_a_failure_leaves_no_sidecar_and_its_journal_ends(caption: Caption, photos: Path) -> None:
    (photos / "photos" / "a.jpg").write_bytes(b"")
    assert caption("photos", "--format", "sidecar", "-o", "texts") == 1
    assert sorted(each.name for each in (photos / "texts").iterdir()) == ["b 2.txt", "ü.txt"]
    assert not list(photos.glob(".*"))


def test_a_dry_run_writes_and_loads_nothing(
    caption: Caption, photos: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "no model.ckpt").touch()
    assert caption("photos", "--dry-run", "--model", "no model.ckpt", "--format", "jsonl", "-o", out) == 0
    shown = capsys.readouterr()
    assert shown.out.splitlines() == [os.path.join("photos", name) for name in NAMES[:3]]
    assert shown.err == (
        "captioner: photos: 2 more in subfolders; -r searches them\n"
        "captioner: 3 to caption, 0 failed, 0 skipped (--dry-run: nothing is written)\n"
    )
    (photos / "photos" / "a.txt").touch()
    assert caption("photos", "--dry-run", "--format", "sidecar", "--existing", "skip") == 0
    shown = capsys.readouterr()
    assert shown.out.splitlines()[0] == f"{os.path.join('photos', 'b 2.png')} -> {os.path.join('photos', 'b 2.txt')}"
    assert "2 to caption, 0 failed, 1 skipped" in shown.err
    assert sorted(each.name for each in photos.iterdir()) == ["no model.ckpt", "photos"]


def test_a_missing_ray_is_named(
    caption: Caption, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert caption("photos", "--engine", "ray") == 5
    assert capsys.readouterr().err == 'captioner: error: --engine ray needs Ray; pip install "captioner[ray]"\n'


def test_searches(caption: Caption, capsys: pytest.CaptureFixture[str]) -> None:
    def captions(*words: object) -> list[dict[str, Any]]:
        assert caption("photos/a.jpg", "--format", "jsonl", *words) == 0
        found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["captions"]
        return found

    assert captions("--greedy") == captions("--beam", 1)
    assert captions() == captions("--beam", 5)
    assert captions("--num-captions", 7) == captions("--beam", 7, "--num-captions", 7)
    assert len({each["text"] for each in captions("--num-captions", 7)}) == 7
    drawn = captions("--sample", "--num-captions", 3, "--temperature", 2, "--top-p", 1)
    assert drawn == captions("--sample", "--num-captions", 3, "--temperature", 2, "--top-p", 1, "--seed", 0)
    assert drawn != captions("--sample", "--num-captions", 3, "--temperature", 2, "--top-p", 1, "--seed", 1)
    assert captions("--prefix", "two people")[0]["text"].startswith("two people")
    assert len(captions("--max-length", 3)[0]["words"]) <= 3
    assert len(captions("--length", "long")[0]["words"]) >= len(captions("--length", "short")[0]["words"])
    assert captions("--length", "short") == captions("--length-penalty", 0)
    assert captions("--region", "0,0,1,1") != captions("--region", "0.5,0.5,0.5,0.5")


def test_names_with_line_ends_of_unicode(caption: Caption, photos: Path) -> None:
    names = [f"a{end}b.jpg" for end in "\u2028\u2029\x85"]
    for number, name in enumerate(names):
        draw(photos / name, number)
    assert caption(*names, "--format", "coco", "-o", "ids.json") == 0
    found = json.loads((photos / "ids.json").read_text(encoding="utf-8"))
    assert [entry["image_id"] for entry in found] == [name[:-4] for name in names]


def test_a_photo_unlike_the_training_photos_is_noted(
    model: str, photos: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    captioner = Captioner.from_pretrained(model, device="cpu")
    network, pixels = captioner.model, torch.from_numpy(captioner.prepare("photos/a.jpg").pixels)
    with torch.no_grad():
        network.familiarity = Familiarity.fit(torch.randn(200, network.encoder.width))
        distance = float(network.familiarity(network.encoder(pixels[None])))
    for limit in (0.5 * distance, 2 * distance):
        network.config = replace(network.config, familiar_distance=limit)
        captioner.save_pretrained(photos / "fitted")
        assert main(["caption", "photos/a.jpg", "--model", "fitted", "--format", "jsonl", "--device", "cpu"]) == 0
        shown = capsys.readouterr()
        record = json.loads(shown.out)
        assert record["unfamiliarity"] == round(distance / limit, 2)
        line = "captioner: photos/a.jpg: unlike the photos this model was trained on; its caption may be wrong\n"
        noted = limit < distance
        assert record["notes"] == ["unfamiliar"] * noted
        assert shown.err == line * noted + "captioner: 1 captioned, 0 failed\n"


def test_improbable_captions(caption: Caption, capsys: pytest.CaptureFixture[str]) -> None:
    assert caption("photos", "--min-confidence", 1) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert sorted(err.splitlines()) == [  # the folder is read by another thread than the model is loaded by
        "captioner: --min-confidence: this model's confidence is not calibrated: it is the words' probability",
        "captioner: 3 captioned, 0 failed, 3 below --min-confidence",
        "captioner: photos: 2 more in subfolders; -r searches them",
    ]


def test_standard_output_takes_every_format_that_is_one_file(
    caption: Caption, capsys: pytest.CaptureFixture[str]
) -> None:
    assert caption("photos", "--format", "coco") == 0
    assert [entry["image_id"] for entry in json.loads(capsys.readouterr().out)] == ["a", 2, "ü"]
    assert caption("photos", "--format", "csv") == 0
    assert len(list(csv.DictReader(io.StringIO(capsys.readouterr().out)))) == 3


@pytest.mark.parametrize(
    ("name", "start"), [("a.csv", "path,"), ("a.JSONL", '{"path"'), ("a.json", "[\n"), ("a.tsv", "p")]
)
def test_the_format_follows_the_extension(
    caption: Caption, photos: Path, name: str, start: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert caption("photos/a.jpg", "photos/ü.jpg", "-o", name) == 0
    assert (photos / name).read_text(encoding="utf-8").startswith(start)
    assert capsys.readouterr().err == "captioner: 2 captioned, 0 failed\n"


def test_a_named_format_is_written_whatever_the_extension(
    caption: Caption, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert caption("photos/a.jpg", "-o", "a.csv", "--format", "jsonl") == 0
    assert read(photos / "a.csv")[0]["path"] == "photos/a.jpg"
    assert capsys.readouterr().err.startswith("captioner: a.csv: written as jsonl, whatever its extension says\n")


@posix
def test_devices_are_streams(caption: Caption) -> None:
    assert caption("photos", "-o", "/dev/null") == 0
    assert caption("photos", "-o", "/dev/null") == 0


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["nowhere/*.jpg"], 3, "nowhere/*.jpg: no input found; name images"),
        (["@no.txt"], 3, "cannot read the list"),
        (["nowhere.jpg", "photos/none.jpg"], 3, "nowhere.jpg: no such file; check its path"),
        (["photos", "--model", "nowhere"], 4, "nowhere: no such model"),
        (["photos", "--device", "cuda:0,1", "--watch"], 2, "without --watch and --engine; use cuda:0"),
        (["photos", "--engine", "dask"], 2, "invalid choice: 'dask'"),
        (["photos", "--engine", "ray", "--watch"], 2, "--watch and --engine ray: choose one"),
        (["photos", "--resume"], 2, "the journal is kept beside OUT; add -o"),
        (["photos", "--ext", ".cap"], 2, "add --format sidecar"),
        (["photos", "--format", "sidecar", "--ext", ".jpg"], 2, "not an extension for texts"),
        (["photos", "--format", "sidecar", "--ext", "/x"], 2, "not an extension for texts"),
        (["photos", "--format", "sidecar", "-o", "photos/a.jpg"], 2, "not a folder"),
        (["photos", "--format", "jsonl", "-o", "photos"], 2, "a folder; name a file"),
        (["photos", "--seed", "1"], 2, "--seed: is for sampling; add --sample"),
        (["photos", "--top-p", "0.5"], 2, "--top-p: is for sampling"),
        (["photos", "--greedy", "--num-captions", "2"], 2, "greedy search finds one"),
        (["photos", "--greedy", "--length-penalty", "2"], 2, "--length-penalty: is for beam search"),
        (["photos", "--sample", "--no-consensus"], 2, "--no-consensus: is for beam search"),
        (["photos", "--sample", "--length", "short"], 2, "--length short: works by beam search"),
        (["photos", "--greedy", "--beam", "2"], 2, "not allowed with argument"),
        (["photos", "--beam", "2", "--num-captions", "3"], 2, "ask for 1 to 2"),
        (["photos", "--beam", "0"], 2, "argument --beam: 0: not 1 or more"),
        (["photos", "--batch-size", "many"], 2, "argument --batch-size"),
        (["photos", "--shard", "3/2"], 2, "3/2: not I/N"),
        (["photos", "--region", "1,2"], 2, "1,2: not four numbers"),
        (["photos", "--region", "0,0,2,1"], 2, "not within the photo"),
        (["photos", "--min-confidence", "nan"], 2, "nan: not from 0 to 1"),
        (["photos", "--recurse"], 2, "did you mean --recursive?"),
        ([], 2, "INPUT"),
    ],
)
def test_errors_are_one_line(
    caption: Caption, words: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert caption(*words) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    last = shown.err.splitlines()[-1]
    assert last.startswith("captioner: error: ")
    assert message in last


def test_the_script_is_the_verb(photos: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main(["photos/a.jpg", "--model", model, "--dry-run"]) == 0
    assert capsys.readouterr().out == "photos/a.jpg\n"


def test_captions_as_data_sets_want_them(caption: Caption, capsys: pytest.CaptureFixture[str]) -> None:
    assert caption("photos/a.jpg") == 0
    plain = capsys.readouterr().out.strip()
    words = ("--trigger", "sks", "--sentence", "--blacklist", "the, near", "--replace", "dog=hound", "--prepend", "> ")
    assert caption("photos/a.jpg", *words) == 0
    wanted = " ".join("hound" if word == "dog" else word for word in plain.split() if word not in ("the", "near"))
    assert capsys.readouterr().out == f"> sks, {wanted[0].upper()}{wanted[1:]}.\n"
    assert caption("photos/a.jpg", "--tags", 2, "--format", "jsonl") == 0
    record = json.loads(capsys.readouterr().out)
    assert record["caption"] == plain
    assert len(record["captions"]) == 1
    assert all(0 < tag["confidence"] <= 1 for tag in record["tags"])
    assert caption("photos/a.jpg", "--replace", "=x") == 2
    assert "not A=B, such as grey=gray" in capsys.readouterr().err
