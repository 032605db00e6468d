"""Whether maps rank the patches that matter first: deletion and insertion in pixels (Petsiuk et al. 2018).

The patches that a map ranks first are blurred in the photo, or are the only sharp ones, and the photo is encoded again:
log p(word) must fall, or rise, more than for other rankings.

S pictures, one for each ranking and fraction · R rows · P = h·w patches
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from torch import Tensor

from captioner.data.annotations import CaptionedImage
from captioner.data.dataset import read_photo, view_pixels
from captioner.inspection.forced_pass import ForcedPass, token_log_probs
from captioner.inspection.maps import MapMaker, force_caption, standard_maps
from captioner.inspection.word_table import WordTable, are_objects
from captioner.model.caption_model import CaptionModel
from captioner.model.memory import Memory
from captioner.model.packed import pack
from captioner.tokenizer import Tokenizer

FRACTIONS = (0.1, 0.2, 0.4)
"""Shares of the patches that are blurred or shown."""
RANDOM_RANKINGS = 10
BLUR = 0.08
"""Radius of the blur as a share of the input's longer side: enough to hide what a patch shows."""
BATCH = 32
"""Pictures encoded at once."""


def pixel_curves(
    model: CaptionModel,
    tokenizer: Tokenizer,
    images: Sequence[CaptionedImage],
    *,
    maps: MapMaker = standard_maps,
    map_model: CaptionModel | None = None,
    fractions: Sequence[float] = FRACTIONS,
    seed: int = 0,
) -> WordTable:
    """`NAME deletion`, `NAME insertion` and `NAME memory` of one object word per image, means over `fractions`.

    In nats: the drop of log p with the map's first patches blurred, its rise with only them sharp, and its drop with
    them hidden in memory, an easier test. The rankings `random` (mean of ten), `center` and `edges` ignore the word.
    Maps on a finer grid are averaged over the encoder's patches, so that all rankings blur squares of the same size.
    Images whose caption names no object are skipped. `map_model` makes the maps instead of `model`.
    """
    decoder = pack(model.decoder)
    tables = []
    random = np.random.default_rng(seed)
    for number, image in enumerate(images):
        pixels = torch.from_numpy(view_pixels(read_photo(image), model.encoder.config, image))
        caption = image.captions[number % len(image.captions)]
        forced = force_caption(model, tokenizer, pixels, caption, decoder)
        objects = np.flatnonzero(are_objects(forced.words))
        if not len(objects):
            continue
        word = int(random.choice(objects))
        mapped = forced if map_model is None else force_caption(map_model, tokenizer, pixels, caption)
        rankings: dict[str, NDArray[np.floating]] = {
            name: _pooled(each[word], model.encoder.grid) for name, each in maps(map_model or model, mapped).items()
        }
        rankings |= baselines(pixels, model.encoder.grid)
        rankings |= {f"random {each}": random.random(rankings["center"].size) for each in range(RANDOM_RANKINGS)}
        curves = _curves(model, forced, word, pixels, rankings, fractions, random)
        for kind in ("deletion", "insertion", "memory"):
            draws = [curves.pop(f"random {each} {kind}") for each in range(RANDOM_RANKINGS)]
            curves[f"random {kind}"] = float(np.mean(draws))
        columns = {name: np.array([value], np.float32) for name, value in curves.items()}
        tables.append(WordTable.of(number, forced, columns, words=[word]))
    return WordTable.concat(tables)


def baselines(pixels: Tensor, grid: tuple[int, int]) -> dict[str, NDArray[np.float64]]:
    """Rankings (P,) of pixels (3, height, width) that ignore the word: nearness to the center, edge energy."""
    high, wide = grid
    y, x = np.mgrid[0:high, 0:wide]
    center = -np.hypot((y + 0.5) / high - 0.5, (x + 0.5) / wide - 0.5).ravel()
    gray = pixels.float().mean(dim=0)
    energy = torch.zeros_like(gray)
    energy[:-1] += gray.diff(dim=0).abs()
    energy[:, :-1] += gray.diff(dim=1).abs()
    edges = torch.nn.functional.adaptive_avg_pool2d(energy[None], grid).flatten().double().numpy()
    return {"center": center, "edges": edges}


def _curves(
    model: CaptionModel,
    forced: ForcedPass,
    word: int,
    pixels: Tensor,
    rankings: Mapping[str, NDArray[np.floating]],
    fractions: Sequence[float],
    random: np.random.Generator,
) -> dict[str, float]:
    """The columns of `pixel_curves` for one word and these rankings (P,)."""
    high, wide = model.encoder.grid
    height, width = model.encoder.image_size
    photo = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    soft = photo.filter(ImageFilter.GaussianBlur(BLUR * max(height, width)))
    blurred = torch.from_numpy(np.array(soft)).permute(2, 0, 1)
    # (height, width): the patch of each pixel
    patches = (torch.arange(height) * high // height)[:, None] * wide + (torch.arange(width) * wide // width)
    masks = []
    ties = random.random(high * wide)  # equal patches are in random order, the same for all rankings
    for values in rankings.values():
        order = np.lexsort((ties, -values))
        for fraction in fractions:
            mask = torch.zeros(high * wide, dtype=torch.bool)
            mask[order[: max(1, round(fraction * high * wide))].tolist()] = True
            masks.append(mask)
    first = torch.stack(masks)  # (S, P): the patches ranked first
    inside = first[:, patches][:, None]  # (S, 1, height, width)
    pictures = torch.cat([torch.where(inside, blurred, pixels), torch.where(inside, pixels, blurred), blurred[None]])
    start, stop = forced.spans[word]
    tokens = forced.tokens[:, : stop + 1]

    def log_prob(memory: Memory, rows: int) -> Tensor:
        """(R,) log p of the word."""
        each = tokens.expand(rows, -1)
        return token_log_probs(forced.decoder(each[:, :-1], memory).logits, each)[:, start:stop].sum(dim=1).cpu()

    with torch.inference_mode():
        device = forced.tokens.device
        log_probs = torch.cat([log_prob(model.encode(part.to(device)), len(part)) for part in pictures.split(BATCH)])
        keep = torch.ones(len(first), forced.memory.positions, dtype=torch.bool)
        keep[:, model.encoder.patches] = ~first
        hidden = log_prob(forced.memory.mask(keep.to(device)), len(first))
    whole = float(forced.log_probs[word])
    deleted, inserted, all_blurred = log_probs[: len(first)], log_probs[len(first) : -1], log_probs[-1]
    kinds = {"deletion": whole - deleted, "insertion": inserted - all_blurred, "memory": whole - hidden}
    means = {kind: values.view(len(rankings), -1).mean(dim=1).tolist() for kind, values in kinds.items()}
    return {f"{name} {kind}": means[kind][row] for row, name in enumerate(rankings) for kind in kinds}


def _pooled(values: NDArray[np.floating], grid: tuple[int, int]) -> NDArray[np.floating]:
    """A map (h, w) of any grid on this one, flattened: the mean over each patch."""
    pooled = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(values)[None], grid)[0]
    return np.asarray(pooled.flatten().numpy())
