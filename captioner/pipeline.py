"""Images in, captions out. The one place where photos, network, search and words meet."""

import hashlib
import logging
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar, overload

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from captioner.checkpoint import load_model, save_model
from captioner.errors import ConfigError, ImageError, ResourceError
from captioner.generation import BeamSearch, Hypothesis, Strategy, generate
from captioner.geometry import Geometry, to_pixels
from captioner.images import ImageSource, OpenedImage, open_image
from captioner.inspection.trace import METHODS, AttentionTrace, Method, View
from captioner.model.caption_model import CaptionModel
from captioner.model.decoder import TextDecoder
from captioner.model.linear import AVAILABLE
from captioner.model.memory import Memory, concat
from captioner.model.packed import pack
from captioner.tokenizer import Tokenizer

log = logging.getLogger(__name__)

BUNDLED = "bundled"
DEFAULT_BATCH, ACCELERATOR_BATCH = 16, 64
"""Images at once: on a CPU more are no faster, an accelerator has more to do at a time."""
READ_AHEAD = 2
"""Batches of photos that are read while one is captioned; memory is bounded by it."""

MOST_TILES = 64
NO_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "bad_alloc",
    "alloc_failed",
    "could not create a primitive",  # oneDNN, which names no cause
)
"""Signs, in messages of PyTorch and its libraries, that memory was short."""

T = TypeVar("T")
Region = tuple[float, float, float, float]


@dataclass(frozen=True)
class CaptionWord:
    """A word and the natural logarithm of its probability."""

    text: str
    log_prob: float


@dataclass(frozen=True)
class Caption:
    """A caption, how probable the model finds it, and the next best ones where more than one was asked for."""

    text: str
    log_prob: float
    """Sum of the natural-log probabilities of its tokens, the end token included; no length penalty."""
    words: tuple[CaptionWord, ...]
    tokens: tuple[int, ...]
    """Without the start token; the end token is there unless the caption was cut off."""
    alternatives: tuple["Caption", ...] = ()
    cut_off: bool = False
    """Whether the longest length was reached before the end."""

    @property
    def confidence(self) -> float:
        """The geometric mean of the tokens' probabilities."""
        return math.exp(self.log_prob / max(1, len(self.tokens)))


@dataclass(frozen=True)
class Captioned:
    """One input and its caption; `width` and `height` are the upright photo's."""

    caption: Caption
    width: int
    height: int
    sha256: str | None
    notes: tuple[str, ...]


class _Read(NamedTuple):
    """What is kept of a photo until it is captioned; `key` names it to Sampling's noise."""

    size: tuple[int, int]
    """(width, height)"""
    key: str
    sha256: str | None
    notes: tuple[str, ...]
    geometry: Geometry
    pixels: Tensor


