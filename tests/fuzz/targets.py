"""Everything that reads files which others made. Whatever the bytes, only a CaptionerError may come out."""

import io
import json
import shutil
import time
import warnings
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from captioner.checkpoint import MODEL_PREFIX, describe
from captioner.cli.formats import Result
from captioner.cli.journal import Journal
from captioner.cli.score import read_candidates, read_references
from captioner.config_files import load_config
from captioner.data.checks import check
from captioner.data.dataset import read_photo
from captioner.data.features import INDEX, FeatureStore, FeatureWriter, StoreKey
from captioner.data.formats import load_captions, read_listing
from captioner.data.shards import read_index, read_sample, write_shards
from captioner.errors import CaptionerError, ImageError
from captioner.generation import Greedy
from captioner.geometry import Geometry
from captioner.images import open_image
from captioner.inspection.trace import AttentionTrace
from captioner.model_files import CONFIG, TOKENIZER, WEIGHTS
from captioner.pipeline import Captioner
from captioner.records import trace_record
from captioner.tokenizer import Tokenizer
from tests.serving.conftest import save_tiny_model

SECONDS = 10.0
"""Longest that a file may take."""
CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@dataclass(frozen=True)
class Target:
    """One kind of file: valid ones, and a function that reads such a file and uses everything in it."""

    seeds: Sequence[bytes]
    use: Callable[[bytes], object]


def check_bytes(target: Target, data: bytes) -> None:
    """Raise what only a defect raises: an unexpected exception, or AssertionError for a file that takes too long."""
    start = time.monotonic()
    with suppress(CaptionerError), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of decoders, about odd metadata
        target.use(data)
    took = time.monotonic() - start
    assert took < SECONDS, f"{took:.0f} s"


def all_targets(folder: Path) -> dict[str, Target]:
    """The targets by name; their files are written into the folder."""
    model = Path(save_tiny_model(folder))
    return {
        "images": Target(_images(), open_image),
        **_annotations(folder / "annotations"),
        "configurations": _configurations(folder / "config.yaml"),
        **_models(model),
        "journals": _journals(folder / "journal"),
        **_traces(folder / "trace.npz"),
        "features": _features(folder / "features"),
        **_shards(folder / "shards"),
        **_scores(folder / "scores.json"),
    }


def _images() -> list[bytes]:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8))
    kinds = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF")
    seeds = [_saved(picture, kind) for kind in kinds]
    seeds += [_saved(picture, "TIFF", compression=each) for each in ("tiff_lzw", "tiff_adobe_deflate", "jpeg")]
    exif = Image.Exif()
    exif[274] = 6
    seeds += [_saved(picture, "JPEG", progressive=True, exif=exif), _saved(picture.convert("CMYK"), "JPEG")]
    seeds += [_saved(picture.convert("P"), "PNG", transparency=bytes(9)), _saved(picture.convert("1"), "PNG")]
    return [*seeds, _saved(Image.new("F", (9, 9), 3.0), "TIFF"), _saved(picture.convert("LA"), "PNG")]


def _saved(picture: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)  # type: ignore[arg-type]
    return stream.getvalue()


def _annotations(folder: Path) -> dict[str, Target]:
    (folder / "images").mkdir(parents=True)
    for name in ("1.png", "2.png"):
        Image.new("RGB", (4, 4)).save(folder / "images" / name)
    images = [{"id": number, "file_name": f"{number}.png", "split": "train"} for number in (1, 2)]
    captions = [{"id": number, "image_id": number, "caption": "a dog runs"} for number in (1, 2)]
    sentences = [{"raw": "a dog runs", "tokens": ["a", "dog", "runs"]}]
    karpathy = [{"filename": "1.png", "imgid": 1, "split": "test", "sentences": sentences, "cocoid": 3}]
    seeds = {
        "captions.json": json.dumps({"images": images, "annotations": captions}),
        "dataset.json": json.dumps({"images": karpathy}),
        "captions.csv": "image,caption,split\n1.png,a dog runs,train\n2.png,two dogs,val\n",
        "captions.jsonl": '{"image": "1.png", "caption": "a dog"}\n{"image": "2.png", "captions": ["two", "dogs"]}\n',
        "captions.txt": "1.png#0\ta dog runs\n2.png#0\ttwo dogs\n",
    }

    def use(name: str) -> Callable[[bytes], object]:
        def read(data: bytes) -> None:
            (folder / name).write_bytes(data)
            for problem in check(read_listing(folder, name, "images")):
                assert "\n" not in problem.message
            load_captions(folder, name, "images")

        return read

    return {f"annotations {name}": Target([seed.encode()], use(name)) for name, seed in seeds.items()}


