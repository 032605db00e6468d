"""The command line: one module for each verb, imported when the verb is called."""

import argparse
import errno
import importlib
import io
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from itertools import takewhile
from typing import Any, NoReturn

import captioner
from captioner.errors import CaptionerError, Interrupted, ResourceError
from captioner.text import did_you_mean, printable_lines

VERBS = {
    "caption": ("captioner.cli.caption", "describe images"),
    "inspect": ("captioner.cli.inspect", "show where each word of a caption looked"),
    "train": ("captioner.cli.train", "train a model from a configuration"),
    "evaluate": ("captioner.cli.evaluate", "caption a split and score the captions"),
    "score": ("captioner.cli.score", "score captions with the field's metrics"),
    "data": ("captioner.cli.data", "check, describe and prepare data sets"),
    "convert": ("captioner.cli.convert", "convert a captioner of transformers to a model folder"),
    "serve": ("captioner.cli.serve", "answer requests over HTTP"),
    "export": ("captioner.cli.export", "write a model for use without PyTorch"),
    "config": ("captioner.cli.config", "show and check configurations"),
    "doctor": ("captioner.cli.doctor", "check the installation"),
}
"""Verb -> a module with `add_arguments(parser)` and `run(arguments) -> exit code`, and a line of help."""

IMAGE_VERBS = ("caption", "inspect", "evaluate", "data")
"""Verbs that decode images."""

EXIT_USAGE = 2
EXIT_BROKEN_PIPE = 141


class Parser(argparse.ArgumentParser):
    """argparse with one-line errors, no abbreviated flags, and did-you-mean."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self.allow_abbrev = False
        if self._subparsers is None:  # else the flags may belong to a verb
            self.refuse_unknown_flags(args)
        return super().parse_known_args(args, namespace)

    def refuse_unknown_flags(self, arguments: Sequence[str]) -> None:
        """End with a usage error at the first long flag that this parser lacks."""
        for argument in arguments:
            if argument == "--":
                return
            flag = argument.partition("=")[0]
            if flag.startswith("--") and " " not in flag and flag not in self._option_string_actions:
                hint = did_you_mean(flag, self._option_string_actions)
                if not hint and "--set" in self._option_string_actions:
                    hint = "; settings are given as --set KEY=VALUE, such as --set training.epochs=1"
                self.error(f"unknown flag {flag}{hint}")

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USAGE, f"captioner: error: {message}; see {self.prog} --help\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code; errors become one line on standard error."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # captions are Unicode, whatever the console's encoding
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    end = arguments.index("--") if "--" in arguments else len(arguments)
    debug = "--debug" in arguments[:end]  # accepted anywhere, so no verb defines it
    arguments = [each for each in arguments[:end] if each != "--debug"] + arguments[end:]
    try:
        with warnings.catch_warnings():
            if not debug and not sys.warnoptions:
                warnings.simplefilter("ignore")  # libraries' advice to programmers
            code = _run(arguments, debug)
            if sys.stdout is not None:  # as it is after `>&-`
                sys.stdout.flush()  # here, where a full disk or a closed pipe can still be reported
            return code
    except SystemExit as stop:  # argparse ends so after help, a version or a usage error
        return stop.code if isinstance(stop.code, int) else EXIT_USAGE if stop.code else 0
    except KeyboardInterrupt:
        _report("interrupted", debug)
        return Interrupted.exit_code
    except BrokenPipeError:
        _drop_output()
        return EXIT_BROKEN_PIPE
    except CaptionerError as error:
        _report(str(error), debug)
        return error.exit_code
    except OSError as error:
        _drop_output()
        what = "the disk is full: free some space and run again" if error.errno == errno.ENOSPC else error.strerror
        _report(f"{error.filename}: {what}" if error.filename else what or _one_line(error), debug)
        return ResourceError.exit_code
    except Exception as error:
        _report(f"{type(error).__name__}: {_one_line(error)}; this is a bug; run with --debug for a traceback", debug)
        return 1


def _run(arguments: list[str], debug: bool) -> int:
    parser = Parser(prog="captioner", description="Image captioning that shows where each word looked.")
    parser.add_argument("--version", action="version", version=f"captioner {captioner.__version__}")
    parser.add_argument("--debug", action="store_true", help="show tracebacks and warnings (also after the verb)")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", dest="verb")
    parsers = {verb: verbs.add_parser(verb, help=line, description=line) for verb, (_, line) in VERBS.items()}
    flags = list(takewhile(lambda each: each.startswith("-"), arguments))
    parser.refuse_unknown_flags(flags)
    if flags == arguments:
        parser.parse_args(arguments)
        parser.print_help(sys.stderr)
        return EXIT_USAGE
    verb = arguments[len(flags)]
    if verb not in VERBS:
        parser.error(f"unknown verb {verb}{did_you_mean(verb, VERBS)}")
    module = importlib.import_module(VERBS[verb][0])
    module.add_arguments(parsers[verb])
    parsed = parser.parse_args(arguments)
    with nullcontext() if debug or verb not in IMAGE_VERBS else native_messages_dropped():
        code: int = module.run(parsed)
    return code


def _report(message: str, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    with suppress(OSError):  # a configuration's error has several lines
        print(f"captioner: error: {printable_lines(message)}", file=sys.stderr)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _drop_output() -> None:
    """Discard what is left to write, so that Python does not fail again when it flushes at exit."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def native_messages_dropped() -> Iterator[None]:
    """Drop what C libraries print on standard error, such as libtiff's hundreds of lines about a damaged file."""
    stream, kept = sys.stderr, None
    with suppress(AttributeError, OSError, ValueError):
        if stream.fileno() == 2:
            stream.flush()
            kept = os.dup(2)
    if kept is None:  # nothing to share with C
        yield
        return
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    os.close(null)
    with open(kept, "w", buffering=1, encoding=stream.encoding, errors=stream.errors) as sys.stderr:
        try:
            yield
        finally:
            os.dup2(kept, 2)
            sys.stderr = stream
