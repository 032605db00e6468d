"""Progress, signals and messages of captioner caption, in processes of its own."""

import io
import json
import os
import pty
import re
import signal
import sys
import termios
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from captioner.cli import main, terminal
from captioner.cli.terminal import Interruption, Progress, Tally
from captioner.errors import Interrupted
from tests.processes import Launch, Launched
from tests.serving.conftest import save_tiny_model

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds processes in /proc")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("terminal"))


@pytest.fixture(autouse=True)
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.png", "b.png", "c.png"):
        Image.effect_noise((60, 40), 90).convert("RGB").save(tmp_path / name)
    monkeypatch.chdir(tmp_path)


def decoders(process: Launched) -> list[int]:
    """The decoder processes that a process has started."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(each) for each in children if b"spawn_main" in Path(f"/proc/{each}/cmdline").read_bytes()]


def test_a_decoder_that_crashes_costs_one_record(model: str, launch: Launch) -> None:
    words = ("--isolate", "--workers", 1, "--greedy", "--max-length", 5, "--format", "jsonl", "-")
    process = launch("caption", "--model", model, "--device", "cpu", *words)
    process.write("a.png\n")
    process.wait_until(lambda: process.read(1).count("\n") == 1)
    [decoder] = decoders(process)
    os.kill(decoder, signal.SIGSTOP)
    process.write("b.png\n")
    time.sleep(0.5)
    os.kill(decoder, signal.SIGKILL)
    process.write("c.png\n")
    process.wait_until(lambda: process.read(1).count("\n") == 3)
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait() == 143
    first, second, third = map(json.loads, process.read(1).splitlines())
    assert second == {
        "path": "b.png",
        "error": {"code": "decoder_crash", "message": "b.png: its decoder crashed; save it again"},
    }
    assert first["caption"]
    assert third["caption"]


def test_isolation_changes_no_record(model: str, tmp_path: Path) -> None:
    Path("cut.png").write_bytes(Path("a.png").read_bytes()[:2000])
    common = ("caption", ".", "--model", model, "--device", "cpu", "--greedy", "--max-length", "5", "--format", "jsonl")
    assert main([*common, "-o", "threads", "--allow-truncated"]) == 0
    assert main([*common, "-o", "processes", "--allow-truncated", "--isolate"]) == 0
    assert Path("threads").read_text() == Path("processes").read_text()
    assert Path("threads").read_text().count("truncated") == 1


def test_a_signal_ends_a_run_while_a_file_hangs(model: str, launch: Launch) -> None:
    words = ("--isolate", "--workers", 1, "--greedy", "--max-length", 5, "-o", "out", "-")
    process = launch("caption", "--model", model, "--device", "cpu", *words)
    process.write("a.png\n")
    process.wait_until(lambda: Path("out").exists() and Path("out").read_text().count("\n") == 1)
    [decoder] = decoders(process)
    os.kill(decoder, signal.SIGSTOP)
    process.write("b.png\n")
    time.sleep(0.5)
    started = time.monotonic()
    os.kill(process.pid, signal.SIGINT)
    assert process.wait() == 130
    assert time.monotonic() - started < 10
    assert process.read(2).splitlines() == [
        "captioner: SIGINT: finishing this batch; send it again to stop at once",
        "captioner: stopped: 1 captioned, 0 failed; continue with --resume",
        "captioner: error: interrupted",
    ]
    assert not Path(f"/proc/{decoder}").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_is_noted_and_the_second_stops(
    number: signal.Signals, code: int, capfd: pytest.CaptureFixture[str]
) -> None:
    interruption = Interruption()
    before = signal.getsignal(number)
    with interruption.handled():
        interruption.check()
        os.kill(os.getpid(), number)
        assert interruption.requested()
        with pytest.raises(Interrupted) as raised:
            interruption.check()
        assert raised.value.exit_code == code
        second = signal.getsignal(number)
        assert second == (signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    assert signal.getsignal(number) == before


def test_a_line_tells_rate_and_time_left(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: clock[0])
    tally = Tally()
    progress = Progress(tally, results_shown=False, total=None)
    progress._total = 100
    tally.count("skipped")
    for seconds in (10, 29, 30, 40, 61):
        clock[0] = seconds
        tally.count("captioned")
        progress.advance()
    progress.close()
    assert capsys.readouterr().err == (
        "captioner: 3 captioned, 0 failed, 1 skipped; 0.1 images/s, about 16:00 left\n"
        "captioner: 5 captioned, 0 failed, 1 skipped; 0.082 images/s, about 19:06 left\n"
    )


def test_a_terminal_has_a_bar_that_knows_the_total(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (25, 100))
    with open(theirs, "w") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        assert main(["caption", ".", "--model", model, "--device", "cpu", "--greedy", "-o", "out"]) == 0
        monkeypatch.undo()
        shown = ""
        while not shown.endswith("0 failed\r\n"):
            shown += os.read(ours, 4096).decode()
    os.close(ours)
    assert re.search(r"3/3 \[.*images/s\]", shown)
    assert "\x1b[3" not in shown  # no colors, so NO_COLOR changes nothing


def test_quiet_and_verbose(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    common = ("caption", "a.png", "missing.png", "--model", model, "--device", "cpu", "--greedy")
    assert main([*common, "-q"]) == 1
    assert re.fullmatch(r"captioner: missing\.png: cannot be read .*\n", capsys.readouterr().err)
    assert main([*common, "-v"]) == 1
    shown = capsys.readouterr().err.splitlines()
    assert shown[0] == f"captioner: model {model} on cpu"
    assert shown[1] == "captioner: a.png: 60 x 40"
    assert main([*common, "-q", "-v"]) == 2


def test_libraries_print_nothing_about_damaged_files(model: str, launch: Launch) -> None:
    stream = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(pixels).save(stream, "TIFF", compression="tiff_adobe_deflate")
    data = bytearray(stream.getvalue())
    data[2000:2100] = bytes(100)
    Path("bad.tif").write_bytes(data)
    process = launch("caption", "bad.tif", "--model", model, "--device", "cpu")
    assert process.wait() == 1
    lines = process.read(2).splitlines()
    assert [line.partition(":")[0] for line in lines] == ["captioner"] * 2
    assert "bad.tif: corrupt" in lines[0]


@pytest.mark.parametrize("words", [("--format", "jsonl", "-o", "out"), ("--format", "sidecar", "--existing", "skip")])
def test_a_watched_folder_is_captioned_as_photos_arrive(model: str, launch: Launch, words: tuple[str, ...]) -> None:
    Path("watched").mkdir()
    Path("b.png").rename("watched/b.png")
    common = ("caption", "watched", "--watch", "--model", model, "--device", "cpu", "--greedy", *words)

    def done() -> set[str]:
        lines = Path("out").read_text().splitlines() if Path("out").exists() else []
        return {Path(json.loads(line)["path"]).stem for line in lines} or {each.stem for each in Path().rglob("*.txt")}

    process = launch(*common)
    process.wait_until(lambda: done() == {"b"})
    Path("a.png").rename("watched/a.png")
    process.wait_until(lambda: done() == {"a", "b"})
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait() == 143
    assert "captioner: stopped: 2 captioned, 0 failed" in process.read(2)
    Path("c.png").rename("watched/c.png")
    again = launch(*common, *(["--resume"] if "out" in words else []))
    again.wait_until(lambda: done() == {"a", "b", "c"})
    os.kill(again.pid, signal.SIGINT)
    assert again.wait() == 130
    assert "captioner: stopped: 1 captioned, 0 failed, 2 skipped" in again.read(2)


def test_a_watch_writes_no_document(model: str) -> None:
    assert main(["caption", ".", "--watch", "--format", "coco", "--model", model]) == 2
    assert main(["caption", "a.png", "--watch", "--model", model]) == 2
