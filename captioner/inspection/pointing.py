"""Whether maps point at the right place, which no map does by construction.

In mosaics, four photos in one picture, the map of a word from one photo's caption must lie on that photo. Chance is a
quarter, and no boxes are needed. On instances, the map must lie on COCO's masks of the object that the word names.

W words of a caption · K words · L layers · H heads · h·w patches, on the grid of each map
"""

import io
from collections.abc import Collection, Sequence
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from captioner.data.annotations import CaptionedImage
from captioner.data.dataset import read_photo, view_pixels
from captioner.data.mosaics import CORNERS, Mosaics, corner_shares, mosaic_pixels
from captioner.errors import AnnotationError, ConfigError
from captioner.geometry import Geometry
from captioner.inspection.maps import MapMaker, force_caption, standard_maps
from captioner.inspection.relevance import TINY
from captioner.inspection.word_table import WordTable, plain_words
from captioner.metrics.object_words import NounList
from captioner.model.caption_model import CaptionModel
from captioner.model.packed import pack
from captioner.tokenizer import Tokenizer

MAX_BEST_HEADS = 6


def mosaic_pointing(
    model: CaptionModel,
    tokenizer: Tokenizer,
    images: Sequence[CaptionedImage],
    *,
    mosaics: int = 500,
    maps: MapMaker = standard_maps,
    map_model: CaptionModel | None = None,
    seed: int = 0,
) -> WordTable:
    """`NAME mass`, the share of a word's map on its own photo, and `NAME hit`, whether that photo has the most.

    The captioned corner changes from mosaic to mosaic. `map_model` makes the maps instead of `model`: a model
    with random weights, for instance. Raises ConfigError for fewer than four images.
    """
    layout = Mosaics.of(len(images), seed)
    if layout is None:
        raise ConfigError(f"pointing: {len(images)} images, and a mosaic takes four")
    decoder = pack(model.decoder)
    tables = []
    shares = cache(corner_shares)  # of a grid (4, h·w)
    for number, photos in enumerate(layout.layout[:mosaics]):
        corner = number % CORNERS
        image = images[photos[corner]]
        pixels = torch.from_numpy(mosaic_pixels([read_photo(images[photo]) for photo in photos], model.encoder.config))
        caption = image.captions[number // CORNERS % len(image.captions)]
        forced = force_caption(model, tokenizer, pixels, caption, decoder)
        mapped = forced if map_model is None else force_caption(map_model, tokenizer, pixels, caption)
        columns = {}
        for name, each in maps(map_model or model, mapped).items():
            by_corner = each.reshape(len(each), -1) @ shares(each.shape[1:]).T  # (W, 4)
            total = by_corner.sum(axis=1)
            columns[f"{name} mass"] = _ratio(by_corner[:, corner], total, 1 / CORNERS)
            columns[f"{name} hit"] = np.where(total > TINY, by_corner.argmax(axis=1) == corner, 1 / CORNERS)
        raw = mapped.weights[..., model.encoder.patches]
        heads = np.stack([raw @ shares(model.encoder.grid)[corner], raw.sum(axis=-1)], axis=-1)
        tables.append(WordTable.of(photos[corner], forced, columns, heads=heads))
    return WordTable.concat(tables)


def instance_pointing(
    model: CaptionModel,
    tokenizer: Tokenizer,
    images: Sequence[CaptionedImage],
    instances: Path,
    *,
    maps: MapMaker = standard_maps,
    map_model: CaptionModel | None = None,
) -> WordTable:
    """`NAME mass` inside COCO's instances, `NAME hit` by the strongest patch, and `area`, their share of the image.

    For words of all captions that name a category with instances in the image, all of them taken together; `area` is
    the mass of an even map, and the map `center` lies on the central patch whatever the word. Images that the file
    lacks are skipped. `map_model` makes the maps instead of `model`. Raises AnnotationError for a file without
    instances.
    """
    objects = _read_instances(instances)
    decoder = pack(model.decoder)
    tables = []
    known = {str(image): image for image in objects.imgs}
    for number, image in enumerate(images):
        found = known.get(str(image.image_id))
        if found is None:
            continue
        photo = read_photo(image)
        geometry = Geometry.of(*photo.size, size=model.encoder.image_size, fit=model.encoder.config.fit)
        masks: dict[str, NDArray[np.uint8]] = {}  # (height, width) of all instances of each category
        for annotation in objects.loadAnns(objects.getAnnIds(imgIds=[found])):
            name = objects.cats[annotation["category_id"]]["name"]
            masks[name] = np.maximum(masks.get(name, np.uint8(0)), objects.annToMask(annotation))
        pixels = torch.from_numpy(view_pixels(photo, model.encoder.config, image))
        covered: dict[tuple[int, int], dict[str, NDArray[np.float64]]] = {}  # by grid and category
        for caption in image.captions:
            forced = force_caption(model, tokenizer, pixels, caption, decoder)
            words = {word: name for word, name in enumerate(_categories(forced.words, masks)) if name is not None}
            if not words:
                continue
            mapped = forced if map_model is None else force_caption(map_model, tokenizer, pixels, caption)
            central = np.repeat(center(model.encoder.grid)[None], len(forced.words), axis=0)
            columns: dict[str, NDArray[np.floating]] = {}
            for name, each in {**maps(map_model or model, mapped), "center": central}.items():
                grid = each.shape[1], each.shape[2]
                if grid not in covered:
                    covered[grid] = {part: _coverage(mask, photo, geometry, grid) for part, mask in masks.items()}
                inside = np.stack([covered[grid][category] for category in words.values()])  # (K, h·w)
                columns.setdefault("area", inside.mean(axis=1))
                chosen = each[list(words)].reshape(inside.shape)
                total = chosen.sum(axis=1)
                peak = np.take_along_axis(inside, chosen.argmax(axis=1)[:, None], axis=1)[:, 0] >= 0.5
                columns[f"{name} mass"] = _ratio((chosen * inside).sum(axis=1), total, columns["area"])
                columns[f"{name} hit"] = np.where(total > TINY, peak, columns["area"])
            tables.append(WordTable.of(number, forced, columns, words=list(words)))
    return WordTable.concat(tables)


def best_heads(table: WordTable, most: int = MAX_BEST_HEADS) -> tuple[tuple[int, int], ...]:
    """The (layer, head) pairs whose mean map points best at visual objects, chosen greedily, at most `most`."""
    assert table.heads is not None
    heads = table.heads[table.visual_objects]  # (K, L, H, 2)
    if not len(heads):
        return ()
    chosen: list[tuple[int, int]] = []
    best = 0.0
    pairs = [(layer, head) for layer in range(heads.shape[1]) for head in range(heads.shape[2])]
    while len(chosen) < min(most, len(pairs)):
        masses = {}
        for pair in pairs:
            if pair not in chosen:
                inside, total = np.sum([heads[:, layer, head] for layer, head in (*chosen, pair)], axis=0).T
                masses[pair] = float((inside / np.maximum(total, TINY)).mean())
        pair = max(masses, key=lambda each: masses[each])
        if masses[pair] <= best:
            break
        best = masses[pair]
        chosen.append(pair)
    return tuple(chosen)


def _ratio(
    values: NDArray[np.floating], total: NDArray[np.floating], chance: float | NDArray[np.floating]
) -> NDArray[np.floating]:
    """values / total, or `chance` where a map is empty."""
    return np.where(total > TINY, values / np.maximum(total, TINY), chance)


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


def center(grid: tuple[int, int]) -> NDArray[np.float32]:
    """A map (h, w) that lies on the central patch, or on the two or four of an even grid."""
    rows, columns = (np.abs(np.arange(count) - (count - 1) / 2) < 1 for count in grid)
    return np.outer(rows, columns).astype(np.float32)


def _coverage(
    mask: NDArray[np.uint8], photo: Image.Image, geometry: Geometry, grid: tuple[int, int]
) -> NDArray[np.float64]:
    """(h·w,) the share of each patch that a mask (height, width) of the photo covers."""
    picture = Image.fromarray(mask * np.uint8(255)).resize(photo.size, Image.Resampling.NEAREST).convert("RGB")
    values = torch.from_numpy(np.array(geometry.apply(picture, "bilinear").convert("L"), np.float32) / 255)
    shares = torch.nn.functional.adaptive_avg_pool2d(values[None], grid)[0].double().numpy()
    # The bars of a letterboxed photo are gray, not black: nothing is covered there.
    return np.asarray(np.where(geometry.visible_share(grid) > 0, shares, 0.0).ravel(), np.float64)


def _categories(words: Sequence[str], present: Collection[str]) -> list[str | None]:
    """The category that each word names, if it is present in the image."""
    plain = plain_words(words)
    found: list[str | None] = [
        next((name for name in present if word in (name, f"{name}s", f"{name}es")), None) for word in plain
    ]
    for start, stop, concept, _ in NounList.bundled().phrases(plain):
        if concept in present:
            found[start:stop] = [concept] * (stop - start)
    return found
