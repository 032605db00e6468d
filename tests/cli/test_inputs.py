"""Finding inputs: order, names, links, lists, streams, and what is not there."""

import io
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from captioner.cli.inputs import Finder, Input, standard_input
from captioner.errors import ConfigError, InputError
from captioner.text import printable

ROOT = Path(__file__).resolve().parent.parent.parent
posix = pytest.mark.skipif(sys.platform == "win32", reason="names that Windows does not allow")


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("b.JPG", "a.png", "notes.txt", ".hidden.jpg", "z/c.webp", "z/deep/d.gif", ".git/e.jpg", "none/f.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def find(
    *arguments: str, recursive: bool = False, null: bool = False, stdin: bytes = b""
) -> tuple[list[Input], list[str]]:
    complaints: list[str] = []
    finder = Finder(recursive=recursive, null=null, stdin=io.BytesIO(stdin), complain=complaints.append)
    return list(finder.find(arguments)), complaints


def paths(*arguments: str, recursive: bool = False, null: bool = False, stdin: bytes = b"") -> list[str]:
    found, complaints = find(*arguments, recursive=recursive, null=null, stdin=stdin)
    assert complaints == []
    return [each.path.replace(os.sep, "/") for each in found]


@pytest.mark.usefixtures("tree")
def test_a_folder_gives_its_images_by_name_and_with_r_its_tree() -> None:
    assert paths(".") == ["./a.png", "./b.JPG"]
    assert paths(".", recursive=True) == ["./a.png", "./b.JPG", "./z/c.webp", "./z/deep/d.gif"]


@posix
@pytest.mark.usefixtures("tree")
def test_trees_may_be_deeper_than_python_calls_functions(tree: Path) -> None:
    here = os.getcwd()
    try:
        for _ in range(1100):
            os.mkdir("d")
            os.chdir("d")
        Path("deep.png").write_bytes(b"x")
    finally:
        os.chdir(here)
    assert paths(".", recursive=True)[-1] == "./z/deep/d.gif"
    assert "./" + "d/" * 1100 + "deep.png" in paths(".", recursive=True)
    assert "d/" * 1100 + "deep.png" in paths("**/*.png")
    subprocess.run(["rm", "-r", "d"], check=True)  # shutil.rmtree recurses


@pytest.mark.usefixtures("tree")
def test_files_that_are_named_are_inputs_whatever_they_are_in_the_order_given() -> None:
    assert paths("notes.txt", "missing.jpg", "a.png", ".hidden.jpg") == [
        *("notes.txt", "missing.jpg", "a.png", ".hidden.jpg")
    ]


@pytest.mark.usefixtures("tree")
@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*.png", ["a.png"]),
        ("[ab].*", ["a.png", "b.JPG"]),
        ("*", ["a.png", "b.JPG", "notes.txt"]),
        (".*.jpg", [".hidden.jpg"]),
        ("z/*", ["z/c.webp"]),
        ("*/*/d.???", ["z/deep/d.gif"]),
        ("**/*.gif", ["z/deep/d.gif"]),
        ("**/**/c.*", ["z/c.webp"]),
        ("z/**", ["z/c.webp", "z/deep/d.gif"]),
        ("no*/f.txt", ["none/f.txt"]),
    ],
)
def test_globs_match_files_as_a_shell_does(pattern: str, found: list[str]) -> None:
    assert paths(pattern) == found


def test_a_glob_may_be_absolute(tree: Path) -> None:
    assert paths(f"{tree}/z/*.webp") == [f"{tree.as_posix()}/z/c.webp"]


def test_a_file_with_brackets_in_its_name_is_that_file(tree: Path) -> None:
    (tree / "[a].png").write_bytes(b"x")
    assert paths("[a].png") == ["[a].png"]


