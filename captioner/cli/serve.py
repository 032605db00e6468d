"""captioner serve: an HTTP service."""

import argparse
import ipaddress
import logging
import socket
import sys
from pathlib import Path

from captioner.cli.flags import add_model_flags, number
from captioner.errors import ConfigError, ResourceError

MIN_TOKEN = 16
"""Shortest token, in characters."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Serve captions over HTTP, and a page for browsers at /. Programs POST photos to /v1/caption or /v1/inspect; "
        "/openapi.json describes everything. SIGTERM finishes accepted requests, then exits with 0."
    )
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address; one that others can reach needs --token-file; default: 127.0.0.1")
    add("--port", type=number(int, 0, 65535), default=8000, help="0 takes a free one; default: 8000")
    add("--token-file", type=Path, metavar="FILE", help="holds the token that requests must send as a bearer token")
    add("--root", type=Path, metavar="DIR", help="list the photos of DIR on the page, and save captions beside them")
    add("--allow-host", action="append", default=[], metavar="NAME", help="a name the server is called by; * for any")
    add_model_flags(add)
    add("--int8", action="store_true", help="8-bit weights, on x86 processors: faster, but a few captions change")
    add("--batch-size", type=number(int, 1), metavar="N", help="photos captioned together; default: by device")
    add("--workers", type=number(int, 1), default=2, metavar="N", help="processes that decode photos; default: 2")
    add("--queue", type=number(int, 1), default=64, metavar="N", help="photos accepted at a time; default: 64")
    add("--timeout", type=number(float, 0.1), default=60.0, metavar="S", help="seconds for a request; default: 60")
    add("--max-bytes", type=number(int, 1), default=2**25, metavar="N", help="bytes of a request; default: 32 MiB")
    pixels = "pixels of a photo; default: 50 million, for JPEG 89, for WebP 25"
    add("--max-pixels", type=number(int, 1), default=89_000_000, metavar="N", help=pixels)


def run(arguments: argparse.Namespace) -> int:
    host = arguments.host
    if arguments.token_file is None and not _is_loopback(host):
        remedy = "add --token-file FILE, or keep --host 127.0.0.1"
        raise ConfigError(f"--host {host}: without a token, only this machine may use the service; {remedy}")
    if arguments.root is not None:
        _check_root(arguments)
    try:
        from captioner.serving.options import ServingOptions
        from captioner.serving.server import serve
    except ImportError as error:
        raise ResourceError(f'{error.name} is not installed; pip install "captioner[serve]"') from error

    options = ServingOptions(
        model=arguments.model,
        device=arguments.device,
        int8=arguments.int8,
        batch_size=arguments.batch_size,
        workers=arguments.workers,
        queue=arguments.queue,
        max_bytes=arguments.max_bytes,
        max_pixels=arguments.max_pixels,
        timeout=arguments.timeout,
        token=None if arguments.token_file is None else _read_token(arguments.token_file),
        root=arguments.root,
        hosts=tuple(name.lower() for name in (host, *arguments.allow_host)),
    )
    logging.basicConfig(level=logging.WARNING, format="captioner: %(message)s", stream=sys.stderr)
    try:
        listening = socket.create_server(
            (host, arguments.port), family=socket.AF_INET6 if ":" in host else socket.AF_INET
        )
    except OSError as error:
        raise ConfigError(f"--host {host} --port {arguments.port}: {error.strerror}; choose another address") from error
    with listening:
        users = (
            "for this machine only: others need --host and --token-file" if options.token is None else "with a token"
        )
        address = f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"
        print(f"captioner: serving at {address}, {users}", file=sys.stderr, flush=True)
        serve(options, listening)
    return 0


def _check_root(arguments: argparse.Namespace) -> None:
    if not arguments.root.is_dir():
        raise ConfigError(f"--root {arguments.root}: no such folder; name one that holds photos")
    if arguments.token_file is None and "*" in arguments.allow_host:
        raise ConfigError("--root with --allow-host *: pages of other sites could write; add --token-file FILE")


def _read_token(path: Path) -> str:
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        raise ConfigError(f"--token-file {path}: cannot be read ({error}); give a text file with a token") from error
    if len(token) < MIN_TOKEN or len(token.split()) > 1:
        raise ConfigError(f"--token-file {path}: no token; write one of {MIN_TOKEN} characters or more, without spaces")
    return token


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
