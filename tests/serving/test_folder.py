"""The folder of `--root`: what is listed, what is saved, and what no client can reach."""

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from PIL import Image
from starlette.testclient import TestClient

from captioner.checkpoint import load_model
from captioner.cli import main
from captioner.data.formats import load_captions
from captioner.serving.app import create_app
from captioner.serving.folder import MAX_CAPTION, Edit, Folder
from captioner.serving.options import ServingOptions
from captioner.serving.problems import Problem
from captioner.serving.service import Service
from captioner.serving.thumbnails import THUMBNAIL_SIDE
from tests.serving.conftest import SECONDS, Running, photo
from tests.serving.test_app import assert_problem

JSON = {"Content-Type": "application/json"}
TINY = """
data: {batch_images: 2, captions_per_image: 1}
encoder: {name: test_convnext, image_size: [64, 64]}
decoder: {width: 32, layers: 1, heads: 2, max_length: 24}
tokenizer: {min_count: 1}
training: {epochs: 1, trainer: {enable_progress_bar: false, accelerator: cpu}}
"""


def make_folder(root: Path) -> Path:
    """A folder of photos, one of which has captions."""
    (root / "more").mkdir(parents=True)
    for number, name in enumerate(("a.png", "b.JPG", "more/c.png")):
        (root / name).write_bytes(photo(number))
    (root / "b.txt").write_text("a red dot\na dot\n")
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "root")


@pytest.fixture
def client(root: Path, model: str) -> TestClient:
    """A client of a server with this folder, whose model is never loaded."""
    return TestClient(create_app(Service(ServingOptions(model=model, root=root))), base_url="http://127.0.0.1")


