"""Whether maps tell where a word came from, by two tests that no map passes by construction.

*Pointing*: four photos in a mosaic, the caption of one of them forced; a word's map must lie on that photo. Chance is a
quarter, and no boxes are needed. *Pixels*: the patches that a map ranks first are blurred in the photo, or shown in the
blurred photo, and the photo is encoded again; log p(word) must fall, or rise, faster than for other rankings (deletion
and insertion; Petsiuk et al. 2018).

K words · M maps of each · L layers · H heads · h·w patches · P = h·w
"""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from torch import Tensor

from captioner.data.annotations import CaptionedImage
from captioner.data.dataset import read_photo, view_pixels
from captioner.data.mosaics import CORNERS, Mosaics, corner_shares, mosaic_pixels
from captioner.errors import AnnotationError, ConfigError
from captioner.geometry import Geometry
from captioner.inspection.reading import Reading
from captioner.inspection.relevance import perturbation, relevance
from captioner.metrics.object_words import NounList
from captioner.metrics.significance import Statistics, interval, resample
from captioner.model.caption_model import CaptionModel
from captioner.model.memory import Memory
from captioner.tokenizer import Tokenizer

NEEDED = 1.0
"""Nats by which the image must raise log p of a word for it to count as seen."""
FRACTIONS = (0.1, 0.2, 0.4)
"""Shares of the patches that the pixel test blurs or shows."""
RANDOM_MAPS = 10
BLUR = 0.08
"""Radius of the blur as a share of the input's side: what lies in a patch cannot be told any more."""
HEADS = 6
"""Most heads of the best set."""
TINY = 1e-12
FUNCTION_WORDS = frozenset(
    (
        *("a", "an", "the", "this", "that", "these", "those", "some", "and", "or", "but", "while", "as", "with", "of"),
        *("without", "in", "on", "at", "by", "to", "from", "for", "near", "over", "under", "into", "onto", "through"),
        *("up", "down", "out", "off", "his", "her", "its", "their", "is", "are", "was", "were", "be", "being", "been"),
        *("has", "have", "there", "which", "who", "it", "he", "she", "they"),
    )
)

Maps: TypeAlias = Mapping[str, NDArray[np.float32]]
"""Name -> the map of each word (W, h·w), not negative."""
MapMaker: TypeAlias = Callable[[CaptionModel, Reading], Maps]


class Estimate(NamedTuple):
    """A mean over words and its 95 % bootstrap interval over photos."""

    value: float
    low: float
    high: float
    words: int


@dataclass(frozen=True)
class WordTable:
    """What was measured of K words, a column a measure."""

    photos: NDArray[np.int64]
    """(K,) whose caption the word is of."""
    words: tuple[str, ...]
    named: NDArray[np.bool_]
    """(K,) whether the word names an object."""
    needs: NDArray[np.float32]
    shares: NDArray[np.float32]
    """(K,) how much of the next word's distribution is there without the image."""
    null_mass: NDArray[np.float32]
    columns: Mapping[str, NDArray[np.float32]]
    """Measure -> (K,)"""
    heads: NDArray[np.float32] | None = None
    """(K, L, H, 2): attention on the right corner, and on all patches."""

    @property
    def seen_objects(self) -> NDArray[np.bool_]:
        """(K,) words that name objects and need the image."""
        return self.named & (self.needs > NEEDED)

    def mean(self, column: str, chosen: NDArray[np.bool_], minus: str | None = None) -> Estimate:
        """The mean of a column over the chosen words, or of its difference from another."""
        values = self.columns[column] - (0.0 if minus is None else self.columns[minus])
        return _estimate(values[chosen], self.photos[chosen])


def read_caption(model: CaptionModel, tokenizer: Tokenizer, memory: Memory, caption: str) -> Reading:
    """Force a caption on the memory of one image; without the image means null patches alone, or a gray picture."""
    ids = tokenizer.encode(caption)[: model.decoder.config.max_length - 2]
    with torch.inference_mode():
        blind = model.blind(memory)
    return Reading.of(model.decoder, tokenizer, memory, [*ids, tokenizer.eos], blind)


