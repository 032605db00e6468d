"""Tars that are written, read as others write them, and hostile ones."""

import io
import json
import subprocess
import tarfile

import pytest

from captioner.data.formats import load_captions
from captioner.data.shards import SUMS, find_shards, first_samples, photo_members, read_index, read_sample, write_shards
from captioner.errors import AnnotationError, ConfigError, InputError


def write_tar(path, *members):
    """A tar of (name, content); instead of content, a number is the type of a member that is no file."""
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            if isinstance(content, str):
                content = content.encode()
            if isinstance(content, bytes):
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
            else:
                member.type, member.linkname = str(content).encode(), "000.txt"
                archive.addfile(member)
    return path


def samples(path):
    return [read_sample(path, entry) for entry in read_index(path).entries]


def test_what_is_written_is_read(shapes, tmp_path):
    """Every photo and all of its captions, in tars of bounded size, whose sums sha256sum confirms."""
    train = load_captions(shapes).split("train").images
    largest = 20_480
    paths = list(write_shards(train, tmp_path / "out", max_bytes=largest))
    assert paths == find_shards(tmp_path / "out")
    assert len(paths) > 2
    assert all(path.stat().st_size <= largest for path in paths)
    found = [sample for path in paths for sample in samples(path)]
    expected = sorted((image.path.read_bytes(), image.captions) for image in train)
    assert sorted((sample.content, sample.captions) for sample in found) == expected
    assert [sample.content for sample in found] != [image.path.read_bytes() for image in train]  # shuffled
    subprocess.run(["sha256sum", "--check", "--strict", SUMS], cwd=tmp_path / "out", check=True, capture_output=True)
    assert list(first_samples(paths, 7)) == found[:7]
    with pytest.raises(ConfigError, match="already holds shards"):
        list(write_shards(train, tmp_path / "out", max_bytes=largest))


def test_writing_again_gives_the_same_bytes(shapes, tmp_path):
    train = load_captions(shapes).split("train").images
    one, other = (list(write_shards(train, tmp_path / name, max_bytes=10**6)) for name in ("one", "other"))
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in other]


def test_img2dataset_is_read_as_it_is(tmp_path):
    """Its .json is preferred to its .txt; without a caption there, the sample has none."""
    path = write_tar(
        tmp_path / "00000.tar",
        *[
            ("000000000.jpg", b"one"),
            ("000000000.txt", "a cat\n"),
            ("000000000.json", '{"caption": " a  cat ", "key": "0"}'),
        ],
        *[("000000001.webp", b"two"), ("000000001.txt", "a dog\n\nthe dog")],
        *[("000000002.JPG", b"three"), ("000000002.json", '{"caption": null}')],
        *[("a/3.png", b"four"), ("a/3.json", '{"captions": ["x", "", 4, "y"]}')],
    )
    assert read_index(path).incomplete == 0
    one, two, three, four = read_index(path).entries
    assert (read_sample(path, one).content, read_sample(path, one).captions) == (b"one", ("a cat",))
    assert read_sample(path, two).captions == ("a dog", "the dog")
    with pytest.raises(AnnotationError, match=r"00000.tar/000000002.json: holds no caption"):
        read_sample(path, three)
    assert (four.key, read_sample(path, four).captions) == ("a/3", ("x", "y"))


def test_other_members_are_never_read(tmp_path):
    """Code, links, devices and names outside; a photo without captions, and captions without a photo."""
    path = write_tar(
        tmp_path / "x.tar",
        *[("0.jpg", b"p"), ("0.pickle", b"code"), ("0.pyd", b"code"), ("0.json.pickle", b"code"), ("0.txt", "good")],
        *[("../1.jpg", b"p"), ("../1.txt", "outside")],
        *[("/2.jpg", b"p"), ("/2.txt", "outside")],
        *[("3.jpg", int(tarfile.SYMTYPE)), ("3.txt", "a link")],
        *[("4.jpg", int(tarfile.FIFOTYPE)), ("4.txt", "a pipe")],
        *[("5.jpg", b"no captions"), ("6.txt", "no photo")],
    )
    assert [sample.captions for sample in samples(path)] == [("good",)]
    assert read_index(path).incomplete == 4


@pytest.mark.parametrize("text", ["not json", "[" * 10**5, "[1]", "{}", '{"captions": {"a": 1}}', b"\xff", "7", ""])
def test_captions_that_cannot_be_read(tmp_path, text):
    path = write_tar(tmp_path / "x.tar", ("0.jpg", b"p"), ("0.json", text))
    with pytest.raises(AnnotationError, match=r"x.tar/0.json"):
        samples(path)


def test_a_tar_that_ends_early_is_read_as_far_as_it_goes(tmp_path, caplog):
    path = write_tar(tmp_path / "x.tar", *[(f"{n}.{kind}", b"x" * 999) for n in range(9) for kind in ("jpg", "txt")])
    path.write_bytes(path.read_bytes()[:7000])
    assert [entry.key for entry in read_index(path).entries] == ["0", "1"]


def test_photos_of_a_tar_need_no_captions(tmp_path):
    members = [
        ("./b.jpg", b"b"),
        ("a/x.1.PNG", b"a"),
        ("../c.jpg", b"c"),
        ("/d.jpg", b"d"),
        ("e.jpg", 2),
        ("f.txt", b"f"),
    ]
    path = write_tar(tmp_path / "x.tar", *members)
    found = list(photo_members(str(path)))
    assert [(member.name, member.read()) for member in found] == [
        (f"{path}/b.jpg", b"b"),
        (f"{path}/a/x.1.PNG", b"a"),
    ]


def test_a_negative_size_ends_the_reading(tmp_path):
    """Python's reader would go back and read the same members again, without end."""
    path = write_tar(tmp_path / "x.tar", *[(f"{n}.{kind}", b"x" * 999) for n in range(3) for kind in ("jpg", "txt")])
    data = bytearray(path.read_bytes())
    start = 3 * (512 + 1024)
    data[start + 124 : start + 136] = (-3584).to_bytes(12, "big", signed=True)
    data[start + 148 : start + 156] = b" " * 8
    data[start + 148 : start + 156] = b"%06o\0 " % sum(data[start : start + 512])
    path.write_bytes(data)
    assert [entry.key for entry in read_index(path).entries] == ["0"]


def test_no_tar_at_all(tmp_path):
    (tmp_path / "x.tar").write_bytes(b"not a tar" * 1000)
    with pytest.raises(AnnotationError, match="is not a tar file"):
        read_index(tmp_path / "x.tar")
    with pytest.raises(InputError, match=r"no \.tar files"):
        find_shards(tmp_path / "none")


@pytest.mark.parametrize("change", ["other", "damaged", "outside", "types"])
def test_an_index_that_does_not_fit_is_made_again(tmp_path, change):
    path = write_tar(tmp_path / f"{change}.tar", ("0.jpg", b"p"), ("0.txt", "a cat"))
    right = read_index(path)
    beside = tmp_path / f"{change}.tar.json"
    data = json.loads(beside.read_text())
    if change == "other":
        data["bytes"] += 1
    elif change == "outside":
        data["samples"][0][1] = 10**9
    elif change == "types":
        data["samples"][0][2] = True
    beside.write_text("{" if change == "damaged" else json.dumps(data))
    read_index.cache_clear()
    assert read_index(path) == right
    assert json.loads(beside.read_text())["samples"] == [list(right.entries[0])]
