"""The rules of serving: hosts, tokens, sizes, numbers, deadlines, and clients that leave."""

import os
import signal
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import pytest

from captioner.serving.guard import CLIENT_DISCONNECTED
from tests.serving.conftest import SLOW, Running, photo, wait_until
from tests.serving.test_app import assert_problem

TOKEN = "a-token-of-many-letters"


@pytest.fixture(scope="module")
def strict(start: Callable[..., Running]) -> Running:
    """A server with a token and tight limits."""
    return start(token=TOKEN, queue=3, max_bytes=20_000, max_pixels=10_000, hosts=("photos.example",))


@pytest.fixture(scope="module")
def impatient(start: Callable[..., Running]) -> Running:
    """A server with little time for a request."""
    return start(timeout=1.0)


@contextmanager
def stopped(running: Running) -> Iterator[None]:
    """Decoders that do nothing meanwhile."""
    for pid in running.decoders:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in running.decoders:
            os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:80", "[::1]:8000", "localhost:1", "LOCALHOST", "10.1.2.3"])
def test_addresses_and_localhost_may_name_the_server(running: Running, host: str) -> None:
    assert running.client.get("/v1/model", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "", "[", "a@b"])
def test_other_names_are_refused(running: Running, host: str) -> None:
    for path in ("/v1/model", "/metrics", "/openapi.json", "/nowhere"):
        assert_problem(running.client.get(path, headers={"Host": host}), 400, "host")
    assert running.client.get("/healthz", headers={"Host": host}).status_code == 200


def test_a_name_may_be_allowed(strict: Running, start: Callable[..., Running]) -> None:
    assert strict.client.get("/v1/model", headers={"Host": "Photos.example:443"}).status_code == 200
    assert_problem(strict.client.get("/v1/model", headers={"Host": "evil.example"}), 400, "host")
    assert start(hosts=("*",)).client.get("/v1/model", headers={"Host": "any.example"}).status_code == 200


def test_pages_of_other_sites_are_refused(running: Running) -> None:
    for origin in ("https://evil.example", "null", "http://[", running.url + "0"):
        assert_problem(running.client.get("/v1/model", headers={"Origin": origin}), 403, "origin")
    assert running.client.get("/v1/model", headers={"Origin": running.url}).status_code == 200


@pytest.mark.parametrize("authorization", ["", "Bearer", f"Bearer {TOKEN[:-1]}", f"Basic {TOKEN}", TOKEN, "Bearer ü"])
def test_a_token_is_required(strict: Running, authorization: str) -> None:
    headers = {"Authorization": authorization.encode("latin-1")}
    for path in ("/v1/model", "/metrics", "/openapi.json", "/nowhere"):
        response = httpx.get(strict.url + path, headers=headers, trust_env=False)
        assert TOKEN not in assert_problem(response, 401, "unauthorized")
        assert response.headers["www-authenticate"] == "Bearer"
    assert httpx.get(f"{strict.url}/readyz", trust_env=False).status_code == 200
    assert strict.client.get("/metrics").status_code == 200


def test_every_response_forbids_what_browsers_could_do_with_it(running: Running) -> None:
    for path in ("/healthz", "/v1/model", "/nowhere"):
        headers = running.client.get(path).headers
        assert headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        assert "server" not in headers
        assert "access-control-allow-origin" not in headers


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_too_large_is_refused(strict: Running, chunked: bool) -> None:
    body = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n' + b"x" * 30_000
    content = iter([body[:10_000], body[10_000:]]) if chunked else body
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    response = strict.client.post("/v1/caption", content=content, headers=headers)
    assert "20,000" in assert_problem(response, 413, "too_large")


def test_a_photo_of_too_many_pixels_is_refused(strict: Running) -> None:
    assert strict.caption(("a.jpg", photo(1, 100, 100, "JPEG"))).status_code == 200
    assert_problem(strict.caption(("a.jpg", photo(1, 100, 101, "JPEG"))), 413, "too_many_pixels")


