"""Checks and limits that apply to every request."""

import asyncio
import hmac
import ipaddress
import time
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from captioner.serving.problems import Problem
from captioner.serving.service import Service

PROBES = ("/healthz", "/readyz")
"""Paths that need neither a token nor a known host."""
PAGE = "/"
"""The path of the page, which needs no token: it asks for the token and sends it with its requests."""
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}
"""Headers of responses that do not set their own."""
CLIENT_DISCONNECTED = 499
"""Status in the metrics of a request whose client disconnected before the response."""


class Guard:
    """ASGI middleware that checks hosts, tokens and sizes, enforces deadlines, and notices clients that disconnect."""

    def __init__(self, app: ASGIApp, service: Service, paths: frozenset[str]) -> None:
        self._app, self._service, self._paths = app, service, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()
        exchange = _Exchange(receive, send, self._service.options.max_bytes)
        try:
            self._check(scope["path"], Headers(scope=scope))
            if scope["method"] == "POST":
                with self._service.accept(1):
                    await self._run(scope, exchange)
            else:
                await self._app(scope, receive, exchange.send)
        except Problem as problem:
            await problem.response()(scope, receive, exchange.send)
        finally:
            path = scope["path"] if scope["path"] in self._paths else "other"
            seconds = time.perf_counter() - start
            self._service.metrics.requests.labels(path, exchange.status).observe(seconds)

    def _check(self, path: str, headers: Headers) -> None:
        options = self._service.options
        if path not in PROBES:
            host, origin = headers.get("host", ""), headers.get("origin")
            if not _is_allowed(host, options.hosts):
                raise Problem(400, "host", "the Host header names another server; see --allow-host")
            if origin is not None and origin.partition("://")[2] != host:
                raise Problem(403, "origin", "pages of other sites may not use this server")
            authorization = headers.get("authorization", "").encode("latin-1")
            needs_token = options.token is not None and path != PAGE
            if needs_token and not hmac.compare_digest(authorization, f"Bearer {options.token}".encode()):
                challenge = {"WWW-Authenticate": "Bearer"}
                raise Problem(401, "unauthorized", "send the token: Authorization: Bearer TOKEN", challenge)
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > options.max_bytes:
            raise _too_large(options.max_bytes)

    async def _run(self, scope: Scope, exchange: "_Exchange") -> None:
        """Run the application until it has responded, the deadline passes, or the client disconnects."""
        work = asyncio.ensure_future(self._app(scope, exchange.receive, exchange.send))
        disconnected = asyncio.ensure_future(exchange.wait_for_disconnect())
        timeout = self._service.options.timeout
        try:
            await asyncio.wait((work, disconnected), timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if work.done() or (disconnected.done() and exchange.started):
                await work
            elif disconnected.done():
                exchange.status = CLIENT_DISCONNECTED
            elif not exchange.started:
                status, what = (503, "no result") if exchange.uploaded.is_set() else (408, "no complete body")
                raise Problem(status, "timeout", f"{what} within {timeout:g} s; try again later")
        finally:
            disconnected.cancel()
            if work.cancel():
                await asyncio.wait([work])


class _Exchange:
    """A request and its response."""

    def __init__(self, receive: Receive, send: Send, max_bytes: int) -> None:
        self._receive, self._send, self._max_bytes = receive, send, max_bytes
        self._bytes = 0
        self.uploaded = asyncio.Event()
        self.started = False
        self.status = 500

    async def receive(self) -> Message:
        message = await self._receive()
        self._bytes += len(message.get("body", b""))
        if self._bytes > self._max_bytes:
            raise _too_large(self._max_bytes)
        if not message.get("more_body", False):
            self.uploaded.set()
        return message

    async def wait_for_disconnect(self) -> None:
        await self.uploaded.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started, self.status = True, message["status"]
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
        await self._send(message)


def _too_large(max_bytes: int) -> Problem:
    return Problem(413, "too_large", f"a request may have {max_bytes:,} bytes; send smaller or fewer photos")


def _is_allowed(host: str, names: tuple[str, ...]) -> bool:
    """Whether a Host header is an IP address, localhost or one of `names`: DNS rebinding needs another name."""
    try:
        ipaddress.ip_address(urlsplit(f"//{host}").hostname or "")
    except ValueError:
        return "*" in names or host.partition(":")[0].lower() in ("localhost", *names)
    return True