def standard_maps(model: CaptionModel, forced: Reading) -> dict[str, NDArray[np.float32]]:
    """The maps that `captioner inspect` offers, of all heads, of the best ones, and of each layer."""
    patches = model.encoder.patches
    raw = forced.weights[..., patches]
    found = relevance(model.decoder, forced.memory, forced.tokens, forced.spans, patches)
    evidence = found[..., patches].float().cpu().numpy()
    maps = {"raw": raw.mean(axis=(1, 2)), "relevance": np.maximum(evidence.sum(axis=(1, 2)), 0)}
    if best := model.config.best_heads:
        maps["raw, best heads"] = raw[:, [layer for layer, _ in best], [head for _, head in best]].mean(axis=1)
    for layer in range(raw.shape[1]):
        maps[f"raw, layer {layer}"] = raw[:, layer].mean(axis=1)
        maps[f"relevance, layer {layer}"] = np.maximum(evidence[:, layer].sum(axis=1), 0)
    return maps


def slow_maps(model: CaptionModel, forced: Reading) -> dict[str, NDArray[np.float32]]:
    """Those and perturbation, the reference."""
    grid, patches = model.encoder.grid, model.encoder.patches
    lost = perturbation(model.decoder, forced.memory, forced.tokens, forced.spans, grid, patches)
    return standard_maps(model, forced) | {"perturbation": np.maximum(lost[:, patches].float().cpu().numpy(), 0)}