@pytest.mark.usefixtures("tree")
def test_missing_inputs_are_reported() -> None:
    assert find("none", "*.bmp", "z", "nowhere/*/x") == (
        [Input(os.path.join("z", "c.webp"), "c.webp")],
        [
            "none: no images in this folder",
            "*.bmp: no file matches",
            f"{os.path.join('nowhere', '*', 'x')}: no file matches".replace(os.sep, "/"),
        ],
    )
    assert find("none", "a.png", recursive=True)[1] == ["none: no images in this folder"]


def test_images_of_subfolders_are_counted(tree: Path) -> None:
    notes: list[str] = []
    finder = Finder(recursive=False, complain=pytest.fail, note=notes.append)
    assert [each.path for each in finder.find([".", "z/deep"])] == ["./a.png", "./b.JPG", "z/deep/d.gif"]
    assert notes == [".: 2 more in subfolders; -r searches them"]
    assert [*replace(finder, recursive=True).find(["."])][-1].path == "./z/deep/d.gif"
    assert len(notes) == 1
    (tree / "none" / "f").mkdir()
    (tree / "none" / "f" / "g.png").touch()
    assert find("none", "a.png")[1] == ["none: no images in this folder, 1 more in subfolders; -r searches them"]


@pytest.mark.usefixtures("tree")
@pytest.mark.parametrize("url", ["https://example.com/dog.jpg?size=[1]", "S3://bucket/dog.jpg"])
def test_urls_are_not_fetched(url: str) -> None:
    with pytest.raises(InputError) as raised:
        find("a.png", url)
    assert str(raised.value) == f"{url}: URLs are not fetched; download the image and name its file"


@pytest.mark.usefixtures("tree")
def test_no_input_at_all_is_an_error() -> None:
    complaints: list[str] = []
    finder = Finder(recursive=False, stdin=io.BytesIO(), complain=complaints.append)
    with pytest.raises(InputError, match=r"^none \*\.bmp -: no input found; name images, folders"):
        list(finder.find(["none", "*.bmp", "-"]))
    assert len(complaints) == 2
    with pytest.raises(InputError, match=r"^none.jpg: no such file; check its path$"):
        list(finder.find(["none.jpg", "none.png"]))


@posix
def test_loops_of_links_are_not_followed_but_links_to_photos_are(tree: Path) -> None:
    (tree / "z" / "up").symlink_to(tree)
    (tree / "z" / "self.jpg").symlink_to("self.jpg")
    (tree / "z" / "link.jpg").symlink_to(tree / "a.png")
    (tree / "z" / "folder.jpg").symlink_to(tree / "none")
    found = ["z/c.webp", "z/link.jpg", "z/self.jpg", "z/deep/d.gif"]
    assert paths("z", recursive=True) == found
    assert paths("**/*.jpg") == ["z/link.jpg", "z/self.jpg"]


@posix
@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_folder_is_reported(tree: Path) -> None:  # pragma: no cover
    (tree / "z").chmod(0)
    found, complaints = find(".", recursive=True)
    (tree / "z").chmod(0o755)
    assert [each.path for each in found] == ["./a.png", "./b.JPG"]
    assert complaints == ["./z: cannot be read (Permission denied); check its permissions"]


@pytest.mark.usefixtures("tree")
def test_paths_in_a_mirrored_tree() -> None:
    found, _ = find("z", "./z/c.webp", "../up.jpg", os.path.abspath("a.png"), recursive=True)
    assert [each.relative.replace(os.sep, "/") for each in found] == [
        *("c.webp", "deep/d.gif", "z/c.webp", "up.jpg", "a.png")
    ]


@pytest.mark.usefixtures("tree")
def test_lists_and_standard_input_name_files_and_folders(tree: Path) -> None:
    listed = "\ufeffa.png\r\n\r\nz\nmä ü.jpg\n".encode()
    (tree / "list.txt").write_bytes(listed)
    assert paths("@list.txt") == ["a.png", "z/c.webp", "mä ü.jpg"]
    assert paths("-", stdin=listed) == ["a.png", "z/c.webp", "mä ü.jpg"]
    assert paths("-", "a.png", stdin=b"") == ["a.png"]
    assert paths("-", stdin="\ufeffonly.jpg".encode()) == ["only.jpg"]