def test_a_full_queue_refuses_and_recovers(strict: Running) -> None:
    with ThreadPoolExecutor(3) as clients:
        with stopped(strict):
            waiting = [clients.submit(strict.caption, (f"{each}.png", photo(each))) for each in range(3)]
            wait_until(lambda: strict.metric("photos_in_progress") == 3)
            response = strict.caption(("more.png", photo(4)))
            assert_problem(response, 429, "busy")
            assert response.headers["retry-after"] == "1"
            assert strict.client.get("/healthz").status_code == 200
        assert [each.result().status_code for each in waiting] == [200] * 3
    small = ("a.jpg", photo(1, 20, 20, "JPEG"))
    assert_problem(strict.caption(*[small] * 4), 429, "busy")
    assert strict.caption(*[small] * 3).status_code == 200


def test_a_request_is_answered_by_its_deadline(impatient: Running) -> None:
    with stopped(impatient):
        response = impatient.caption(("a.png", photo(1)))
        assert_problem(response, 503, "timeout")
        assert response.headers["retry-after"] == "1"
    assert impatient.metric("photos_in_progress") == 0
    wait_until(lambda: impatient.caption(("a.png", photo(1))).status_code == 200)


def connect(running: Running, head: str) -> socket.socket:
    """A connection over which a request has begun."""
    connection = socket.create_connection(("127.0.0.1", int(running.url.rpartition(":")[2])), timeout=30)
    connection.sendall(f"{head}\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n".encode())
    return connection


def test_a_body_that_does_not_arrive_ends_with_408(impatient: Running) -> None:
    with connect(impatient, "POST /v1/caption HTTP/1.1") as connection:
        connection.sendall(b"Content-Length: 1000\r\nContent-Type: multipart/form-data; boundary=b\r\n\r\n--b")
        assert connection.recv(1000).startswith(b"HTTP/1.1 408 ")
    assert impatient.metric("photos_in_progress") == 0


def test_a_client_that_leaves_stops_its_search(running: Running) -> None:
    def left() -> float:
        return running.metric("request_seconds_count", path="/v1/caption", status=str(CLIENT_DISCONNECTED))

    before = left()
    files = [("files", ("a.png", photo(number))) for number in range(8)]
    body = httpx.Request("POST", running.url, files=files)
    body.read()
    query = "&".join(f"{name}={value}" for name, value in SLOW.items())
    batches = running.metric("batch_photos_count")
    with connect(running, f"POST /v1/caption?{query} HTTP/1.1") as connection:
        lines = [f"{name}: {body.headers[name]}\r\n" for name in ("Content-Length", "Content-Type")]
        connection.sendall("".join(lines).encode() + b"\r\n" + body.content)
        wait_until(lambda: running.metric("batch_photos_count") == batches + 1)
    wait_until(lambda: left() == before + 1)
    assert running.metric("photos_in_progress") == 0
    response = running.caption(("a.png", photo(1)), search="greedy")  # on the same thread, so the search is over
    assert response.status_code == 200
    slow = running.client.post("/v1/caption", params=SLOW, files=files)
    assert response.elapsed < slow.elapsed / 2


def test_a_client_that_leaves_before_its_body_is_complete_frees_its_place(running: Running) -> None:
    with connect(running, "POST /v1/caption HTTP/1.1") as connection:
        connection.sendall(b"Content-Length: 1000\r\nContent-Type: multipart/form-data; boundary=b\r\n\r\n--b")
        wait_until(lambda: running.metric("photos_in_progress") == 1)
    wait_until(lambda: running.metric("photos_in_progress") == 0)


MALFORMED = [
    b"nonsense\r\n\r\n",
    b"GET / HTTP/1.1\r\n\r\n",
    b"GET /healthz HTTP/1.0\r\n\r\n",
    b"POST /v1/caption HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
    b"POST /v1/caption HTTP/1.1\r\nHost: localhost\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
]


@pytest.mark.parametrize("request_", MALFORMED)
def test_malformed_requests_do_not_disturb_the_server(running: Running, request_: bytes) -> None:
    address = ("127.0.0.1", int(running.url.rpartition(":")[2]))
    with socket.create_connection(address, timeout=30) as connection:
        connection.sendall(request_)
        assert connection.recv(1000).startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 200 "))
    assert running.client.get("/healthz").status_code == 200
