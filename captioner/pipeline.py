"""Captioning images: photos, network, search and tokenizer together."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from copy import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self, cast, overload

import numpy as np
import torch
from torch import Tensor

from captioner.any_image import AnyImage, plain_source
from captioner.caption import Caption, Captioned, caption_memory, word_confidences
from captioner.checkpoint import load_model, save_model
from captioner.decoding import Decoders
from captioner.device import find_device, halve_batch
from captioner.errors import ConfigError, ImageError, ResourceError
from captioner.generation import BeamSearch, Strategy, with_captions
from captioner.images import OpenedImage, open_image
from captioner.inspection.tiles import tiled_memory
from captioner.inspection.trace import BY_GRADIENTS, METHODS, AttentionTrace, Method, View
from captioner.model.caption_model import CaptionModel
from captioner.model.decoder import TextDecoder
from captioner.model.linear import AVAILABLE
from captioner.model.memory import Memory
from captioner.model.packed import pack
from captioner.model.static import StaticDecoder
from captioner.model_files import BUNDLED, model_folder
from captioner.photo import Photo, Region
from captioner.prefetch import prefetch
from captioner.prompt import caption_tokens, control_tokens, prefix_tokens
from captioner.tokenizer import Tokenizer

log = logging.getLogger(__name__)

CPU_BATCH, ACCELERATOR_BATCH = 16, 64
"""Default batch sizes: a CPU gains nothing from larger ones, an accelerator does."""


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
        self.int8, self.cuda_graphs = int8, False
        self.style: str | None = None
        self._control: tuple[int, ...] = ()
        self._packed: tuple[list[tuple[int, int]], TextDecoder] | None = None

    @property
    def _decoder(self) -> TextDecoder:
        """The model's decoder, packed at its first use and again after its weights have changed."""
        weights = self.model.decoder.parameters()
        versions = [(each.data_ptr(), 0 if each.is_inference() else each._version) for each in weights]
        if self._packed is None or self._packed[0] != versions:
            decoder = self.model.decoder
            self._packed = versions, StaticDecoder(decoder) if self.cuda_graphs else pack(decoder, int8=self.int8)
        return self._packed[1]

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out the packed decoder, which cannot be pickled."""
        return self.__dict__ | {"_packed": None}

    @classmethod
    def from_pretrained(
        cls, model: str | Path = BUNDLED, *, device: str = "auto", int8: bool = False, cuda_graphs: bool = False
    ) -> Self:
        """A captioner from a model folder, a training checkpoint (.ckpt), or the bundled model.

        `device` is `auto`, `cpu`, `cuda`, `cuda:n` or `mps`; `int8` decodes with weights rounded to 8 bits, which is
        faster and changes a few captions; `cuda_graphs` captures decoding on CUDA (docs/scale.md). Raises
        CheckpointError if the model cannot be loaded, ResourceError if the machine lacks the device or cannot use int8.
        """
        network, tokenizer = load_model(model_folder(model))
        captioner = cls(network, tokenizer, name=str(model), device=find_device(device), int8=int8)
        captioner.cuda_graphs = cuda_graphs and captioner.device.type == "cuda"
        return captioner

    def styled(self, style: str | None = None, length: str | None = None) -> Self:
        """This captioner, writing in a style and length that it has learned; None leaves them to the model.

        Raises ConfigError, which names those that there are.
        """
        styled = copy(self)
        styled.style, styled._control = style, control_tokens(self.tokenizer, style=style, length=length)
        return styled

    def save_pretrained(self, folder: str | Path, *, card: str | None = None) -> None:
        """Write the model as a model folder."""
        text = card or f"# {Path(folder).name}\n\nAn image captioner, saved from {self.name}.\n"
        save_model(Path(folder), self.model, self.tokenizer, card=text)

    @overload
    def __call__(
        self, images: AnyImage, *, search: Strategy = ..., num_captions: int | None = ..., prefix: str = ...
    ) -> Caption: ...

    @overload
    def __call__(
        self,
        images: list[AnyImage],
        *,
        search: Strategy = ...,
        num_captions: int | None = ...,
        prefix: str = ...,
        on_error: Literal["raise"] = ...,
        progress: Callable[[int], object] = ...,
    ) -> list[Caption]: ...

    @overload
    def __call__(
        self,
        images: list[AnyImage],
        *,
        search: Strategy = ...,
        num_captions: int | None = ...,
        prefix: str = ...,
        on_error: Literal["skip"],
        progress: Callable[[int], object] = ...,
    ) -> list[Caption | None]: ...

    def __call__(
        self,
        images: AnyImage | list[AnyImage],
        *,
        search: Strategy = BeamSearch(),
        num_captions: int | None = None,
        prefix: str = "",
        on_error: Literal["raise", "skip"] = "raise",
        progress: Callable[[int], object] = lambda done: None,
    ) -> Caption | list[Caption] | list[Caption | None]:
        """The caption of an image, or a list of captions for a list of images.

        An image is a path, a file object, bytes, a PIL image, or an array (H, W, 3) or tensor (3, H, W) of uint8.
        `num_captions` sets how many the search finds: the best, and its `alternatives`. `prefix` holds the first words
        of every caption. Raises ImageError for an unusable image; with `on_error="skip"`, a list has None in its place.
        `progress` is called with the number of images that are done.
        """
        if on_error not in ("raise", "skip"):
            raise ConfigError(f"on_error {on_error!r}: give raise or skip")
        if num_captions is not None:
            search = with_captions(search, num_captions)
        captions: list[Caption | None] = []
        for result in self.stream(images if isinstance(images, list) else [images], search=search, prefix=prefix):
            if isinstance(result, ImageError):
                if on_error == "raise" or not isinstance(images, list):
                    raise result
                log.warning("left out: %s", result)
            captions.append(None if isinstance(result, ImageError) else result.caption)
            progress(len(captions))
        return captions if isinstance(images, list) else cast(Caption, captions[0])

    save = save_pretrained

    def prepare(self, source: AnyImage, allow_truncated: bool = False) -> Photo:
        """An image as the network takes it. Raises ImageError for an unusable one."""
        return Photo.of(open_image(plain_source(source), allow_truncated=allow_truncated), self.model.encoder.config)

    @torch.inference_mode()
    def features(self, photos: Sequence[Photo]) -> Tensor:
        """The encoder's features (B, N, E) of prepared photos."""
        return cast(Tensor, self.model.encoder(self._pixels(photos)))

    def caption_photos(
        self,
        photos: Sequence[Photo],
        *,
        search: Strategy = BeamSearch(),
        prefix: str = "",
        region: Region | None = None,
        hide: Region | None = None,
        features: Tensor | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> list[Caption]:
        """Captions of prepared photos, all in one batch; the options are those of `stream`.

        `features` are those of the photos, where they are known. `stop` is called before each step of the search; once
        it returns true, the captions end where they are. Raises ConfigError for a prefix or region that no photo can
        have, ImageError if a photo shows nothing of the region, and PyTorch's own error if memory runs out.
        """
        if not photos:
            return []
        features = self.features(photos) if features is None else features
        with torch.inference_mode():
            distances = self.model.unfamiliarity(features)
            memory = self._shown(self.model.decoder.project(features), photos, region, hide)
        tokens, keys = prefix_tokens(self.tokenizer, prefix), [photo.key for photo in photos]
        captions = []
        found = caption_memory(
            self._decoder, self.tokenizer, memory, search, control=self._control, prefix=tokens, keys=keys, stop=stop
        )
        for hypotheses, distance in zip(found, distances, strict=True):
            placed = (replace(each, unfamiliarity=distance, style=self.style) for each in hypotheses)
            best, *others = (each.calibrated(self.model.config.confidence) for each in placed)
            captions.append(replace(best, alternatives=tuple(others)))
        return captions

    def stream(
        self,
        sources: Iterable[AnyImage],
        *,
        search: Strategy = BeamSearch(),
        prefix: str = "",
        region: Region | None = None,
        hide: Region | None = None,
        batch_size: int | None = None,
        workers: int = 2,
        allow_truncated: bool = False,
        isolate: bool = False,
        stop: Callable[[], bool] = lambda: False,
    ) -> Iterator[Captioned | ImageError]:
        """Captions in the order of the sources, as they arrive; an unusable image yields its error.

        `prefix` holds the first words of every caption; `region` hides everything outside it, `hide` everything inside.
        `workers` threads read photos, and another one iterates over `sources`. With `isolate`, each of them decodes in
        a process of its own: an image that crashes it, or takes longer than 20 s, yields its error. A batch is
        captioned once it is full, or once its photos are read and no more sources arrive. Once `stop` returns true, no
        further batch is captioned. Memory use does not grow with the number of sources; when memory runs out, batches
        are halved. Raises ResourceError if it does not suffice for one image.
        """
        prefix_tokens(self.tokenizer, prefix)  # unknown words are an error before any photo is read
        workers, encoder = max(1, workers), self.model.encoder

        def read(source: AnyImage) -> Photo | ImageError:
            try:
                if decoders is None:
                    photo = self.prepare(source, allow_truncated)
                else:
                    photo = decoders.decode(plain_source(source), partial(Photo.of, encoder=encoder.config))
                photo.shown_patches(region, hide, encoder.grid)
            except ImageError as error:
                return error
            return photo

        most = batch_size or (CPU_BATCH if self.device.type == "cpu" else ACCELERATOR_BATCH)
        with ExitStack() as stack:
            decoders = None
            if isolate:
                decoders = stack.enter_context(closing(Decoders(workers, allow_truncated=allow_truncated)))
            for batch in stack.enter_context(closing(prefetch(sources, read, most, workers, stop))):
                photos = [each for each in batch if isinstance(each, Photo)]
                captions: list[Caption] = []
                while len(captions) < len(photos):
                    part = photos[len(captions) : len(captions) + most]
                    try:
                        captions += self.caption_photos(part, search=search, prefix=prefix, region=region, hide=hide)
                    except (MemoryError, RuntimeError) as error:
                        most = halve_batch(len(part), error)
                remaining = iter(captions)
                for each in batch:
                    if isinstance(each, Photo):
                        yield Captioned(next(remaining), *each.size, each.sha256, each.notes)
                    else:
                        yield each

    def inspect(
        self,
        image: AnyImage | OpenedImage,
        *,
        caption: str | None = None,
        search: Strategy = BeamSearch(),
        region: Region | None = None,
        hide: Region | None = None,
        tiles: tuple[int, int] = (1, 1),
        method: Method = "refined",
    ) -> AttentionTrace:
        """Which patches each word of a caption attended to: the model's own caption, or any `caption`.

        If the search returns several captions, the others are the trace's `alternatives`.
        `tiles` (rows, columns) splits a large photo into parts that are encoded separately and read as one memory. The
        trace is by `relevance` instead of `refined` for tiles, whose grid is fine already, and for an encoder without
        an earlier stage. Raises ImageError for an unusable image, ConfigError for a caption that has no words or is too
        long for the model, and for a region of a tiled photo.
        """
        from captioner.inspection.hallucination import hallucination_probabilities  # which captioning does not need

        if method not in METHODS:
            raise ConfigError(f"method {method}: not known; choose from {', '.join(METHODS)}")
        opened = image if isinstance(image, OpenedImage) else open_image(plain_source(image))
        encoder = self.model.encoder
        photo = Photo.of(opened, encoder.config)
        features, stage = None, None
        if tiles == (1, 1):
            if method == "refined":
                features, memory, stage = self.model.encode_with_stage(self._pixels([photo]))
            else:
                with torch.inference_mode():
                    features = self.features([photo])
                    memory = self.model.decoder.project(features)
            memory = self._shown(memory, [photo], region, hide)
            view = View(encoder.grid, encoder.prefix, photo.geometry)
        elif region is not None or hide is not None:
            raise ConfigError("region and tiles: choose one; a region hides patches of the whole photo")
        else:
            memory, view = tiled_memory(self.model, opened.image, tiles)
        with torch.inference_mode():
            blind = self.model.blind(memory)
            [distance] = [None] if features is None else self.model.unfamiliarity(features)
        if caption is None:
            control, keys = self._control, [photo.key]
            [found] = caption_memory(self._decoder, self.tokenizer, memory, search, control=control, keys=keys)
            captions = [list(each.tokens) for each in found]
        else:
            most = self.model.decoder.config.max_length - 1 - len(self._control)
            captions = [caption_tokens(self.tokenizer, caption, most)]
        config, traces = self.model.config, []
        for tokens in captions:
            trace = AttentionTrace.of(
                self._decoder,
                memory,
                [*self._control, *tokens],
                self.tokenizer,
                view=view,
                photo=opened.image,
                method=method,
                blind=blind,
                stage=stage,
            )
            confidences = word_confidences(trace.words, trace.log_probs, distance, config.confidence)
            trace = replace(trace, confidences=confidences, best_heads=config.best_heads, unfamiliarity=distance)
            if config.hallucination and method in BY_GRADIENTS:
                trace = replace(trace, hallucination=hallucination_probabilities(trace, config.hallucination))
            traces.append(trace)
        return replace(traces[0], alternatives=tuple(traces[1:]))

    def _pixels(self, photos: Sequence[Photo]) -> Tensor:
        """(B, 3, height, width) uint8 of photos, on the model's device."""
        return torch.from_numpy(np.stack([photo.pixels for photo in photos])).to(self.device)

    def _shown(self, memory: Memory, photos: Sequence[Photo], region: Region | None, hide: Region | None) -> Memory:
        """The memory of photos, masked outside `region` and inside `hide`."""
        if region is None and hide is None:
            return memory
        encoder = self.model.encoder
        keep = torch.ones(len(photos), memory.positions, dtype=torch.bool)
        keep[:, : encoder.prefix] = False  # prefix tokens have seen the whole photo
        shown = np.stack([photo.shown_patches(region, hide, encoder.grid) for photo in photos])
        keep[:, encoder.patches] = torch.from_numpy(shown).flatten(1)
        return memory.mask(keep.to(self.device))