class Captioner:
    """A captioning model with everything it needs; `captioner("dog.jpg").text`."""

    def __init__(
        self, model: CaptionModel, tokenizer: Tokenizer, *, name: str, device: str = "cpu", int8: bool = False
    ) -> None:
        self.model = model.eval().to(device)
        self.tokenizer = tokenizer
        self.name = name
        self.device = torch.device(device)
        if int8 and (self.device.type != "cpu" or not AVAILABLE):
            raise ResourceError(f"int8: is for x86 processors, and the device is {device}; leave it out, or take cpu")
        self.int8 = int8
        self._packed: TextDecoder | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Without the packed decoder, which cannot be pickled; it is made anew where it is needed."""
        return self.__dict__ | {"_packed": None}

    @property
    def _decoder(self) -> TextDecoder:
        """The model's decoder, packed at its first use."""
        if self._packed is None:
            self._packed = pack(self.model.decoder, int8=self.int8)
        return self._packed

    @classmethod
    def from_pretrained(cls, model: str | Path = BUNDLED, *, device: str = "auto", int8: bool = False) -> Self:
        """A captioner from a model folder, a training checkpoint (.ckpt), or the bundled model.

        `device` is `auto`, `cpu`, `cuda`, `cuda:n` or `mps`; `int8` writes captions with weights rounded to 8 bits,
        which is faster and changes a few. Raises CheckpointError where the model cannot be loaded, ResourceError where
        the machine has no such device or no use for int8.
        """
        source = model_folder(model)
        network, tokenizer = load_model(source)
        return cls(network, tokenizer, name=str(model), device=_device(device), int8=int8)

    def save_pretrained(self, folder: str | Path, *, card: str | None = None) -> None:
        """Write the model as a model folder."""
        text = card or f"# {Path(folder).name}\n\nAn image captioner, saved from {self.name}.\n"
        save_model(Path(folder), self.model, self.tokenizer, card=text)

    @overload
    def __call__(self, images: ImageSource, *, search: Strategy = ...) -> Caption: ...

    @overload
    def __call__(self, images: list[ImageSource], *, search: Strategy = ...) -> list[Caption]: ...

    def __call__(
        self,
        images: ImageSource | list[ImageSource],
        *,
        search: Strategy = BeamSearch(),  # noqa: B008
    ) -> Caption | list[Caption]:
        """The caption of an image, or a list of captions for a list of images.

        An image is a path, bytes, a PIL image or an array (H, W, 3) uint8. Raises ImageError for an unusable one.
        """
        sources = images if isinstance(images, list) else [images]
        found = []
        for result in self.stream(sources, search=search):
            if isinstance(result, ImageError):
                raise result
            found.append(result.caption)
        return found if isinstance(images, list) else found[0]

    def stream(
        self,
        sources: Iterable[ImageSource],
        *,
        search: Strategy = BeamSearch(),  # noqa: B008
        prefix: str = "",
        region: Region | None = None,
        hide: Region | None = None,
        batch_size: int | None = None,
        workers: int = 2,
        allow_truncated: bool = False,
    ) -> Iterator[Captioned | ImageError]:
        """Captions in the order of the sources, while they are read; an unusable image gives its error.

        `prefix` are the caption's first words; `region` (x, y, width, height), fractions of the upright photo, hides
        everything else, `hide` that part; `workers` threads read photos. Memory does not grow with the sources; where
        it does not suffice, batches are halved. Raises ResourceError where it does not suffice for one image.
        """
        forced = self._prefix(prefix)

        def read(source: ImageSource) -> _Read | ImageError:
            try:
                opened, geometry, pixels = self._read(source, allow_truncated)
            except ImageError as error:
                return error
            # The photo itself, much larger than its pixels, is not kept.
            return _Read(opened.image.size, _key(opened), opened.sha256, opened.notes, geometry, pixels)

        most = batch_size or (DEFAULT_BATCH if self.device.type == "cpu" else ACCELERATOR_BATCH)
        for batch in _read_ahead(sources, read, most, max(1, workers)):
            good = [each for each in batch if not isinstance(each, ImageError)]
            found: list[Caption] = []
            while len(found) < len(good):
                part = good[len(found) : len(found) + most]
                try:
                    found += self._caption(part, search, forced, region, hide)
                except (MemoryError, RuntimeError) as error:
                    most = _fewer(len(part), error)
            captions = iter(found)
            for each in batch:
                if isinstance(each, ImageError):
                    yield each
                else:
                    yield Captioned(next(captions), *each.size, each.sha256, each.notes)

    def inspect(
        self,
        image: ImageSource,
        *,
        caption: str | None = None,
        search: Strategy = BeamSearch(),  # noqa: B008
        region: Region | None = None,
        hide: Region | None = None,
        tiles: tuple[int, int] = (1, 1),
        method: Method = "relevance",
    ) -> AttentionTrace:
        """Which patches each word of a caption looked at: the model's own caption, or any `caption`.

        `tiles` (rows, columns) cuts a large photo into parts that are encoded one by one and read as one memory.
        Raises ImageError for an unusable image, ConfigError for a caption without words or too long for the model, and
        for a region of a tiled photo.
        """
        from captioner.inspection.hallucination import hallucination_probabilities  # which captioning does not need

        if method not in METHODS:
            raise ConfigError(f"method {method}: not known; choose from {', '.join(METHODS)}")
        opened, geometry, pixels = self._read(image, allow_truncated=False)
        encoder = self.model.encoder
        if tiles == (1, 1):
            view = View(encoder.grid, encoder.prefix, geometry)
            with torch.inference_mode():
                memory = self._memory([geometry], pixels[None], region, hide)
        elif region is not None or hide is not None:
            raise ConfigError("region and tiles: choose one; a region hides patches of the whole photo")
        else:
            memory, view = self._tiled(opened.image, tiles)
        with torch.inference_mode():
            blind = self.model.blind(memory)
        if caption is None:
            [[found, *_]] = caption_memory(self._decoder, self.tokenizer, memory, search, keys=[_key(opened)])
            tokens = list(found.tokens)
        else:
            tokens = self._given(caption)
        trace = AttentionTrace.of(
            self._decoder,
            memory,
            tokens,
            self.tokenizer,
            view=view,
            photo=opened.image,
            method=method,
            blind=blind,
        )
        weights = self.model.config.hallucination if method == "relevance" else ()
        return replace(trace, hallucination=hallucination_probabilities(trace, weights)) if weights else trace

    def unknown_words(self, text: str) -> list[str]:
        """The words of a text that the model does not know: in a trace they are `<unk>`."""
        if self.tokenizer.kind != "word":
            return []
        return [word for word in text.split() if self.tokenizer.unk in self.tokenizer.encode(word)]

    def _read(self, source: ImageSource, allow_truncated: bool) -> tuple[OpenedImage, Geometry, Tensor]:
        opened = open_image(source, allow_truncated=allow_truncated)
        encoder = self.model.encoder.config
        assert encoder.image_size is not None
        assert encoder.interpolation is not None
        geometry = Geometry.of(*opened.image.size, size=encoder.image_size, fit=encoder.fit)
        return opened, geometry, torch.from_numpy(to_pixels(opened.image, geometry, encoder.interpolation))

    def _caption(
        self,
        read: Sequence["_Read"],
        search: Strategy,
        prefix: tuple[int, ...],
        region: Region | None,
        hide: Region | None,
    ) -> list[Caption]:
        pixels = torch.stack([each.pixels for each in read])
        with torch.inference_mode():
            memory = self._memory([each.geometry for each in read], pixels, region, hide)
        found = caption_memory(
            self._decoder, self.tokenizer, memory, search, prefix=prefix, keys=[each.key for each in read]
        )
        return [replace(best, alternatives=tuple(others)) for best, *others in found]

    def _memory(
        self, geometries: Sequence[Geometry], pixels: Tensor, region: Region | None, hide: Region | None
    ) -> Memory:
        """pixels (B, 3, height, width) -> memory, without what lies outside `region` or inside `hide`."""
        memory = self.model.encode(pixels.to(self.device))
        if region is None and hide is None:
            return memory
        encoder = self.model.encoder
        keep = torch.ones(len(geometries), memory.positions, dtype=torch.bool)
        keep[:, : encoder.prefix] = False  # prefix tokens have seen the whole photo
        for row, geometry in enumerate(geometries):
            shown = np.ones(encoder.grid, dtype=bool) if region is None else geometry.patches_in(region, encoder.grid)
            if hide is not None:
                shown = shown & ~geometry.patches_in(hide, encoder.grid)
            if not shown.any():
                raise ConfigError("no patch of the photo is left that shows half of what may be seen; hide less of it")
            keep[row, encoder.patches] = torch.from_numpy(shown).flatten()
        return memory.mask(keep.to(self.device))

    def _tiled(self, photo: Image, tiles: tuple[int, int]) -> tuple[Memory, View]:
        """One memory of the photo's tiles, and the large grid that their patches make together."""
        rows, columns = tiles
        encoder = self.model.encoder
        size = encoder.image_size
        if not 1 <= rows <= photo.height or not 1 <= columns <= photo.width or rows * columns > MOST_TILES:
            raise ConfigError(f"tiles {rows}x{columns}: give 1x1 to {MOST_TILES} tiles, none of less than a pixel")
        whole = Geometry.of(*photo.size, size=(rows * size[0], columns * size[1]), fit="squash")
        assert encoder.config.interpolation is not None
        pixels = torch.from_numpy(to_pixels(photo, whole, encoder.config.interpolation))
        cut = pixels.unflatten(2, (columns, size[1])).unflatten(1, (rows, size[0])).permute(1, 3, 0, 2, 4).flatten(0, 1)
        with torch.inference_mode():
            every = self.model.encode(cut.to(self.device))
        memory = concat([every.select(torch.tensor([tile])) for tile in range(rows * columns)])
        high, wide = encoder.grid
        places = torch.arange(memory.positions).view(rows, columns, -1)
        prefix, patches, null = places.split(
            [encoder.prefix, high * wide, every.positions - encoder.prefix - high * wide], 2
        )
        # Patch (y, x) of tile (r, c) is patch (r·h + y, c·w + x) of the large grid.
        laid = patches.unflatten(2, (high, wide)).permute(0, 2, 1, 3)
        order = torch.cat([prefix.flatten(), laid.flatten(), null.flatten()]).tolist()
        return memory, View((rows * high, columns * wide), prefix.numel(), whole, tuple(order))

    def _prefix(self, text: str) -> tuple[int, ...]:
        if unknown := self.unknown_words(text):
            raise ConfigError(
                f"prefix {text!r}: the model does not know {', '.join(unknown)}; use words it was trained on"
            )
        return tuple(self.tokenizer.encode(text))

    def _given(self, caption: str) -> list[int]:
        tokens = [*self.tokenizer.encode(caption), self.tokenizer.eos]
        most = self.model.decoder.config.max_length
        if len(tokens) == 1:
            raise ConfigError(f"caption {caption[:40]!r}: no words in it; give at least one")
        if len(tokens) > most:
            raise ConfigError(
                f"caption {caption[:40]!r}...: {len(tokens) - 1} tokens, this model takes {most - 1}; shorten it"
            )
        return tokens


