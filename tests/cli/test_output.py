"""Outputs: a run that is killed during any write and resumed leaves the file of a run that was not."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from captioner.caption import Caption, Captioned
from captioner.cli.formats import Result, format_named
from captioner.cli.inputs import Input
from captioner.cli.journal import Journal
from captioner.cli.output import Existing, FileOutput, SidecarOutput
from captioner.errors import ResourceError

NAMES = ("ä.jpg", "b\udce9.jpg")
RESULTS = [
    Result.of(name, Captioned(Caption(f"a dög {number}", -1.0, (), (4, 2)), 4, 3, "ab", ()), "tiny")
    for number, name in enumerate(NAMES)
]
OLD = {"text": "old", "jsonl": "{}\n", "csv": "", "coco": '[{"image_id": 1, "caption": "a cat"}]'}


def file_output(path: Path, format: str, existing: Existing, *, resume: bool = False) -> FileOutput:
    return FileOutput(path, format_named(format), existing, Journal(path, {"format": format}, resume=resume))


def sidecars(root: Path, existing: Existing, *, resume: bool = False) -> SidecarOutput:
    return SidecarOutput(root, ".txt", format_named("sidecar"), existing, Journal(root, {}, resume=resume))


def write(output: FileOutput | SidecarOutput, count: int) -> None:
    """The first results, up to a kill."""
    for result in RESULTS[:count]:
        output.add(Input(result.path, result.path), None, result)
    output.close()


def resume(output: FileOutput | SidecarOutput) -> None:
    """The results that are pending, up to the end."""
    for result in RESULTS:
        item = Input(result.path, result.path)
        if output.state(item) == "pending":
            output.add(item, None, result)
    output.finish()
    output.close()


@pytest.mark.parametrize("existing", ["error", "overwrite", "append"])
@pytest.mark.parametrize("format", ["text", "jsonl", "csv", "coco"])
def test_a_file_that_a_kill_left_incomplete_is_completed(tmp_path: Path, format: str, existing: Existing) -> None:
    out, old = tmp_path / "out", b"" if existing == "error" else OLD[format].encode()
    out.write_bytes(old)
    resume(file_output(out, format, existing))
    whole = out.read_bytes()
    assert not old or whole.startswith(old) == (existing == "append" and format != "coco")
    for count in (1, 2):
        out.write_bytes(old)
        output = file_output(out, format, existing)
        write(output, count)
        journal, written = output.journal.path.read_bytes(), out.read_bytes()
        last = [*output.journal.read()][-1]
        for length in range(last.offset if format != "coco" else len(written), len(written) + 1):
            out.write_bytes(written[:length])
            output.journal.path.write_bytes(journal)
            resume(file_output(out, format, existing, resume=True))
            assert out.read_bytes() == whole
            assert [each.name for each in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("existing", ["error", "skip", "overwrite", "append"])
def test_a_sidecar_that_a_kill_prevented_is_written(tmp_path: Path, existing: Existing) -> None:
    root = tmp_path / "texts"
    first, second = (root / f"{name[:-4]}.txt" for name in NAMES)
    root.mkdir()
    if existing in ("overwrite", "append"):
        first.write_text("old")
    for lost in (False, True):
        output = sidecars(root, existing)
        before = first.read_bytes() if first.exists() else None
        write(output, 1)
        whole = first.read_bytes()
        if lost and before is not None:
            first.write_bytes(before)
        elif lost:
            first.unlink()
        resume(sidecars(root, existing, resume=True))
        assert first.read_bytes() == whole
        assert second.read_text(encoding="utf-8") == "a dög 1\n"
        assert not list(tmp_path.glob(".*"))
        first.unlink()
        second.unlink()


@pytest.mark.parametrize("count", [1, 2])
def test_a_document_that_was_replaced_before_a_kill_is_not_appended_to_again(tmp_path: Path, count: int) -> None:
    out = tmp_path / "out"
    out.write_bytes(OLD["coco"].encode())
    output = file_output(out, "coco", "append")
    write(output, count)
    journal = output.journal.path.read_bytes()
    resume(file_output(out, "coco", "append", resume=True))
    whole = out.read_bytes()
    if count == len(RESULTS):
        output.journal.path.write_bytes(journal)  # the kill came before it was removed
        resume(file_output(out, "coco", "append", resume=True))
        assert out.read_bytes() == whole
    # Somebody else appended to it meanwhile: theirs stays.
    output.journal.path.write_bytes(journal)
    out.write_bytes(b'[{"image_id": 1, "caption": "a cat"}, {"image_id": 2, "caption": "another"}]')
    resume(file_output(out, "coco", "append", resume=True))
    assert b"another" in out.read_bytes()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def replace_file(path: Path) -> None:
    content = path.read_bytes()
    path.rename(path.with_name("moved"))
    path.write_bytes(content)


@pytest.mark.parametrize("harm", [Path.unlink, cut, replace_file, lambda path: shutil.rmtree(path.parent)])
@pytest.mark.parametrize("format", ["text", "jsonl", "csv", "coco"])
@pytest.mark.parametrize("count", [1, 2])
def test_a_file_that_others_remove_or_change_is_noticed(
    tmp_path: Path, format: str, harm: Callable[[Path], None], count: int
) -> None:
    out = tmp_path / "folder" / "out"
    output = file_output(out, format, "error")
    for result in RESULTS[:count]:
        output.add(Input(result.path, result.path), None, result)
    harm(output.journal.path if format == "coco" else out)
    with pytest.raises(ResourceError, match="removed or changed by another program"):
        resume(output)
    output.close()


@pytest.mark.parametrize("harm", [Path.unlink, lambda path: shutil.rmtree(path.parent)])
def test_sidecars_that_others_remove_are_noticed(tmp_path: Path, harm: Callable[[Path], None]) -> None:
    output = sidecars(tmp_path / "texts", "error")
    for result in RESULTS:
        output.add(Input(result.path, result.path), None, result)
    harm(tmp_path / "texts" / "ä.txt")
    with pytest.raises(ResourceError, match="removed by another program"):
        output.finish()
    output.close()