@pytest.fixture(scope="module")
def served(start: Callable[..., Running], tmp_path_factory: pytest.TempPathFactory) -> Running:
    """A server with a folder of its own."""
    root = make_folder(tmp_path_factory.mktemp("served") / "root")
    (root / "a.png").write_bytes(photo(1, 2 * THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    (root / "b.JPG").write_bytes(b"not a photo")
    return start(root=root)


def listed(folder: Folder) -> dict[str, Any]:
    return {each.name: each for each in folder.photos(0, 100).photos}


def save(folder: Folder, name: str, caption: str, replaces: str | None = None) -> Any:
    return folder.save(listed(folder)[name].id, Edit(caption=caption, replaces=replaces))


def test_photos_are_listed_with_their_captions(client: TestClient) -> None:
    found = client.get("/v1/photos").json()
    assert found["total"] == 3
    assert [(each["name"], each["caption"], each["read_only"]) for each in found["photos"]] == [
        ("a.png", None, False),
        ("b.JPG", "a red dot\na dot", False),
        ("more/c.png", None, False),
    ]
    assert client.get("/v1/photos?start=1&count=1").json()["photos"] == found["photos"][1:2]
    assert client.get("/v1/photos?start=9").json() == {"total": 3, "photos": []}


def test_a_new_photo_is_found_with_the_first_page(client: TestClient, root: Path) -> None:
    (root / "aa.png").write_bytes(photo(5))
    assert client.get("/v1/photos?start=1").json()["total"] == 3
    assert client.get("/v1/photos").json()["total"] == 4


def test_a_photo_is_read_by_its_id(client: TestClient, root: Path) -> None:
    id = client.get("/v1/photos").json()["photos"][2]["id"]
    response = client.get(f"/v1/photos/{id}")
    assert response.content == (root / "more/c.png").read_bytes()
    assert response.headers["content-type"] == "application/octet-stream"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["cross-origin-resource-policy"] == "same-origin"


def test_a_thumbnail_is_a_small_jpeg(served: Running) -> None:
    first, second, _ = (each["id"] for each in served.client.get("/v1/photos").json()["photos"])
    response = served.client.get(f"/v1/photos/{first}/thumbnail")
    with Image.open(io.BytesIO(response.content)) as small:
        assert (small.format, small.size) == ("JPEG", (THUMBNAIL_SIDE, THUMBNAIL_SIDE // 2))
    assert_problem(served.client.get(f"/v1/photos/{second}/thumbnail"), 415, "not_an_image")


def test_a_saved_caption_is_a_sidecar_and_training_data(client: TestClient, root: Path) -> None:
    """Look, correct, train."""
    photos = client.get("/v1/photos").json()["photos"]
    for each, caption in zip(photos, ("a dog", "two dogs\n\n  a cat ", "日本の犬"), strict=True):
        edit = {"caption": caption, "replaces": each["caption"]}
        response = client.post(f"/v1/photos/{each['id']}/caption", json=edit)
        assert response.status_code == 200, response.text
    assert response.json() == {**photos[2], "caption": "日本の犬"}
    assert (root / "a.txt").read_bytes() == b"a dog\n"
    assert (root / "b.txt").read_bytes() == b"two dogs\na cat\n"
    assert (root / "more/c.txt").read_text(encoding="utf-8") == "日本の犬\n"
    assert {path.name for path in root.rglob("*")} == {*("a.png", "b.JPG", "c.png", "more"), "a.txt", "b.txt", "c.txt"}
    assert main(["data", "check", str(root)]) == 0
    captions = load_captions(root)
    texts = {image.path.name: image.captions for name in captions.split_names for image in captions.split(name).images}
    assert texts == {"a.png": ("a dog",), "b.JPG": ("two dogs", "a cat"), "c.png": ("日本の犬",)}


@pytest.mark.slow
def test_a_model_is_trained_on_what_was_saved(client: TestClient, root: Path, tmp_path: Path) -> None:
    for each in client.get("/v1/photos").json()["photos"]:
        edit = {"caption": "a striped zebra", "replaces": each["caption"]}
        assert client.post(f"/v1/photos/{each['id']}/caption", json=edit).status_code == 200
    config = tmp_path / "tiny.yaml"
    config.write_text(TINY)
    assert main(["train", "--config", str(config), "--set", f"data.root={root}", "-o", str(tmp_path / "run")]) == 0
    _, tokenizer = load_model(tmp_path / "run" / "model")
    assert tokenizer.decode(tokenizer.encode("a striped zebra")) == "a striped zebra"
    assert tokenizer.unk in tokenizer.encode("dot")  # a word of the caption that was replaced


@pytest.mark.parametrize("text", ["x" * 10_000, "<script>alert(1)</script>", "\u202egpj.exe", "😀", "a\tb\x0bc\u2028d"])
def test_any_text_can_be_saved(root: Path, text: str) -> None:
    folder = Folder(root)
    saved = save(folder, "a.png", text)
    assert (root / "a.txt").read_text(encoding="utf-8").split() == text.split()
    assert listed(folder)["a.png"] == saved
    assert listed(folder)["a.png"].caption.split() == text.split()


@pytest.mark.parametrize(
    "body",
    [
        {"caption": "", "replaces": None},
        {"caption": " \n", "replaces": None},
        {"caption": "x" * (MAX_CAPTION + 1), "replaces": None},
        {"caption": "a dog"},
        {"caption": None, "replaces": None},
        ["a dog"],
    ],
)
def test_what_is_no_caption_is_refused(client: TestClient, root: Path, body: Any) -> None:
    id = client.get("/v1/photos").json()["photos"][0]["id"]
    assert_problem(client.post(f"/v1/photos/{id}/caption", json=body), 422, "invalid")
    assert not (root / "a.txt").exists()


@pytest.mark.parametrize(
    "id", ["0" * 32, "a.png", "..%2Fa.png", "%2e%2e%2Fa.png", "%2Fetc%2Fpasswd", "a%00", "😀", "x" * 5000]
)
def test_clients_cannot_name_files(client: TestClient, root: Path, id: str) -> None:
    edit = {"caption": "a dog", "replaces": None}
    before = sorted(root.parent.rglob("*"))
    path = f"/v1/photos/{id}"
    for response in (client.get(path), client.get(f"{path}/thumbnail"), client.post(f"{path}/caption", json=edit)):
        assert_problem(response, 404, "not_found")
    assert sorted(root.parent.rglob("*")) == before


def test_hidden_files_links_and_other_files_are_not_listed(root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.png").write_bytes(photo(9))
    (root / "linked.png").symlink_to(outside / "secret.png")
    (root / "linked").symlink_to(outside)
    (root / ".hidden.png").write_bytes(photo(9))
    (root / ".hidden").mkdir()
    (root / ".hidden/d.png").write_bytes(photo(9))
    (root / "notes.md").write_text("notes")
    assert list(listed(Folder(root))) == ["a.png", "b.JPG", "more/c.png"]


def test_a_photo_that_became_a_link_is_neither_read_nor_captioned(root: Path, tmp_path: Path) -> None:
    folder = Folder(root)
    ids = {name: each.id for name, each in listed(folder).items()}
    (tmp_path / "secret.png").write_bytes(b"secret")
    (root / "a.png").unlink()
    (root / "a.png").symlink_to(tmp_path / "secret.png")
    (root / "more").rename(tmp_path / "more")
    (root / "more").symlink_to(tmp_path / "more")
    for name in ("a.png", "more/c.png"):
        with pytest.raises(Problem) as raised:
            folder.read(ids[name], 10**6)
        assert raised.value.status_code == 404
    with pytest.raises(Problem):
        folder.save(ids["more/c.png"], Edit(caption="a dog", replaces=None))
    assert not (tmp_path / "more/c.txt").exists()


def test_text_files_that_are_not_ordinary_text_stay_as_they_are(root: Path, tmp_path: Path) -> None:
    (tmp_path / "outside.txt").write_text("outside")
    (root / "a.txt").symlink_to(tmp_path / "outside.txt")
    (root / "b.txt").write_bytes(b"\xff\xfe")
    os.mkfifo(root / "more/c.txt")
    folder = Folder(root)
    for name, each in listed(folder).items():
        assert (each.caption, each.read_only) == (None, True)
        with pytest.raises(Problem) as raised:
            save(folder, name, "a dog")
        assert (raised.value.status_code, raised.value.code) == (409, "conflict")
    assert (tmp_path / "outside.txt").read_text() == "outside"
    assert (root / "a.txt").is_symlink()
    assert (root / "b.txt").read_bytes() == b"\xff\xfe"


def test_photos_of_one_text_file_are_read_only(root: Path) -> None:
    (root / "a.jpg").write_bytes(photo(3))
    assert [each.read_only for each in listed(Folder(root)).values()] == [True, True, False, False]


def test_a_caption_that_another_program_changed_is_not_overwritten(root: Path) -> None:
    folder = Folder(root)
    with pytest.raises(Problem, match=r"b\.txt") as raised:
        save(folder, "b.JPG", "a dog")
    assert (raised.value.status_code, raised.value.code) == (409, "conflict")
    assert (root / "b.txt").read_text() == "a red dot\na dot\n"
    assert save(folder, "b.JPG", "a dog", "a red dot\na dot").caption == "a dog"


def test_a_folder_that_cannot_be_written_is_a_problem(root: Path) -> None:
    folder = Folder(root)
    id = listed(folder)["more/c.png"].id
    (root / "more/.c.txt.partial").mkdir()  # in the way of the temporary file
    with pytest.raises(Problem) as raised:
        folder.save(id, Edit(caption="a dog", replaces=None))
    assert (raised.value.status_code, raised.value.code) == (503, "resource")


def test_a_file_that_is_too_large_is_not_read(root: Path) -> None:
    folder = Folder(root)
    with pytest.raises(Problem) as raised:
        folder.read(listed(folder)["a.png"].id, 100)
    assert (raised.value.status_code, raised.value.code) == (413, "too_large")


def test_names_that_are_not_text_are_escaped(root: Path) -> None:
    (root / os.fsdecode(b"\xff.png")).write_bytes(photo(3))
    folder = Folder(root)
    assert save(folder, "\\udcff.png", "a dog").name == "\\udcff.png"
    assert (root / os.fsdecode(b"\xff.txt")).read_bytes() == b"a dog\n"


def test_pages_of_other_sites_cannot_save(client: TestClient, root: Path) -> None:
    """A page of another site sends its Origin, or no JSON: that needs leave, which no response gives."""
    path = f"/v1/photos/{client.get('/v1/photos').json()['photos'][0]['id']}/caption"
    body = json.dumps({"caption": "a dog", "replaces": None})
    for origin in ("https://evil.example", "null", "http://127.0.0.1:1"):
        assert_problem(client.post(path, content=body, headers={**JSON, "Origin": origin}), 403, "origin")
    for headers in ({"Content-Type": "text/plain"}, {"Content-Type": "application/x-www-form-urlencoded"}, {}):
        assert client.post(path, content=body, headers=headers).status_code in (415, 422)
    headers = {"Content-Type": "application/problem+json"}
    assert_problem(client.post(path, content=body, headers=headers), 415, "not_json")
    assert_problem(client.post(path, content=body, headers={**JSON, "Host": "evil.example"}), 400, "host")
    asked = client.options(path, headers={"Origin": "http://127.0.0.1", "Access-Control-Request-Method": "POST"})
    assert not [name for name in asked.headers if name.startswith("access-control")]
    assert not (root / "a.txt").exists()
    assert client.post(path, content=body, headers={**JSON, "Origin": "http://127.0.0.1"}).status_code == 200


def test_with_a_token_nothing_but_the_page_is_open(root: Path, model: str) -> None:
    service = Service(ServingOptions(model=model, root=root, token="a-token-of-many-letters"))
    client = TestClient(create_app(service), base_url="http://127.0.0.1")
    id = next(iter(listed(Folder(root)).values())).id
    for path in ("/v1/photos", f"/v1/photos/{id}", f"/v1/photos/{id}/thumbnail"):
        assert_problem(client.get(path), 401, "unauthorized")
    edit = {"caption": "a dog", "replaces": None}
    assert_problem(client.post(f"/v1/photos/{id}/caption", json=edit), 401, "unauthorized")
    assert not (root / "a.txt").exists()
    assert client.get("/").status_code == 200
    headers = {"Authorization": "Bearer a-token-of-many-letters"}
    assert client.get(f"/v1/photos/{id}", headers=headers).status_code == 200


def test_without_a_folder_there_are_no_photos(running: Running) -> None:
    assert_problem(running.client.get("/v1/photos"), 404, "not_found")
    assert running.client.get("/v1/model").json()["has_folder"] is False


def test_requests_made_from_the_openapi_document_are_answered_as_it_says(served: Running) -> None:
    document = served.client.get("/openapi.json").json()
    tried = set()
    for result in schemathesis.openapi.from_dict(document).include(path_regex="^/v1/photos").get_all_operations():
        operation = result.ok()

        @settings(max_examples=3, suppress_health_check=list(HealthCheck), database=None)
        @given(case=operation.as_strategy())
        def answers(case: schemathesis.Case) -> None:
            tried.add(case.path)
            case.call_and_validate(served.url, timeout=SECONDS)

        answers()
    assert len(tried) == 4