def caption_memory(
    decoder: TextDecoder,
    tokenizer: Tokenizer,
    memory: Memory,
    search: Strategy,
    *,
    prefix: Sequence[int] = (),
    keys: Sequence[str] | None = None,
) -> list[list[Caption]]:
    """The captions of each image of a memory, best first; `prefix` and `keys` are those of `generate`."""
    # A model of few positions writes shorter captions than the default allows.
    most = min(search.max_length, decoder.config.max_length - 1)
    found = generate(
        decoder,
        memory,
        replace(search, max_length=most, min_length=min(search.min_length, most - 1)),
        bos=tokenizer.bos,
        eos=tokenizer.eos,
        pad=tokenizer.pad,
        suppressed=tokenizer.suppressed,
        prefix=prefix,
        keys=keys,
    )
    return [[_worded(tokenizer, hypothesis) for hypothesis in hypotheses] for hypotheses in found]


def _worded(tokenizer: Tokenizer, hypothesis: Hypothesis) -> Caption:
    tokens, log_probs = hypothesis
    words = tuple(
        CaptionWord(word.text, math.fsum(log_probs[word.start : word.stop])) for word in tokenizer.words(tokens)
    )
    cut_off = tokenizer.eos not in tokens
    return Caption(tokenizer.decode(tokens), hypothesis.log_prob, words, tuple(tokens), cut_off=cut_off)


