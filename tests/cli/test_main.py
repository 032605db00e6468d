"""The frame around the verbs: help without torch, did-you-mean, exit codes, one line an error."""

import errno
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

import captioner
from captioner import cli
from captioner.cli import VERBS, main
from captioner.errors import CheckpointError

ROOT = Path(__file__).resolve().parent.parent.parent


def start(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, encoding="utf-8", cwd=ROOT, check=False
    )


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], int]], None]:
    """Add a verb `act` that does what it is given."""

    def add(action: Callable[[], int]) -> None:
        module = ModuleType("captioner.cli.act")
        module.add_arguments = lambda parser: parser.add_argument("words", nargs="*")  # type: ignore[attr-defined]
        module.run = lambda arguments: action()  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setitem(cli.VERBS, "act", (module.__name__, "do something"))

    return add


def failing(error: BaseException) -> Callable[[], int]:
    def action() -> int:
        raise error

    return action


@pytest.mark.parametrize("arguments", [["--help"], *([verb, "--help"] for verb in VERBS)], ids=" ".join)
def test_help_loads_no_torch(arguments: list[str]) -> None:
    code = (
        "import sys; from captioner.cli import main; code = main(sys.argv[1:]);"
        "print(code, sorted({'torch', 'timm', 'pytorch_lightning', 'torchvision'} & set(sys.modules)))"
    )
    done = start("-c", code, *arguments)
    assert done.stderr == ""
    assert done.stdout.startswith("usage: captioner")
    assert done.stdout.splitlines()[-1] == "0 []"


def test_help_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"{verb} " in out and line in out for verb, (_, line) in VERBS.items())


def test_no_verb_is_a_usage_error_that_shows_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("usage: captioner")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"captioner {captioner.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["captoin"], "unknown verb captoin; did you mean caption?; see captioner --help"),
        (["zzz"], "unknown verb zzz; see captioner --help"),
        (["--vresion"], "unknown flag --vresion; did you mean --version?; see captioner --help"),
        (["--dbug", "config", "schema"], "unknown flag --dbug; did you mean --debug?; see captioner --help"),
        (["config", "schema", "-x"], "unrecognized arguments: -x; see captioner --help"),
    ],
)
def test_usage_errors(arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert capsys.readouterr() == ("", f"captioner: error: {expected}\n")


def test_what_follows_two_dashes_is_no_flag(
    verb: Callable[[Callable[[], int]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    verb(lambda: 0)
    assert main(["act", "--", "--debug", "--unknown"]) == 0
    assert main(["act", "--unknown"]) == 2


@pytest.mark.parametrize(
    ("error", "code", "expected"),
    [
        (CheckpointError("m: no such model"), 4, "captioner: error: m: no such model\n"),
        (KeyboardInterrupt(), 130, "captioner: error: interrupted\n"),
        (BrokenPipeError(), 141, ""),
        (
            OSError(errno.ENOSPC, "No space left on device", "out.jsonl"),
            5,
            "captioner: error: out.jsonl: the disk is full: free some space and run again\n",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "out"), 5, "captioner: error: out: Permission denied\n"),
        (OSError("no\nnetwork"), 5, "captioner: error: no network\n"),
        (
            ValueError("a\nb"),
            1,
            "captioner: error: ValueError: a b; this is a bug; run with --debug for a traceback\n",
        ),
        (
            ValueError("\x1b[31m"),
            1,
            "captioner: error: ValueError: \\x1b[31m; this is a bug; run with --debug for a traceback\n",
        ),
        (SystemExit("text"), 2, ""),
        (SystemExit(), 0, ""),
        (SystemExit(7), 7, ""),
    ],
)
def test_an_error_becomes_a_line_and_an_exit_code(
    error: BaseException,
    code: int,
    expected: str,
    verb: Callable[[Callable[[], int]], None],
    capfd: pytest.CaptureFixture[str],
) -> None:
    verb(failing(error))
    assert main(["act"]) == code
    assert capfd.readouterr() == ("", expected)


@pytest.mark.parametrize("arguments", [["--debug", "act"], ["act", "--debug"]])
def test_debug_shows_the_traceback(
    arguments: list[str], verb: Callable[[Callable[[], int]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    verb(failing(CheckpointError("m: no such model")))
    assert main(arguments) == 4
    err = capsys.readouterr().err
    assert err.startswith("Traceback (most recent call last):")
    assert err.endswith("captioner: error: m: no such model\n")


def test_warnings_of_libraries_are_shown_to_debuggers_only(verb: Callable[[Callable[[], int]], None]) -> None:
    def warn() -> int:
        warnings.warn("corrupt metadata", UserWarning, stacklevel=1)
        return 0

    verb(warn)
    assert main(["act"]) == 0
    assert main(["act", "--debug"]) == 1  # the tests turn a warning into an error


def test_python_m_captioner_is_the_same_program() -> None:
    done = start("-m", "captioner", "captoin")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "captioner: error: unknown verb captoin; did you mean caption?; see captioner --help\n"


def test_output_is_utf_8_whatever_the_console_says(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("data: {root: café ☕}\n", encoding="utf-8")
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "captioner", "config", "show", str(file)]
    done = subprocess.run(command, capture_output=True, cwd=ROOT, env=environment, check=True)
    assert "root: café ☕" in done.stdout.decode("utf-8")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_one_line() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "captioner", "config", "schema"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            check=False,
        )
    assert done.returncode == 5
    assert done.stderr == "captioner: error: the disk is full: free some space and run again\n"


@pytest.mark.skipif(os.name == "nt", reason="a closed pipe is another error there")
def test_a_closed_pipe_is_quiet() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "captioner", "config", "schema"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, cwd=ROOT, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.skipif(os.name == "nt", reason="a shell of Unix closes the output")
def test_a_closed_output_is_no_error() -> None:
    command = ["sh", "-c", '"$0" -m captioner config schema >&-', sys.executable]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stderr) == (0, "")