def _configurations(path: Path) -> Target:
    seeds = [each.read_bytes() for each in sorted(CONFIGS.glob("*.yaml"))]
    nested = {"data": {"root": "x", "batch_images": 2}, "encoder": {"name": "test_vit", "image_size": [64, 64]}}
    seeds.append(json.dumps({**nested, "training": {"epochs": 2, "trainer": {"devices": 1}}}).encode())

    def use(data: bytes) -> None:
        path.write_bytes(data)
        load_config(path)

    return Target(seeds, use)


def _shards(folder: Path) -> dict[str, Target]:
    """Tars, and their indexes."""
    (folder / "images").mkdir(parents=True)
    names = ("a.png", "b.jpg")
    for name in names:
        Image.new("RGB", (4, 4)).save(folder / "images" / name)
        (folder / "images" / name).with_suffix(".txt").write_text("a dog\n")
    images = load_captions(folder / "images").images
    [path] = write_shards(images, folder, max_bytes=10**6)
    index = path.with_name(f"{path.name}.json")
    original = path.read_bytes(), index.read_bytes()

    def use(data: bytes) -> None:
        read_index.cache_clear()
        for entry in read_index(path).entries:
            with suppress(CaptionerError):
                read_photo(read_sample(path, entry))

    def use_tar(data: bytes) -> None:
        path.write_bytes(data)
        index.unlink(missing_ok=True)
        use(data)

    def use_index(data: bytes) -> None:
        path.write_bytes(original[0])
        index.write_bytes(data)
        use(data)

    return {"shards": Target([original[0]], use_tar), "shard indexes": Target([original[1]], use_index)}


def _models(folder: Path) -> dict[str, Target]:
    photo = np.zeros((8, 8, 3), np.uint8)
    original = {name: (folder / name).read_bytes() for name in (CONFIG, TOKENIZER, WEIGHTS)}
    captioner = Captioner.from_pretrained(folder, device="cpu")
    state = {MODEL_PREFIX + name: tensor for name, tensor in captioner.model.state_dict().items()}
    stream = io.BytesIO()
    torch.save({"captioner": describe(captioner.model, captioner.tokenizer), "state_dict": state}, stream)
    with zipfile.ZipFile(stream) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    [pickle] = [name for name in parts if name.endswith("data.pkl")]
    checkpoint = folder / "last.ckpt"

    def part_of_folder(name: str) -> Target:
        def use(data: bytes) -> None:
            (folder / name).write_bytes(data)
            try:
                Captioner.from_pretrained(folder, device="cpu")(photo, search=Greedy(max_length=4))
            finally:
                (folder / name).write_bytes(original[name])

        return Target([original[name]], use)

    def use_pickle(data: bytes) -> None:
        with zipfile.ZipFile(checkpoint, "w") as archive:
            for name, part in parts.items():
                archive.writestr(name, data if name == pickle else part)
        Captioner.from_pretrained(checkpoint, device="cpu")(photo, search=Greedy(max_length=4))

    def use_archive(data: bytes) -> None:
        checkpoint.write_bytes(data)
        Captioner.from_pretrained(checkpoint, device="cpu")

    def use_tokenizer(data: bytes) -> None:
        tokenizer = Tokenizer.from_str(data.decode("utf-8", "surrogateescape"))
        tokenizer.words(tokenizer.encode("a small dog, isn't it?"))

    byte_level = json.loads(original[TOKENIZER])
    return {
        **{f"model {name}": part_of_folder(name) for name in original},
        "tokenizers": Target([original[TOKENIZER], json.dumps(byte_level).encode()], use_tokenizer),
        "checkpoints": Target([stream.getvalue()], use_archive),
        "checkpoint pickles": Target([parts[pickle]], use_pickle),
    }


