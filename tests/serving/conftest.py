"""A tiny model, and servers of it: uvicorn in a thread, real sockets, real decoder processes."""

import io
import multiprocessing
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from captioner.config import DecoderConfig, EncoderConfig, ModelConfig, TokenizerConfig
from captioner.model.caption_model import CaptionModel
from captioner.pipeline import Captioner
from captioner.serving.options import ServingOptions
from captioner.serving.server import create_server
from captioner.serving.service import Service
from captioner.tokenizer import Tokenizer

WORDS = "red green blue square circle dot above below small large a two"
POSITIONS = 200
SECONDS = 60
"""After which a server that does not do what a test waits for fails it."""
SLOW = {"beam": 16, "num_captions": 16, "max_length": POSITIONS - 1, "length_penalty": 5, "no_repeat_ngram": 0}
"""A search that takes seconds with the tiny model."""


def save_tiny_model(folder: Path) -> str:
    """The path of a model whose captions differ from photo to photo."""
    tokenizer = Tokenizer.train([WORDS], TokenizerConfig(min_count=1))
    config = ModelConfig(
        encoder=EncoderConfig(name="test_vit", image_size=(64, 96)),
        decoder=DecoderConfig(width=16, layers=2, heads=2, max_length=POSITIONS),
    )
    torch.manual_seed(0)
    network = CaptionModel(config, vocabulary=len(tokenizer))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in network.decoder.named_parameters():
            if "norm" not in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.35)
    Captioner(network, tokenizer, name="tiny").save_pretrained(folder / "tiny")
    return str(folder / "tiny")


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("serving"))


@pytest.fixture(scope="session")
def captioner(model: str) -> Captioner:
    """The same model, for what the service must answer."""
    return Captioner.from_pretrained(model, device="cpu")


def photo(seed: int, width: int = 90, height: int = 50, format: str = "PNG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format)
    return stream.getvalue()


def wait_until(condition: Callable[[], object]) -> None:
    limit = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.01)


@dataclass
class Running:
    """A server, and a client of it."""

    service: Service
    client: httpx.Client
    url: str
    decoders: tuple[int, ...]
    """The processes that decode."""

    def caption(self, *files: Any, **query: Any) -> httpx.Response:
        return self.client.post("/v1/caption", params=query, files=[("files", file) for file in files])

    def metric(self, name: str, **labels: str) -> float:
        return self.service.metrics.registry.get_sample_value(f"captioner_{name}", labels) or 0.0


@pytest.fixture(scope="session")
def start(model: str) -> Iterator[Callable[..., Running]]:
    """Start a server with some options."""
    ends: list[Callable[[], None]] = []

    def run(**options: Any) -> Running:
        before = {child.pid for child in multiprocessing.active_children()}
        service = Service(replace(ServingOptions(model=model, device="cpu"), **options))
        server = create_server(service)
        listening = socket.create_server(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        headers = {"Authorization": f"Bearer {options['token']}"} if options.get("token") else {}
        client = httpx.Client(base_url=url, headers=headers, timeout=SECONDS, trust_env=False)

        def end() -> None:
            client.close()
            server.should_exit = True
            thread.join(SECONDS)
            assert not thread.is_alive()

        ends.append(end)
        wait_until(lambda: server.started and client.get("/readyz").status_code == 200)
        children = (child.pid for child in multiprocessing.active_children())
        return Running(service, client, url, tuple(pid for pid in children if pid and pid not in before))

    yield run
    for end in ends:
        end()


@pytest.fixture(scope="session")
def running(start: Callable[..., Running]) -> Running:
    """A server with the default options."""
    return start()


@pytest.fixture(scope="session")
def odd_files() -> dict[str, bytes]:
    """Own odd files: name -> bytes."""
    whole, small = photo(1, 300, 200, "JPEG"), photo(2)
    header = b"IHDR" + (2**16).to_bytes(4, "big") * 2 + small[24:29]
    return {
        "empty.jpg": b"",
        "cut.jpg": whole[: len(whole) // 2],
        "text.jpg": b"not a photo",
        "page.svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "broken.png": small[:60] + b"broken" + small[66:],
        "large.png": small[:12] + header + zlib.crc32(header).to_bytes(4, "big") + small[33:],
    }
