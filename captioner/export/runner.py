"""Captions and attention by ONNX Runtime, without PyTorch: a module, and a command line.

B images · K beams of an image · T tokens · V vocabulary · W words · L layers · H heads · N memory positions

`captioner export onnx` copies this file into the folder that it writes, as run.py.
"""

import argparse
import json
import math
import sys
from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from captioner.consensus import by_consensus, first_word
from captioner.errors import ImageError
from captioner.geometry import Geometry, to_pixels
from captioner.images import ImageSource, open_image
from captioner.text import printable
from captioner.tokenizer import Tokenizer

ENCODE, PROJECT, DECODE_STEP = "encode.onnx", "project.onnx", "decode_step.onnx"
CONFIG, TOKENIZER = "config.json", "tokenizer.json"
PAST, PRESENT = "past_", "present_"
"""Prefixes of the cache's names before and after a step; the name of a memory follows."""
COMPACT_SHARE = 0.25
"""Compact the batch once this share of its images has finished."""
DIGITS = 4
"""Decimals of log-probabilities in JSON."""
PANEL, LABEL, COLUMNS = 240, 20, 5
"""Longest side of a photo in an overlay and height of the word above it, in pixels; photos side by side."""
HEAT, STRONGEST = (255, 60, 0), 0.75
"""Color of attention, and its opacity where a word attended most."""

Floats: TypeAlias = NDArray[np.float32]
Integers: TypeAlias = NDArray[np.int64]
Memory: TypeAlias = dict[str, Floats]
"""Keys and values of every layer, by name."""


@dataclass(frozen=True, kw_only=True)
class BeamSearch:
    """The `width` best beginnings are kept; finished captions compete by log-probability / length^length_penalty.

    With `consensus`, the one of the `width` best captions that has most in common with the others comes first.
    """

    width: int = 5
    captions: int = 1
    """Captions of each image, best first; at most `width`."""
    consensus: bool = True
    min_length: int = 1
    max_length: int = 32
    """Most tokens, the end token included."""
    length_penalty: float = 1.0
    no_repeat_ngram: int | None = None
    """No run of this many tokens comes twice; 0 allows all. None: a model of words repeats no bigram and no object."""


@dataclass(frozen=True)
class Photo:
    """An upright photo, and its pixels (3, height, width) uint8 at the model's size."""

    image: Image.Image
    geometry: Geometry
    pixels: NDArray[np.uint8]


@dataclass(frozen=True)
class Hypothesis:
    """A caption as tokens, without the start token; the end token is there unless the caption was cut off."""

    tokens: tuple[int, ...] = ()
    token_log_probs: tuple[float, ...] = ()
    score: float = 0.0
    """The sum of the log-probabilities as float32 has it."""

    def extended(self, token: int, log_prob: float, score: float) -> "Hypothesis":
        """The hypothesis with one token more."""
        return Hypothesis((*self.tokens, token), (*self.token_log_probs, log_prob), score)


@dataclass(frozen=True)
class Caption:
    """A caption and its words, with natural-log probabilities."""

    text: str
    log_prob: float
    """The sum over its tokens, the end token included."""
    words: tuple[tuple[str, float], ...]
    tokens: tuple[int, ...]


