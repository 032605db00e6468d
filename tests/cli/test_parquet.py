"""--format parquet: the rows are the records of JSONL."""

import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from captioner.cli import main
from tests.serving.conftest import save_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("parquet"))


@pytest.fixture(autouse=True)
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b\udce9.png"):
        Image.effect_noise((60, 40), 90).convert("RGB").save(name)
    Path("bad.png").write_bytes(b"not a photo")


def test_rows_are_the_records_of_jsonl(model: str) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    common = ("caption", ".", "--model", model, "--device", "cpu", "--greedy", "--max-length", "5")
    assert main([*common, "--format", "jsonl", "-o", "out.jsonl"]) == 1
    assert main([*common, "--format", "parquet", "-o", "out.parquet"]) == 1
    rows = parquet.read_table("out.parquet").to_pylist()
    records = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert len(rows) == len(records) == 3
    for row, record in zip(rows, records, strict=True):
        record["path"] = record["path"].encode("utf-8", "backslashreplace").decode()
        for caption in record.get("captions", ()):
            caption["words"] = [{"confidence": None, **word} for word in caption["words"]]
        assert row == {**dict.fromkeys(row), **record}
    assert rows[1]["error"]["code"] == "not_an_image"
    assert not list(Path().glob(".out*"))


def test_a_run_without_captions_has_the_same_columns() -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    from captioner.cli.parquet import parquet_document

    Path("empty").write_bytes(parquet_document([]))
    assert parquet.read_table("empty").column_names[:3] == ["path", "sha256", "caption"]


@pytest.mark.parametrize("words", [[], ["-o", "out", "--existing", "append"], ["-o", "/dev/null"]])
def test_it_is_written_to_a_new_file(model: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pyarrow")
    assert main(["caption", "a.png", "--model", model, "--format", "parquet", *words]) == 2
    assert "--format parquet: writes a whole new file" in capsys.readouterr().err


def test_the_extra_is_named_before_the_work(
    model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert main(["caption", "a.png", "--model", model, "--format", "parquet", "-o", "out"]) == 5
    assert 'pip install "captioner[parquet]"' in capsys.readouterr().err