def test_a_list_takes_names_as_they_are() -> None:
    assert paths("-", stdin=b"*.jpg\n@x\n-\n") == ["*.jpg", "@x", "-"]


@posix
def test_names_end_with_nul_on_request_and_need_not_be_text() -> None:
    found = paths("-", null=True, stdin=b"two\nlines.jpg\0caf\xe9.jpg\0\0last.jpg\r")
    assert found == ["two\nlines.jpg", "caf\udce9.jpg", "last.jpg\r"]
    assert [printable(each) for each in found] == ["two\\nlines.jpg", "caf\\udce9.jpg", "last.jpg\\r"]


def test_paths_come_whole_out_of_chunks() -> None:
    many = [f"{number:06}.jpg" for number in range(20_000)]
    assert paths("-", stdin="\n".join(many).encode()) == many


def test_standard_input_is_read_no_further_than_needed() -> None:
    read, write = os.pipe()
    with open(read, "rb") as stdin, open(write, "wb", buffering=0) as pipe:
        finder = Finder(recursive=False, null=False, stdin=stdin, complain=pytest.fail)
        found = finder.find(["-"])
        pipe.write(b"a.jpg\nb.jpg\nc")
        assert [next(found).path, next(found).path] == ["a.jpg", "b.jpg"]


def test_a_closed_standard_input_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert standard_input().read() == b""


@posix
def test_standard_input_is_read_without_a_lock() -> None:
    """Else Python aborts where a thread still reads when the process ends."""
    read, write = os.pipe()
    program = (
        "import threading; from captioner.cli.inputs import standard_input; stream = standard_input();"
        "threading.Thread(target=stream.read, args=(9,), daemon=True).start(); threading.Event().wait(0.2)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdin=read, stdout=subprocess.PIPE, cwd=ROOT) as process:
        assert process.wait(60) == 0
    os.close(read)
    os.close(write)


@pytest.mark.parametrize(
    ("arguments", "null", "error", "message"),
    [
        (["-", "-"], False, ConfigError, "-: named twice; standard input can be read once"),
        (["a.jpg"], True, ConfigError, "-0: says how paths on standard input end; add - as an input"),
        (["@no.txt"], False, InputError, "@no.txt: cannot read the list no.txt; check its path"),
    ],
)
def test_contradictory_arguments(arguments: list[str], null: bool, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as raised:
        find(*arguments, null=null)
    assert str(raised.value) == message


def test_watched_folders_give_each_file_once_when_it_has_stopped_growing(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0

    def look(seconds: float) -> None:
        nonlocal looks
        looks += 1
        if looks <= 4:
            with open("z/new.jpg", "ab") as file:
                file.write(b"more")
        if looks == 2:
            Path("a.png").unlink()
        if looks == 7:
            Path("late.png").write_bytes(b"x")
            Path("b.JPG").write_bytes(b"changed after it was captioned")
            Path("empty.png").touch()

    monkeypatch.setattr("captioner.cli.inputs.time.sleep", look)
    finder = Finder(recursive=True, complain=pytest.fail)
    found = [(each.path, each.relative, looks) for each in finder.watch(["."], lambda: looks == 10)]
    assert [(path, relative) for path, relative, _ in found] == [
        ("./a.png", "a.png"),
        ("./b.JPG", "b.JPG"),
        ("./z/c.webp", "z/c.webp"),
        ("./z/deep/d.gif", "z/deep/d.gif"),
        ("./z/new.jpg", "z/new.jpg"),
        ("./late.png", "late.png"),
    ]
    assert [look for _, _, look in found] == [1, 1, 1, 1, 5, 8]
