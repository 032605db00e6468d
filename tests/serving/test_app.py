"""The HTTP interface: it answers as the library does, and refuses what cannot be used."""

import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import positive_data_acceptance

from captioner.errors import ImageError
from captioner.generation import BeamSearch, Greedy, Sampling
from captioner.images import open_image
from captioner.inspection.report import render_report
from captioner.pipeline import Captioner
from captioner.records import caption_record, trace_record
from captioner.serving.app import MAX_NAME
from captioner.serving.options import MAX_FILES
from tests.serving.conftest import SECONDS, Running, photo, wait_until
from tests.test_decoding import wait_until_busy

TOLERANCE = 1e-3
"""Of log-probabilities, in nats."""


def expected(captioner: Captioner, data: bytes, name: str, **options: Any) -> dict[str, Any]:
    [outcome] = captioner.stream([data], **options)
    return caption_record(name, outcome, model="tiny")


def assert_equal(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Equal records; numbers may differ as far as rounding allows."""
    numbers = ("log_prob", "confidence", "captions")
    assert {key: found[key] for key in found if key not in numbers} == {
        key: wanted[key] for key in wanted if key not in numbers
    }
    assert [each["text"] for each in found["captions"]] == [each["text"] for each in wanted["captions"]]
    assert found["log_prob"] == pytest.approx(wanted["log_prob"], abs=TOLERANCE)


def assert_problem(response: httpx.Response, status: int, code: str) -> str:
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert (response.status_code, body["status"], body["code"]) == (status, status, code), body
    assert set(body) == {"type", "title", "status", "detail", "code"}
    detail: str = body["detail"]
    return detail


@pytest.mark.parametrize(
    ("query", "options"),
    [
        ({}, {}),
        (
            {"beam": 3, "num_captions": 2, "length_penalty": 0},
            {"search": BeamSearch(width=3, captions=2, length_penalty=0)},
        ),
        (
            {"consensus": "false"},
            {"search": BeamSearch(consensus=False)},
        ),
        ({"search": "greedy", "max_length": 6}, {"search": Greedy(max_length=6)}),
        ({"search": "sample", "seed": 3, "top_p": 1}, {"search": Sampling(seed=3, top_p=1)}),
        ({"no_repeat_ngram": 1}, {"search": BeamSearch(no_repeat_ngram=1)}),
        ({"prefix": "red dot"}, {"prefix": "red dot"}),
        ({"region": "0,0,0.5,1"}, {"region": (0, 0, 0.5, 1)}),
        ({"hide": "0,0,0.5,1"}, {"hide": (0, 0, 0.5, 1)}),
    ],
)
def test_a_caption_equals_the_librarys(
    running: Running, captioner: Captioner, query: dict[str, Any], options: dict[str, Any]
) -> None:
    data = photo(1)
    response = running.caption(("a.png", data), **query)
    assert response.status_code == 200, response.text
    [found] = response.json()["results"]
    assert_equal(found, expected(captioner, data, "a.png", **options))


def test_32_clients_get_the_captions_of_the_library(running: Running, captioner: Captioner) -> None:
    photos = [photo(number) for number in range(32)]
    batches = running.metric("batch_photos_count")
    with ThreadPoolExecutor(32) as clients:
        responses = list(clients.map(lambda data: running.caption(("a.png", data)), photos))
    for response, outcome in zip(responses, captioner.stream(list(photos)), strict=True):
        assert response.status_code == 200, response.text
        assert_equal(response.json()["results"][0], caption_record("a.png", outcome, model="tiny"))
    assert running.metric("batch_photos_count") - batches < 32  # some were captioned together
    assert running.metric("photos_in_progress") == 0


def test_several_files_keep_their_order_and_an_unusable_one_its_error(
    running: Running, captioner: Captioner, odd_files: dict[str, bytes]
) -> None:
    names = ["a.png", "b.png"]
    files = [("a.png", photo(1)), *odd_files.items(), ("b.png", photo(2))]
    results = running.caption(*files).json()["results"]
    assert [result["path"] for result in results] == [name for name, _ in files]
    for result, (name, data) in zip(results, files, strict=True):
        if name in names:
            assert_equal(result, expected(captioner, data, name))
        else:
            with pytest.raises(ImageError) as raised:
                open_image(data)
            message = str(raised.value).replace("<bytes>", name)
            assert result == {"path": name, "error": {"code": raised.value.code, "message": message}}


@pytest.mark.parametrize(
    ("name", "status", "code"),
    [
        ("empty.jpg", 415, "empty"),
        ("cut.jpg", 415, "truncated"),
        ("text.jpg", 415, "not_an_image"),
        ("page.svg", 415, "not_an_image"),
        ("broken.png", 415, "corrupt"),
        ("large.png", 413, "too_many_pixels"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/caption", "/v1/inspect"])
def test_a_request_without_a_usable_file_is_refused_by_its_code(
    running: Running, odd_files: dict[str, bytes], path: str, name: str, status: int, code: str
) -> None:
    field = "files" if path == "/v1/caption" else "file"
    response = running.client.post(path, files={field: (name, odd_files[name])})
    assert name in assert_problem(response, status, code)


@pytest.mark.slow
def test_every_file_of_the_odd_set_is_answered_as_by_the_library(
    running: Running, captioner: Captioner, shared: Path
) -> None:
    folder = shared / "data/odd_images"
    files = sorted(each for each in folder.iterdir() if each.is_file() and each.suffix != ".tsv")
    assert len(files) > 50
    for file in files:
        data = file.read_bytes()
        response = running.caption((file.name, data))
        name = response.json()["results"][0]["path"] if response.status_code == 200 else ""
        [outcome] = captioner.stream([data])
        if isinstance(outcome, ImageError):
            assert_problem(response, 413 if outcome.code == "too_many_pixels" else 415, outcome.code)
        else:
            assert response.status_code == 200, (file.name, response.text)
            assert_equal(response.json()["results"][0], caption_record(name, outcome, model="tiny"))


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "<script>alert(1)</script>", "\u202egpj.exe", "x" * 300, "😀.jpg"]
)
def test_a_name_is_only_repeated(running: Running, name: str) -> None:
    response = running.caption((name, photo(1)))
    assert response.status_code == 200
    assert response.json()["results"][0]["path"] == name[:MAX_NAME]
    assert response.headers["content-type"] == "application/json"


@pytest.mark.parametrize("value", ["http://127.0.0.1:1/photo.jpg", "/etc/passwd", "file:///etc/passwd"])
@pytest.mark.parametrize("field", ["files", "file", "url", "path"])
def test_neither_paths_nor_urls_are_taken(running: Running, field: str, value: str) -> None:
    for path in ("/v1/caption", "/v1/inspect"):
        assert_problem(running.client.post(path, data={field: value}), 422, "invalid")
        assert_problem(running.client.post(path, params={field: value}), 422, "invalid")


BOUNDARY = {"Content-Type": "multipart/form-data; boundary=b"}
PART = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'


@pytest.mark.parametrize(
    ("headers", "body", "status", "code"),
    [
        (BOUNDARY, PART + b"cut", 422, "invalid"),
        (BOUNDARY, b"no parts at all", 400, "bad_request"),
        ({"Content-Type": "multipart/form-data"}, PART + b"x\r\n--b--\r\n", 400, "bad_request"),
        (BOUNDARY, b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--\r\n", 400, "bad_request"),
        (BOUNDARY, b"--b--\r\n", 422, "invalid"),
        ({"Content-Type": "application/json"}, b'{"files": ["a.png"]}', 422, "invalid"),
        ({"Content-Type": "image/png"}, photo(1), 422, "invalid"),
        ({}, b"", 422, "invalid"),
    ],
)
# Starlette leaves the file of a part that is cut off to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_broken_body_is_refused(
    running: Running, headers: dict[str, str], body: bytes, status: int, code: str
) -> None:
    assert_problem(running.client.post("/v1/caption", headers=headers, content=body), status, code)


@pytest.mark.parametrize(
    "query",
    [
        {"beam": "many"},
        {"beam": 0},
        {"beam": 1000},
        {"beam": 3, "num_captions": 4},
        {"num_captions": 17},
        {"max_length": -1},
        {"temperature": "nan", "search": "sample"},
        {"length_penalty": "inf"},
        {"search": "best"},
        {"search": "greedy", "num_captions": 2},
        {"search": "greedy", "beam": 2},
        {"search": "greedy", "length": "short"},
        {"temperature": 2},
        {"region": "0,0,2,2"},
        {"region": "everything"},
        {"prefix": "unheardof"},
        {"prefix": "x" * 301},
        {"beem": 3},
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_refused(running: Running, query: dict[str, Any]) -> None:
    response = running.caption(("a.png", photo(1)), **query)
    code = "config" if query in ({"prefix": "unheardof"}, {"beam": 3, "num_captions": 4}) else "invalid"
    detail = assert_problem(response, 422, code)
    assert any(name in detail for name in query) or "captions" in detail


def test_too_many_files_are_refused(running: Running) -> None:
    file = ("a.png", photo(1))
    assert running.caption(*[file] * MAX_FILES).status_code == 200
    assert "files" in assert_problem(running.caption(*[file] * (MAX_FILES + 1)), 422, "invalid")
    assert_problem(running.caption(*[("a", b"")] * 1001), 400, "bad_request")


@pytest.mark.parametrize("method", ["raw", "relevance", "perturbation"])
def test_a_trace_equals_the_librarys(running: Running, captioner: Captioner, method: Any) -> None:
    data = photo(4)
    response = running.client.post("/v1/inspect", params={"method": method}, files={"file": ("a.png", data)})
    trace = captioner.inspect(data, method=method)
    assert response.json() == json.loads(json.dumps({"path": "a.png", "model": "tiny", **trace_record(trace)}))


def test_a_report_equals_the_librarys(running: Running, captioner: Captioner) -> None:
    data, name = photo(4), "<script>alert(1)</script>.png"
    headers = {"Accept": "text/html"}
    response = running.client.post("/v1/inspect", files={"file": (name, data)}, headers=headers)
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert response.headers["content-security-policy"] == "sandbox allow-scripts; frame-ancestors 'none'"
    assert response.text == render_report(captioner.inspect(data), name=name, model="tiny")
    assert name not in response.text
    assert_problem(running.client.post("/v1/inspect", files={"file": (name, b"")}, headers=headers), 415, "empty")


def test_a_trace_of_another_caption_and_one_head(running: Running, captioner: Captioner) -> None:
    data, query = photo(4), {"caption": "red dot", "layer": 1, "head": 0, "region": "0,0,1,0.5"}
    found = running.client.post("/v1/inspect", params=query, files={"file": ("a.png", data)}).json()
    trace = captioner.inspect(data, caption="red dot", region=(0, 0, 1, 0.5))
    wanted = trace_record(trace, layer=1, head=0)
    assert found == json.loads(json.dumps({"path": "a.png", "model": "tiny", **wanted}))


@pytest.mark.parametrize(
    "query",
    [
        {"layer": 2},
        {"caption": ""},
        {"caption": "dot " * 400},
        {"head": 0, "method": "perturbation"},
        {"caption": "dot", "num_captions": 2},
    ],
)
def test_a_trace_that_cannot_be_is_refused(running: Running, query: dict[str, Any]) -> None:
    response = running.client.post("/v1/inspect", params=query, files={"file": ("a.png", photo(1))})
    assert response.status_code == 422
    assert response.json()["code"] in ("config", "invalid")


def test_the_model_is_described_without_its_folder(running: Running, captioner: Captioner) -> None:
    found = running.client.get("/v1/model")
    assert found.json()["name"] == "tiny"
    assert found.json()["config"]["encoder"]["name"] == "test_vit"
    assert running.service.options.model not in found.text


def test_health_metrics_and_unknown_paths(running: Running) -> None:
    assert running.client.get("/healthz").json() == {"status": "ok"}
    assert_problem(running.client.get("/nowhere"), 404, "not_found")
    assert_problem(running.client.delete("/v1/caption"), 405, "method_not_allowed")
    metrics = running.client.get("/metrics")
    assert metrics.headers["content-type"].startswith("text/plain; version=")
    assert 'captioner_request_seconds_count{path="other",status="404"}' in metrics.text
    assert "/nowhere" not in metrics.text  # or clients could add lines without end


def test_a_model_that_is_loading_is_said_so(model: str) -> None:
    from starlette.testclient import TestClient

    from captioner.serving.app import create_app
    from captioner.serving.options import ServingOptions
    from captioner.serving.service import Service

    client = TestClient(create_app(Service(ServingOptions(model=model))), base_url="http://127.0.0.1")
    assert client.get("/healthz").status_code == 200
    for response in (client.get("/readyz"), client.post("/v1/caption", files={"files": ("a.png", photo(1))})):
        assert response.status_code == 503
        assert response.json()["code"] == "loading"
        assert response.headers["retry-after"] == "1"


def test_the_openapi_document_has_examples(running: Running) -> None:
    document = running.client.get("/openapi.json").json()
    assert set(document["paths"]) == {"/v1/caption", "/v1/inspect", "/v1/model", "/healthz", "/readyz", "/metrics"}
    assert "a dog runs" in json.dumps(document)
    assert "0,0,0.5,1" in json.dumps(document)
    assert running.client.get("/docs").status_code == 404  # it would load scripts from elsewhere


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_requests_made_from_the_openapi_document_are_answered_as_it_says(
    running: Running, mode: GenerationMode
) -> None:
    document = running.client.get("/openapi.json").json()
    schema = schemathesis.openapi.from_dict(document)
    tried = set()
    for result in schema.get_all_operations():
        operation = result.ok()

        @settings(max_examples=10, suppress_health_check=list(HealthCheck), database=None)
        @given(case=operation.as_strategy(generation_mode=mode))
        def answers(case: schemathesis.Case) -> None:
            tried.add(case.path)
            # A well-formed request may hold a file that is no photo, or a prefix of unknown words.
            case.call_and_validate(running.url, excluded_checks=[positive_data_acceptance], timeout=SECONDS)

        with suppress(Unsatisfiable):  # no request to an operation without parameters is wrong
            answers()
    assert {"/v1/caption", "/v1/inspect"} <= tried
    assert running.client.get("/readyz").status_code == 200


def test_a_service_outlives_its_decoders(start) -> None:  # type: ignore[no-untyped-def]
    running: Running = start(workers=1)
    [pid] = running.decoders
    os.kill(pid, signal.SIGSTOP)
    with ThreadPoolExecutor(1) as clients:
        lost = clients.submit(running.caption, ("lost.png", photo(1)))
        wait_until(lambda: running.metric("photos_in_progress") == 1)
        wait_until_busy(running.service._decoders)
        os.kill(pid, signal.SIGKILL)
        assert "lost.png" in assert_problem(lost.result(), 415, "decoder_crash")
    assert running.caption(("a.png", photo(1))).status_code == 200
    assert running.metric("decoders_replaced_total") == 1