def _journals(folder: Path) -> Target:
    folder.mkdir()
    settings = {"greedy": "True"}
    journal = Journal(folder / "out", settings, resume=False)
    journal.check_weights("weights")
    for name in ("a.jpg", "b.jpg"):
        # A relative target, so that no file that is kept names a folder of this machine.
        journal.add(Result.of(name, ImageError("no", "empty"), model="tiny"), [1, 2], Path("out"), 0, "text\n")
    journal.close()
    seed = journal.path.read_bytes()

    def use(data: bytes) -> None:
        journal.path.write_bytes(data)
        read = Journal(folder / "out", settings, resume=True)
        read.check_weights("weights")
        for entry in read.entries.values():
            read.state(entry.path)
        if read.last is not None:
            read.last.unwritten()
        shutil.rmtree(folder)
        folder.mkdir()

    return Target([seed], use)


def _traces(path: Path) -> dict[str, Target]:
    weights = np.full((2, 1, 2, 7), 1 / 7, np.float32)
    geometry = Geometry.of(8, 6, size=(32, 32), fit="squash")
    photo = Image.new("RGB", (8, 6))
    words = ("a", "dog")
    trace = AttentionTrace("a dog", words, (-1.0, -2.0), weights, (2, 3), 0, geometry, photo, method="raw")
    trace.save(path)
    seed = path.read_bytes()
    with np.load(path) as arrays:
        content = dict(arrays)

    def use(data: bytes) -> None:
        path.write_bytes(data)
        loaded = AttentionTrace.load(path)
        json.dumps(trace_record(loaded))
        _ = loaded.entropy, loaded.peak

    def use_about(data: bytes) -> None:
        stream = io.BytesIO()
        np.savez(stream, **{**content, "about": np.frombuffer(data, np.uint8)})
        use(stream.getvalue())

    return {"traces": Target([seed], use), "trace descriptions": Target([content["about"].tobytes()], use_about)}


def _features(folder: Path) -> Target:
    key = StoreKey(encoder={"name": "test"}, weights="0", transform="plain", files="1")
    writer = FeatureWriter(folder, key, views={"a": 1, "b": 2}, shape=(2, 3))
    writer.write(np.ones((3, 2, 3), np.float16))
    writer.finish()

    def use(data: bytes) -> None:
        (folder / INDEX).write_bytes(data)
        store = FeatureStore.open(folder, key)
        assert store is not None
        for name in ("a", "b"):
            for view in range(store.views(name)):
                store.read(name, view)

    return Target([(folder / INDEX).read_bytes()], use)


def _scores(path: Path) -> dict[str, Target]:
    captions = [{"image_id": 1, "caption": "a dog"}, {"image_id": "2", "caption": "a cat"}]
    references = {"images": [{"id": 1}], "annotations": [{"id": 1, "image_id": 1, "caption": "a dog"}]}

    def use(read: Callable[[Path], object]) -> Callable[[bytes], object]:
        def write_and_read(data: bytes) -> object:
            path.write_bytes(data)
            return read(path)

        return write_and_read

    plain = {"1": ["a dog", "two dogs"], "2": ["a cat"]}
    return {
        "candidates": Target([json.dumps(captions).encode(), b'{"1": "a dog"}'], use(read_candidates)),
        "references": Target([json.dumps(references).encode(), json.dumps(plain).encode()], use(read_references)),
    }
