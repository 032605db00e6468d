"""Photos worth captioning next: those that a model is least sure of and that are unlike the others.

S photos · E encoder width
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from captioner.caption import Caption
from captioner.errors import ImageError
from captioner.generation import Greedy
from captioner.model.familiarity import summarize
from captioner.photo import Photo
from captioner.pipeline import Captioner
from captioner.prefetch import prefetch

POOL_FACTOR = 4
"""Photos are chosen from so many times as many that the model is least sure of (Zhdanov 2019, arXiv 1901.05954)."""
BATCH = 16


@dataclass(frozen=True)
class Candidate:
    """A photo with what the model makes of it."""

    path: str
    caption: Caption
    summary: NDArray[np.float32]
    """(E,) of `summarize`."""


def candidates(
    captioner: Captioner, paths: Iterable[str], on_error: Callable[[ImageError], object] = lambda error: None
) -> Iterator[Candidate]:
    """The photos that can be opened, in order; `on_error` is called with the errors of the others."""

    def read(path: str) -> tuple[str, Photo | ImageError]:
        try:
            return path, captioner.prepare(path)
        except ImageError as error:
            return path, error

    with closing(prefetch(paths, read, BATCH)) as batches:
        for batch in batches:
            for _, outcome in batch:
                if isinstance(outcome, ImageError):
                    on_error(outcome)
            found = [(path, photo) for path, photo in batch if isinstance(photo, Photo)]
            if not found:
                continue
            photos = [photo for _, photo in found]
            features = captioner.features(photos)
            captions = captioner.caption_photos(photos, search=Greedy(), features=features)
            with torch.inference_mode():
                summaries = summarize(features).float().cpu().numpy()
            for (path, _), caption, summary in zip(found, captions, summaries, strict=True):
                yield Candidate(path, caption, summary)


def suggest(found: Sequence[Candidate], count: int, captioned: Sequence[Candidate] = ()) -> list[Candidate]:
    """The candidates to caption next, the most useful first; the order of the candidates does not matter.

    Those of which the model is least sure are spread by a greedy k-center (Sener and Savarese 2018): each choice is the
    one farthest from all earlier ones and from the `captioned` photos.
    """
    ranked = sorted(found, key=lambda each: each.path)
    unsure = np.argsort([each.caption.confidence for each in ranked], kind="stable").argsort()
    unlike = np.argsort([-(each.caption.unfamiliarity or 0.0) for each in ranked], kind="stable").argsort()
    if any(each.caption.unfamiliarity is not None for each in ranked):
        unsure = unsure + unlike
    pool = [ranked[place] for place in np.argsort(unsure, kind="stable")[: POOL_FACTOR * count]]
    if not pool:
        return []
    summaries = np.stack([each.summary for each in (*pool, *captioned)]).astype(np.float64)
    summaries /= np.maximum(summaries.std(axis=0), np.finfo(np.float32).eps)
    places, known = summaries[: len(pool)], summaries[len(pool) :]
    nearest = np.full(len(pool), np.inf)
    """(S,) distance of each photo of the pool from what is chosen or captioned."""
    for center in known:
        nearest = np.minimum(nearest, np.linalg.norm(places - center, axis=1))
    chosen: list[int] = []
    while len(chosen) < min(count, len(pool)):
        nearest[chosen] = -1.0
        place = int(nearest.argmax())  # the first of equals, which the model is least sure of
        chosen.append(place)
        nearest = np.minimum(nearest, np.linalg.norm(places - places[place], axis=1))
    return [pool[place] for place in chosen]