class OnnxCaptioner:
    """The captioner in a folder that `captioner export onnx` wrote."""

    def __init__(self, folder: str | Path, options: onnxruntime.SessionOptions | None = None) -> None:
        folder = Path(folder)
        self.config: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        self.tokenizer = Tokenizer.load(folder / TOKENIZER)
        self._encode, self._project, self._decode_step = (
            onnxruntime.InferenceSession(folder / name, options, providers=["CPUExecutionProvider"])
            for name in (ENCODE, PROJECT, DECODE_STEP)
        )
        self._memory_names = [output.name for output in self._project.get_outputs()]
        # (B, K, H, T, d), of which H and d are numbers
        self._past_shapes = {each.name: each.shape for each in self._decode_step.get_inputs() if PAST in each.name}

    def prepare(self, source: ImageSource) -> Photo:
        """A photo as the model takes it. Raises ImageError for an unusable one."""
        encoder, image = self.config["model"]["encoder"], open_image(source).image
        geometry = Geometry.of(*image.size, size=encoder["image_size"], fit=encoder["fit"])
        return Photo(image, geometry, to_pixels(image, geometry, encoder["interpolation"]))

    def caption(self, photos: Sequence[Photo], search: BeamSearch = BeamSearch()) -> list[list[Caption]]:
        """The captions of each photo, best first; all photos are one batch."""
        found = self.search(self.encode(np.stack([photo.pixels for photo in photos])), search) if photos else []
        return [[self._to_caption(each) for each in captions] for captions in found]

    def encode(self, pixels: NDArray[np.uint8]) -> Memory:
        """pixels (B, 3, height, width) -> the memory: keys and values (B, H, N, d) of every layer."""
        [features] = self._encode.run(None, {"images": pixels})
        return self.project(features)

    def project(self, features: Floats) -> Memory:
        """features (B, N, E) -> the memory."""
        return dict(zip(self._memory_names, self._project.run(None, {"features": features}), strict=True))

    def empty_cache(self, images: int) -> Memory:
        """The cache (B, 1, H, 0, d) before the start token."""
        shapes = self._past_shapes.items()
        return {name: np.empty((images, 1, heads, 0, width), np.float32) for name, (_, _, heads, _, width) in shapes}

    def decode_step(self, tokens: Integers, memory: Memory, past: Memory) -> tuple[Floats, Floats, Memory]:
        """tokens (B, K) that follow a cache of T tokens (B, K, H, T, d) -> log-probabilities of the next token
        (B, K, V), attention weights (B, K, L, H, N), and the cache with these tokens."""
        log_probs, weights, *present = self._decode_step.run(None, {"tokens": tokens, **memory, **past})
        return log_probs, weights, dict(zip(self._past_shapes, present, strict=True))

    def search(self, memory: Memory, search: BeamSearch) -> list[list[Hypothesis]]:
        """The captions of each image as tokens, best first."""
        once: frozenset[int] = frozenset()
        if search.no_repeat_ngram is None and self.tokenizer.kind == "word":
            search, once = replace(search, no_repeat_ngram=2), frozenset(self.config["onnx"]["object_tokens"])
        longest = min(search.max_length, self.config["model"]["decoder"]["max_length"] - 1)
        search = replace(search, max_length=longest, min_length=min(search.min_length, longest - 1))
        eos, suppressed = self.tokenizer.eos, self.tokenizer.suppressed
        every = [Beams(search, eos, suppressed, once) for _ in memory[self._memory_names[0]]]
        beams = every  # those that are not settled
        # All rows of an image begin alike, so the start token passes once an image.
        tokens = np.full((len(beams), 1), self.tokenizer.bos)
        log_probs, _, past = self.decode_step(tokens, memory, self.empty_cache(len(beams)))
        log_probs = np.repeat(log_probs, search.width, axis=1)
        past = {name: np.repeat(values, search.width, axis=1) for name, values in past.items()}
        for length in range(longest):
            parents = np.array([each.step(choices) for each, choices in zip(beams, log_probs, strict=True)])
            settled = np.array([each.settled for each in beams])
            if settled.all() or length + 1 == longest:
                break
            if settled.mean() >= COMPACT_SHARE:
                left = np.flatnonzero(~settled)
                beams, parents = [beams[place] for place in left], parents[left]
                memory, past = ({name: each[left] for name, each in values.items()} for values in (memory, past))
            rows = np.arange(len(beams))[:, None]
            past = {name: values[rows, parents] for name, values in past.items()}
            tokens = np.array([[row.tokens[-1] for row in each.running] for each in beams])
            log_probs, _, past = self.decode_step(tokens, memory, past)
        return [each.captions() for each in every]

    def attention(self, photo: Photo, caption: Caption) -> Floats:
        """(W, L, H, N): the attention of each word at the step that predicts it, the mean over its tokens.

        The positions are prefix tokens, then patches row by row, then the null patch if the model has one.
        """
        memory, past, weights = self.encode(photo.pixels[None]), self.empty_cache(1), []
        for token in (self.tokenizer.bos, *caption.tokens[:-1]):
            _, found, past = self.decode_step(np.array([[token]]), memory, past)
            weights.append(found[0, 0])
        words = self.tokenizer.words(caption.tokens)
        return np.array([np.mean(weights[word.start : word.stop], axis=0) for word in words], np.float32)

    def draw_attention(self, photo: Photo, caption: Caption) -> Image.Image:
        """The photo once for each word, colored where the word attended: the mean over layers and heads."""
        (high, wide), start = self.config["onnx"]["grid"], self.config["onnx"]["prefix"]
        maps = self.attention(photo, caption)[..., start : start + high * wide].mean(axis=(1, 2))
        small = photo.image.copy()
        small.thumbnail((PANEL, PANEL))
        width, height = small.width, small.height + LABEL
        size = min(COLUMNS, len(maps)) * width, math.ceil(len(maps) / COLUMNS) * height
        sheet, font = Image.new("RGB", size, "white"), ImageFont.load_default(LABEL * 3 // 4)
        for place, ((word, _), values) in enumerate(zip(caption.words, maps, strict=True)):
            left, top = place % COLUMNS * width, place // COLUMNS * height
            heat = photo.geometry.heatmap(values.reshape(high, wide) / values.max(), size=small.size)
            ImageDraw.Draw(sheet).text((left + 2, top), printable(word), fill="black", font=font)
            sheet.paste(small, (left, top + LABEL))
            opacity = Image.fromarray((heat * (255 * STRONGEST)).astype(np.uint8))
            sheet.paste(HEAT, (left, top + LABEL, left + width, top + height), opacity)
        return sheet

    def _to_caption(self, found: Hypothesis) -> Caption:
        tokens, log_probs = found.tokens, found.token_log_probs
        words = [(word.text, math.fsum(log_probs[word.start : word.stop])) for word in self.tokenizer.words(tokens)]
        return Caption(self.tokenizer.decode(tokens), math.fsum(log_probs), tuple(words), tokens)


class Beams:
    """The K running captions of an image and the best finished ones, by the rules of the package's `BeamState`."""

    def __init__(self, search: BeamSearch, eos: int, suppressed: Sequence[int] = (), once: Container[int] = ()) -> None:
        """Tokens `suppressed` are never chosen, those of `once` no second time."""
        self.search, self.eos, self.suppressed, self.once = search, eos, list(suppressed), once
        # All rows are equal at first: only one may have children.
        self.running = [Hypothesis(score=0.0 if row == 0 else -math.inf) for row in range(search.width)]
        self.finished: list[Hypothesis] = []  # best first, at most K
        self.settled = False
        """Whether no running caption can still beat any of those to be returned."""

    def step(self, log_probs: Floats) -> list[int]:
        """Choose the best continuations by log-probabilities (K, V), which are changed; return the rows (K) that they
        continue."""
        self._rule_out(log_probs)
        width, words = log_probs.shape
        scores = np.array([row.score for row in self.running], np.float32)[:, None] + log_probs
        # Each of the K rows ends at most once, so the best 2K hold K that go on.
        places = np.argpartition(scores, -2 * width, axis=None)[-2 * width :]
        places = places[np.argsort(-scores.flat[places], kind="stable")]
        ended, kept = [], []
        for rank, place in enumerate(places.tolist()):
            parent, token = divmod(place, words)
            row = self.running[parent].extended(token, float(log_probs.flat[place]), float(scores.flat[place]))
            if token != self.eos:
                kept.append((parent, row))
            elif rank < width:  # an ending outside the best K is no better than a row that goes on
                ended.append(row)
        if not self.settled:
            self.finished = self._best([*self.finished, *ended])
        self.running = [row for _, row in kept[:width]]
        self.settled = self.settled or self._is_settled()
        return [parent for parent, _ in kept[:width]]

    def captions(self) -> list[Hypothesis]:
        """The best captions: the finished ones and, unless settled, the running ones as they stand."""
        best = self._best([*self.finished, *([] if self.settled else self.running)])
        if self.search.consensus and len(best) > 1:
            words = [[token for token in row.tokens if token != self.eos] for row in best]
            lengths = np.array([[len(row) for row in words]])
            tokens = np.array([[row + [self.eos] * (lengths.max() - len(row)) for row in words]], np.int64)
            [order] = by_consensus(tokens, lengths, first_word({self.eos, *self.suppressed}))
            best = [best[place] for place in order]
        return best[: self.search.captions]

    def _rule_out(self, log_probs: Floats) -> None:
        """Make what is not allowed impossible, by the rules of the package's `mask_choices`."""
        log_probs[:, self.suppressed] = -math.inf
        size = self.search.no_repeat_ngram or 0
        for choices, row in zip(log_probs, self.running, strict=True):
            choices[[token for token in row.tokens if token in self.once]] = -math.inf
            ngrams = [row.tokens[start : start + size] for start in range(len(row.tokens) - size + 1)] if size else []
            last = row.tokens[len(row.tokens) - size + 1 :]
            choices[[ngram[-1] for ngram in ngrams if ngram[:-1] == last]] = -math.inf
        if len(self.running[0].tokens) < self.search.min_length:
            ends = log_probs[:, self.eos].copy()
            log_probs[:, self.eos] = -math.inf
            stuck = np.isneginf(log_probs.max(axis=1))  # no other choice
            log_probs[stuck, self.eos] = ends[stuck]

    def _is_settled(self) -> bool:
        if self.search.width == 1:  # greedy search: its first end is its last
            return len(self.finished) > 0
        captions = self.search.captions
        needed, last = (self.search.width, 0) if self.search.consensus else (captions, captions - 1)
        if len(self.finished) < needed:
            return False
        best = self.running[0]
        length = self.search.max_length if self.search.length_penalty > 0 else len(best.tokens)
        return self._penalized(self.finished[last]) >= self._penalized(best, length)

    def _best(self, rows: list[Hypothesis]) -> list[Hypothesis]:
        """The K best of possible captions."""
        possible = [row for row in rows if row.score > -math.inf]
        return sorted(possible, key=self._penalized, reverse=True)[: self.search.width]

    def _penalized(self, row: Hypothesis, length: int | None = None) -> float:
        """The score by which captions compete."""
        return float(np.float32(row.score) / np.float32((length or len(row.tokens)) ** self.search.length_penalty))


def main(argv: Sequence[str] | None = None, folder: Path = Path(__file__).parent) -> int:
    """Print the captions of photos; unusable photos are reported and skipped, and the exit code is then 1."""
    parser = argparse.ArgumentParser(description="Caption photos with ONNX Runtime.")
    add = parser.add_argument
    add("photos", metavar="PHOTO", nargs="+")
    add("--beam", type=int, default=5, metavar="W", help="width of beam search; default: 5")
    add("--length", choices=("short", "medium", "long"), default="medium", help="default: medium")
    add("--batch-size", type=int, default=8, metavar="N", help="photos per batch; default: 8")
    add("--json", action="store_true", help="print a JSON object per photo, with log-probabilities")
    add("--overlays", type=Path, metavar="DIR", help="save where each word looked as DIR/NAME.png")
    arguments = parser.parse_args(argv)
    captioner, size, code = OnnxCaptioner(folder), max(1, arguments.batch_size), 0
    search = BeamSearch(width=max(1, arguments.beam), **captioner.config["onnx"]["lengths"][arguments.length])
    for start in range(0, len(arguments.photos), size):
        photos: list[tuple[str, Photo]] = []
        for path in arguments.photos[start : start + size]:
            try:
                photos.append((path, captioner.prepare(path)))
            except ImageError as error:
                print(f"run.py: {error}", file=sys.stderr)
                code = 1
        captions = captioner.caption([photo for _, photo in photos], search)
        for (path, photo), [caption] in zip(photos, captions, strict=True):
            if arguments.overlays and caption.words:
                arguments.overlays.mkdir(parents=True, exist_ok=True)
                captioner.draw_attention(photo, caption).save(arguments.overlays / f"{Path(path).stem}.png")
            name = f"{printable(path)}\t" if len(arguments.photos) > 1 else ""
            words = [{"text": word, "log_prob": round(log_prob, DIGITS)} for word, log_prob in caption.words]
            record = {
                "path": path,
                "caption": caption.text,
                "log_prob": round(caption.log_prob, DIGITS),
                "words": words,
            }
            print(json.dumps(record, ensure_ascii=False) if arguments.json else name + caption.text)
    return code


if __name__ == "__main__":
    sys.exit(main())