def _key(opened: OpenedImage) -> str:
    """What an image's noise depends on: its file's hash; without a file, the pixels' own."""
    return opened.sha256 or hashlib.sha256(opened.image.tobytes()).hexdigest()


def model_folder(model: str | Path) -> Path:
    """Where a model is: the bundled one by its name, anything else as a path."""
    if str(model) == BUNDLED and not Path(BUNDLED).exists():
        return Path(str(resources.files("captioner") / "bundled"))
    return Path(model)


def _device(name: str) -> str:
    if name == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ResourceError(f"device {name!r}: not available here ({reason}); use auto or cpu") from error
    return name


def _fewer(images: int, error: Exception) -> int:
    """How many images to try at once after so many had no room. Raises what is no lack of memory."""
    told = isinstance(error, MemoryError | torch.OutOfMemoryError)
    if not told and not any(sign in str(error).lower() for sign in NO_MEMORY):
        raise error
    if images == 1:
        reason = str(error).strip().splitlines() or ["MemoryError"]
        raise ResourceError(
            f"out of memory for a single image ({reason[0]}); close other programs, or take a smaller model"
        ) from error
    log.warning("out of memory for %d images at once; going on with %d", images, images // 2)
    return images // 2


def _read_ahead(
    sources: Iterable[ImageSource], read: Callable[[ImageSource], T], batch_size: int, workers: int
) -> Iterator[list[T]]:
    """Batches of what `read` makes of the sources, in their order, a few batches ahead of their use."""
    pool = ThreadPoolExecutor(workers)
    pending: deque[Future[T]] = deque()
    try:
        for source in sources:
            pending.append(pool.submit(read, source))
            if len(pending) == batch_size * READ_AHEAD:
                yield [pending.popleft().result() for _ in range(batch_size)]
        while pending:
            yield [pending.popleft().result() for _ in range(min(batch_size, len(pending)))]
    finally:  # an interruption does not wait for photos that nobody will caption
        pool.shutdown(cancel_futures=True)
