"""The model behind the service: loading it, and captions and traces of uploaded files."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from captioner.decoding import Decoders, Result, full_size
from captioner.errors import ImageError
from captioner.images import OpenedImage
from captioner.photo import Photo
from captioner.records import caption_record
from captioner.search_options import SearchOptions
from captioner.serving.options import CaptionQuery, InspectQuery, ServingOptions
from captioner.serving.problems import Problem

if TYPE_CHECKING:
    from captioner.inspection.trace import AttentionTrace
    from captioner.pipeline import Captioner
    from captioner.serving.batcher import Batcher

SECONDS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
"""Buckets of the durations of requests."""
PHOTOS = (1, 2, 4, 8, 16, 32, 64)
"""Buckets of the sizes of batches."""

Rendered = TypeVar("Rendered")


@dataclass(frozen=True)
class Upload:
    """An uploaded file; its name is used in messages only."""

    name: str
    data: bytes


class Metrics:
    """What the service counts, for Prometheus."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        labels = ("path", "status")
        self.requests = Histogram(
            "captioner_request_seconds", "Duration of requests", labels, registry=registry, buckets=SECONDS
        )
        self.batches = Histogram("captioner_batch_photos", "Photos per batch", registry=registry, buckets=PHOTOS)
        self.accepted = Gauge("captioner_photos_in_progress", "Photos in progress", registry=registry)
        self.replaced = Counter("captioner_decoders_replaced", "Decoders that crashed or timed out", registry=registry)


class Service:
    """One model, which is loaded while the server already answers."""

    def __init__(self, options: ServingOptions, on_failure: Callable[[], object] = lambda: None) -> None:
        self.options, self.metrics = options, Metrics()
        self.name = Path(options.model).name
        """The model's name in records: without its folder, which clients need not know."""
        self.failure: Exception | None = None
        """Why the model could not be loaded; `on_failure` is called after it is set."""
        self._on_failure = on_failure
        self._accepted = 0
        self._model: tuple[Captioner, Batcher] | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Start the decoders and load the model; stop both at the end."""
        self._inspecting = asyncio.Lock()  # one photo at full size at a time
        count, limit = self.options.workers, self.options.max_pixels
        self._decoders = Decoders(count, max_pixels=limit, on_replace=self.metrics.replaced.inc)
        self._waiting = ThreadPoolExecutor(count, "decoder")
        loading = asyncio.create_task(self._load())
        try:
            yield
        finally:
            await loading
            if self._model is not None:
                await self._model[1].close()
            self._waiting.shutdown(cancel_futures=True)
            self._decoders.close()

    def loaded(self) -> "tuple[Captioner, Batcher]":
        """The model. Raises Problem while it is loading."""
        if self._model is None:
            raise Problem(503, "loading", "the model is loading; try again in a few seconds")
        return self._model

    @contextmanager
    def accept(self, photos: int) -> Iterator[None]:
        """Count photos as accepted. Raises Problem if there are too many."""
        if self._accepted + photos > self.options.queue:
            raise Problem(429, "busy", f"{self._accepted} photos are waiting; try again later")
        self._accepted += photos
        self.metrics.accepted.inc(photos)
        try:
            yield
        finally:
            self._accepted -= photos
            self.metrics.accepted.dec(photos)

    async def caption(self, file: Upload, query: CaptionQuery) -> dict[str, Any]:
        """The record of a file, which has an error if it is unusable. Raises ConfigError for options it cannot have."""
        from captioner.caption import Captioned

        captioner, batcher = self.loaded()
        encoder = captioner.model.encoder
        try:
            photo = await self.decode(file, partial(Photo.of, encoder=encoder.config))
            photo.shown_patches(query.region, query.hide, encoder.grid)
            caption = await batcher.caption(photo, query)
        except ImageError as error:
            return caption_record(file.name, error, model=self.name)
        outcome = Captioned(caption, *photo.size, photo.sha256, photo.notes)
        return caption_record(file.name, outcome, model=self.name)

    async def inspect(
        self, file: Upload, query: InspectQuery, render: Callable[["AttentionTrace"], Rendered]
    ) -> Rendered:
        """What `render` makes of a file's trace. Raises ImageError, and ConfigError for options it cannot have."""
        captioner, batcher = self.loaded()
        async with self._inspecting:
            opened = await self.decode(file, full_size)
            search = SearchOptions(captions=query.num_captions).strategy()
            trace = partial(captioner.inspect, opened, caption=query.caption, method=query.method, search=search)
            return await batcher.run(lambda: render(trace(region=query.region, hide=query.hide)))

    async def decode(self, file: Upload, convert: Callable[[OpenedImage], Result]) -> Result:
        """What `convert`, which must be picklable, makes of a file in a decoder process. Raises ImageError."""
        decode = partial(self._decoders.decode, file.data, convert, file.name)
        return await asyncio.get_running_loop().run_in_executor(self._waiting, decode)

    async def _load(self) -> None:
        try:
            captioner = await asyncio.to_thread(_load_model, self.options)
            from captioner.serving.batcher import Batcher

            self._model = captioner, Batcher(captioner, self.options.batch_size, self.metrics.batches.observe)
        except Exception as error:
            self.failure = error
            self._on_failure()


def _load_model(options: ServingOptions) -> "Captioner":
    """The model after a first caption, which is slow."""
    import numpy as np

    from captioner.pipeline import Captioner

    captioner = Captioner.from_pretrained(options.model, device=options.device, int8=options.int8)
    captioner(np.zeros((8, 8, 3), np.uint8))
    return captioner