def mosaic_pointing(
    model: CaptionModel,
    tokenizer: Tokenizer,
    images: Sequence[CaptionedImage],
    *,
    mosaics: int = 500,
    maps: MapMaker = standard_maps,
    shown: CaptionModel | None = None,
    seed: int = 0,
) -> WordTable:
    """Pointing: `NAME mass`, the share of a word's map on its own photo, and `NAME hit`, whether that has the most.

    Of each of so many mosaics the photos take turns. Maps are those of `shown`, a model with randomized weights for
    instance, where given. Raises ConfigError for fewer than four images.
    """
    layout = Mosaics.of(len(images), seed)
    if layout is None:
        raise ConfigError(f"pointing: {len(images)} images, and a mosaic takes four")
    rows = _Rows()
    shares = corner_shares(model.encoder.grid)  # (4, P)
    for number, photos in enumerate(layout.layout[:mosaics]):
        corner = number % CORNERS
        image = images[photos[corner]]
        pixels = torch.from_numpy(mosaic_pixels([read_photo(images[photo]) for photo in photos], model.encoder.config))
        caption = image.captions[number // CORNERS % len(image.captions)]
        forced = _read(model, tokenizer, pixels, caption)
        looked = forced if shown is None else _read(shown, tokenizer, pixels, caption)
        measured = {}
        for name, each in maps(shown or model, looked).items():
            by_corner = each @ shares.T  # (W, 4)
            total = by_corner.sum(axis=1)
            measured[f"{name} mass"] = np.where(
                total > TINY, by_corner[:, corner] / np.maximum(total, TINY), 1 / CORNERS
            )
            hit = (by_corner.argmax(axis=1) == corner).astype(np.float32)
            measured[f"{name} hit"] = np.where(total > TINY, hit, 1 / CORNERS)
        raw = looked.weights[..., model.encoder.patches]
        rows.add(photos[corner], forced, measured, np.stack([raw @ shares[corner], raw.sum(axis=-1)], axis=-1))
    return rows.table()


def box_pointing(
    model: CaptionModel,
    tokenizer: Tokenizer,
    images: Sequence[CaptionedImage],
    instances: Path,
    *,
    maps: MapMaker = standard_maps,
) -> WordTable:
    """Pointing at the objects of COCO's instances: `NAME mass` inside, `NAME hit` by the strongest patch, `area`.

    Of words that name a category of which the image has instances, in all their masks or boxes together; `area` is
    their share of what the model sees, which is chance. Images that the file does not have are passed over. Raises
    AnnotationError where it is no file of instances.
    """
    objects = _read_instances(instances)
    rows = _Rows()
    known = {str(image): image for image in objects.imgs}
    for number, image in enumerate(images):
        found = known.get(str(image.image_id))
        if found is None:
            continue
        annotations = objects.loadAnns(objects.getAnnIds(imgIds=[found]))
        photo = read_photo(image)
        geometry = Geometry.of(*photo.size, size=model.encoder.image_size, fit=model.encoder.config.fit)
        pixels = torch.from_numpy(view_pixels(photo, model.encoder.config, image))
        covered: dict[str, NDArray[np.float64]] = {}
        for annotation in annotations:
            name = objects.cats[annotation["category_id"]]["name"]
            seen = _coverage(objects.annToMask(annotation), photo, geometry, model.encoder.grid)
            covered[name] = np.maximum(covered.get(name, 0.0), seen)
        forced = _read(model, tokenizer, pixels, image.captions[number % len(image.captions)])
        words = {word: name for word, name in enumerate(_categories(forced.words, covered)) if name is not None}
        if not words:
            continue
        inside = np.stack([covered[name] for name in words.values()])  # (K, P)
        measured = {"area": inside.mean(axis=1)}
        for name, each in maps(model, forced).items():
            chosen = each[list(words)]
            total = chosen.sum(axis=1)
            share = (chosen * inside).sum(axis=1) / np.maximum(total, TINY)
            peak = np.take_along_axis(inside, chosen.argmax(axis=1)[:, None], axis=1)[:, 0] >= 0.5
            measured[f"{name} mass"] = np.where(total > TINY, share, measured["area"])
            measured[f"{name} hit"] = np.where(total > TINY, peak, measured["area"])
        rows.add(number, forced, measured, None, list(words))
    return rows.table()


def read_words(
    model: CaptionModel, tokenizer: Tokenizer, images: Sequence[CaptionedImage], captions: Sequence[str]
) -> WordTable:
    """What the words of a caption of each image need, and what the null patch takes of them; no maps."""
    rows = _Rows()
    for number, (image, caption) in enumerate(zip(images, captions, strict=True)):
        pixels = torch.from_numpy(view_pixels(read_photo(image), model.encoder.config, image))
        rows.add(number, _read(model, tokenizer, pixels, caption), {}, None)
    return rows.table()


def best_heads(table: WordTable, most: int = HEADS) -> tuple[tuple[int, int], ...]:
    """The heads whose mean map points best for objects that are seen: the best one, then whichever helps it most."""
    assert table.heads is not None
    heads = table.heads[table.seen_objects]  # (K, L, H, 2)
    if not len(heads):
        return ()
    chosen: list[tuple[int, int]] = []
    best = 0.0
    pairs = [(layer, head) for layer in range(heads.shape[1]) for head in range(heads.shape[2])]
    while len(chosen) < min(most, len(pairs)):
        masses = {}
        for pair in pairs:
            if pair not in chosen:
                each = [heads[:, layer, head] for layer, head in (*chosen, pair)]
                inside, total = np.sum(each, axis=0).T
                masses[pair] = float((inside / np.maximum(total, TINY)).mean())
        pair = max(masses, key=lambda each: masses[each])
        if masses[pair] <= best:
            break
        best = masses[pair]
        chosen.append(pair)
    return tuple(chosen)


def pixel_curves(
    model: CaptionModel,
    tokenizer: Tokenizer,
    images: Sequence[CaptionedImage],
    *,
    maps: MapMaker = standard_maps,
    shown: CaptionModel | None = None,
    fractions: Sequence[float] = FRACTIONS,
    seed: int = 0,
) -> WordTable:
    """Pixels: for a word of each image `NAME deletion`, `NAME insertion` and `NAME memory`, means over `fractions`.

    Nats that log p loses where the map's first patches are blurred; that it gains where they alone are sharp; that it
    loses where they are hidden from memory, the easier number. The rankings `random` (the mean of ten; a uniform map is
    that), `center` and `edges` know nothing of the word. The word is one that names an object, where there is one.
    """
    rows = _Rows()
    random = np.random.default_rng(seed)
    for number, image in enumerate(images):
        pixels = torch.from_numpy(view_pixels(read_photo(image), model.encoder.config, image))
        caption = image.captions[number % len(image.captions)]
        forced = _read(model, tokenizer, pixels, caption)
        named = np.flatnonzero(_named(forced.words))
        if not len(named):
            continue
        word = int(random.choice(named))
        looked = forced if shown is None else _read(shown, tokenizer, pixels, caption)
        rankings: dict[str, NDArray[np.floating]] = {
            name: each[word] for name, each in maps(shown or model, looked).items()
        }
        rankings |= baselines(pixels, model.encoder.grid)
        rankings |= {f"random {each}": random.random(rankings["center"].size) for each in range(RANDOM_MAPS)}
        measured = _curves(model, forced, word, pixels, rankings, fractions, random)
        for kind in ("deletion", "insertion", "memory"):
            draws = [measured.pop(f"random {each} {kind}") for each in range(RANDOM_MAPS)]
            measured[f"random {kind}"] = float(np.mean(draws))
        rows.add(number, forced, {name: np.array([value]) for name, value in measured.items()}, None, [word])
    return rows.table()


def baselines(pixels: Tensor, grid: tuple[int, int]) -> dict[str, NDArray[np.float64]]:
    """Maps (h·w,) that know nothing of the word, of pixels (3, height, width): nearness to the center, edge energy."""
    high, wide = grid
    y, x = np.mgrid[0:high, 0:wide]
    center = -np.hypot((y + 0.5) / high - 0.5, (x + 0.5) / wide - 0.5).ravel()
    gray = pixels.float().mean(dim=0)
    energy = torch.zeros_like(gray)
    energy[:-1] += gray.diff(dim=0).abs()
    energy[:, :-1] += gray.diff(dim=1).abs()
    edges = torch.nn.functional.adaptive_avg_pool2d(energy[None], grid).flatten().double().numpy()
    return {"center": center, "edges": edges}


def area_under_curve(positive: NDArray[np.floating], negative: NDArray[np.floating]) -> float:
    """The probability that a value of the first kind is above one of the second; ties count half."""
    if not len(positive) or not len(negative):
        return float("nan")
    ordered = np.sort(negative)
    below, upto = np.searchsorted(ordered, positive, "left"), np.searchsorted(ordered, positive, "right")
    return float((below + upto).mean() / 2 / len(negative))


def rank_correlation(one: NDArray[np.floating], other: NDArray[np.floating]) -> float:
    """Spearman's, ties having their mean rank."""

    def ranks(values: NDArray[np.floating]) -> NDArray[np.float64]:
        _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
        ends = counts.cumsum()
        ranked: NDArray[np.float64] = (ends - (counts - 1) / 2)[inverse]
        return ranked

    return float(np.corrcoef(ranks(one), ranks(other))[0, 1])


def _curves(
    model: CaptionModel,
    forced: Reading,
    word: int,
    pixels: Tensor,
    rankings: Mapping[str, NDArray[np.floating]],
    fractions: Sequence[float],
    random: np.random.Generator,
) -> dict[str, float]:
    high, wide = model.encoder.grid
    height, width = model.encoder.image_size
    radius = BLUR * max(height, width)
    photo = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    blurred = torch.from_numpy(np.array(photo.filter(ImageFilter.GaussianBlur(radius)))).permute(2, 0, 1)
    cells = (torch.arange(height) * high // height)[:, None] * wide + (torch.arange(width) * wide // width)
    masks = []
    ties = random.random(high * wide)  # equal patches in random order, the same for all rankings
    for values in rankings.values():
        order = np.lexsort((ties, -values))
        for fraction in fractions:
            first = torch.zeros(high * wide, dtype=torch.bool)
            first[order[: max(1, round(fraction * high * wide))].tolist()] = True
            masks.append(first)
    first = torch.stack(masks)  # (S, P)
    inside = first[:, cells][:, None]  # (S, 1, height, width)
    pictures = torch.cat([torch.where(inside, blurred, pixels), torch.where(inside, pixels, blurred), blurred[None]])
    start, stop = forced.spans[word]
    tokens = forced.tokens[:, : stop + 1]

    def log_prob(memory: Memory, rows: int) -> Tensor:
        """Of the word, for each row (R,)."""
        each = tokens.expand(rows, -1)
        logits = model.decoder(each[:, :-1], memory).logits.float().log_softmax(dim=-1)
        chosen = logits.gather(2, each[:, 1:, None]).squeeze(2)
        return chosen[:, start:stop].sum(dim=1).cpu()  # type: ignore[no-any-return]

    with torch.inference_mode():
        device = forced.tokens.device
        found = torch.cat([log_prob(model.encode(part.to(device)), len(part)) for part in pictures.split(32)])
        keep = torch.ones(len(first), forced.memory.positions, dtype=torch.bool)
        keep[:, model.encoder.patches] = ~first
        hidden = log_prob(forced.memory.mask(keep.to(device)), len(first))
    whole, count = float(forced.log_probs[word]), len(fractions)
    deleted, inserted, nothing = found[: len(first)], found[len(first) : -1], found[-1]
    return {
        f"{name} {kind}": float(values.view(-1, count)[row].mean())
        for row, name in enumerate(rankings)
        for kind, values in (
            ("deletion", whole - deleted),
            ("insertion", inserted - nothing),
            ("memory", whole - hidden),
        )
    }


def _read_instances(path: Path) -> Any:
    from pycocotools.coco import COCO

    try:
        with redirect_stdout(io.StringIO()):
            objects = COCO(str(path))
            if not objects.cats or not objects.imgs:
                raise KeyError("images and categories")
    except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
        raise AnnotationError(
            f"{path}: no COCO instances ({error}); give a file like instances_val2014.json"
        ) from error
    return objects


def _coverage(
    mask: NDArray[np.uint8], photo: Image.Image, geometry: Geometry, grid: tuple[int, int]
) -> NDArray[np.float64]:
    """(h·w,) how much of each patch the mask (height, width) of a photo covers."""
    picture = Image.fromarray(mask * np.uint8(255)).resize(photo.size, Image.Resampling.NEAREST).convert("RGB")
    seen = geometry.apply(picture, "bilinear")
    values = torch.from_numpy(np.array(seen.convert("L"), np.float32) / 255)
    shares = torch.nn.functional.adaptive_avg_pool2d(values[None], grid)[0].double().numpy()
    # Letterbox's bars are gray, and show nothing.
    covered: NDArray[np.float64] = np.where(geometry.visible_share(grid) > 0, shares, 0.0).ravel()
    return covered


def _categories(words: Sequence[str], there: Mapping[str, object]) -> list[str | None]:
    """The category that each word names, among those that are there."""
    plain = plain_words(words)
    found: list[str | None] = [
        next((name for name in there if word in (name, f"{name}s", f"{name}es")), None) for word in plain
    ]
    for start, stop, concept, _ in NounList.bundled().phrases(plain):
        if concept in there:
            found[start:stop] = [concept] * (stop - start)
    return found


def _read(model: CaptionModel, tokenizer: Tokenizer, pixels: Tensor, caption: str) -> Reading:
    with torch.inference_mode():
        memory = model.encode(pixels[None].to(next(model.parameters()).device))
    return read_caption(model, tokenizer, memory, caption)


def _named(words: Sequence[str]) -> NDArray[np.bool_]:
    return np.array(NounList.bundled().are_objects(plain_words(words)), dtype=bool)


def plain_words(words: Sequence[str]) -> list[str]:
    """Words in lower case and without punctuation."""
    return ["".join(c for c in word.lower() if c.isalnum() or c in "'-") for word in words]


class _Rows:
    """Grows a table."""

    def __init__(self) -> None:
        self._parts: list[tuple[int, Reading, dict[str, NDArray[np.float32]], list[int]]] = []
        self._heads: list[NDArray[np.float32]] = []

    def add(
        self,
        photo: int,
        forced: Reading,
        measured: dict[str, NDArray[np.float32]],
        heads: NDArray[np.float32] | None,
        words: Sequence[int] | None = None,
    ) -> None:
        """Words of a caption, all of them where none are named; `measured` has a value for each."""
        self._parts.append((photo, forced, measured, list(range(len(forced.words)) if words is None else words)))
        if heads is not None:
            self._heads.append(heads)

    def table(self) -> WordTable:
        def joined(values: Iterator[NDArray[np.generic]]) -> NDArray[np.float32]:
            return np.concatenate([*values, np.zeros(0)]).astype(np.float32)

        parts = self._parts
        names = parts[0][2] if parts else {}
        return WordTable(
            photos=np.array([photo for photo, _, _, words in parts for _ in words], np.int64),
            words=tuple(forced.words[word] for _, forced, _, words in parts for word in words),
            named=joined(_named(forced.words)[words] for _, forced, _, words in parts).astype(bool),
            needs=joined(forced.needs[words] for _, forced, _, words in parts if forced.needs is not None),
            shares=joined(forced.shares[words] for _, forced, _, words in parts if forced.shares is not None),
            null_mass=joined(forced.null_mass[words] for _, forced, _, words in parts),
            columns={name: joined(measured[name] for _, _, measured, _ in parts) for name in names},
            heads=np.concatenate(self._heads) if self._heads else None,
        )


def _estimate(values: NDArray[np.float32], photos: NDArray[np.int64]) -> Estimate:
    if not len(values):
        return Estimate(float("nan"), float("nan"), float("nan"), 0)
    _, group = np.unique(photos, return_inverse=True)
    sums = np.stack([np.bincount(group, values), np.bincount(group)], axis=1).astype(np.float64)
    ratio = Statistics(sums, lambda totals: totals[..., :1] / np.maximum(totals[..., 1:], 1))
    low, high = interval(resample(ratio)[:, 0])
    return Estimate(float(values.mean()), low, high, len(values))
