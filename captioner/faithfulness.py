"""How far the maps of a model can be trusted, measured on captioned images.   K object words · F features of each"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from captioner.data.annotations import CaptionedImage
from captioner.inspection.hallucination import FEATURES, fit_weights, is_hallucinated, object_words_of
from captioner.inspection.maps import maps_with_perturbation, standard_maps
from captioner.inspection.pixels import pixel_curves
from captioner.inspection.pointing import instance_pointing, mosaic_pointing
from captioner.inspection.summary import heads_markdown, heads_summary, markdown, summarize
from captioner.model.caption_model import CaptionModel
from captioner.pipeline import Captioner

MIN_VISUAL_OBJECTS = 30
"""With fewer words, intervals are too wide to be useful."""
MIN_EXAMPLES = 50
"""Minimum number of hallucinated objects, and of others, for fitting hallucination weights."""


@dataclass(frozen=True)
class Options:
    """The tests to run; a count of 0 skips one."""

    mosaics: int = 500
    """Mosaics of four photos, for pointing and the best heads."""
    photos: int = 0
    """Photos for deletion and insertion; slow."""
    captions: int = 500
    """Captions of the model to check for hallucinated objects."""
    instances: Path | None = None
    """COCO instances of the images, for pointing at annotated objects."""
    perturbation: bool = False
    """Measure perturbation too; slow."""
    random_weights: bool = False
    """Measure the maps of the same network with random weights, which must fail; skips hallucination."""


@dataclass(frozen=True)
class Report:
    """The tables of `measure`; None for a test that was skipped."""

    options: Options
    grounding: dict[str, Any] | None = None
    pointing: dict[str, Any] | None = None
    heads: dict[str, Any] | None = None
    pixels: dict[str, Any] | None = None
    hallucination: dict[str, Any] | None = None
    hallucination_weights: tuple[float, ...] = ()
    """The fitted `ModelConfig.hallucination`; empty if there were too few examples."""
    notes: tuple[str, ...] = ()
    """Warnings for the user."""

    @property
    def best_heads(self) -> tuple[tuple[int, int], ...]:
        """(layer, head) pairs for `ModelConfig.best_heads`."""
        return tuple((layer, head) for layer, head in self.heads["best_heads"]) if self.heads else ()

    def to_dict(self) -> dict[str, Any]:
        """The tables as plain data for JSON."""
        names = ("grounding", "pointing", "heads", "pixels", "hallucination")
        tables = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return {"random_weights": self.options.random_weights, **tables}

    def to_markdown(self) -> str:
        """The tables as Markdown."""
        sections = []
        if self.grounding is not None:
            sections.append(markdown("Pointing at annotated objects", self.grounding))
        if self.pointing is not None:
            sections.append(markdown(f"Pointing in {self.options.mosaics} mosaics", self.pointing))
        if self.heads is not None:
            sections.append(heads_markdown(self.heads))
        if self.pixels is not None:
            sections.append(markdown(f"Deletion and insertion in {self.options.photos} photos, in nats", self.pixels))
        if self.hallucination is not None:
            count = "{hallucinated} of {words} object words of the model's captions".format_map(self.hallucination)
            sections.append(f"## Objects that no reference names\n\n{count}\n")
        return "\n".join(sections)


class HallucinationExamples(NamedTuple):
    """Object words of a model's own captions."""

    features: NDArray[np.float64]
    """(K, F)"""
    hallucinated: NDArray[np.bool_]
    """(K,) whether each object is hallucinated."""
    photos: NDArray[np.int64]
    """(K,) the number of the photo."""


def measure(
    captioner: Captioner,
    images: Sequence[CaptionedImage],
    options: Options = Options(),
    progress: Callable[[str], None] = lambda message: None,
) -> Report:
    """Test the maps of a model on captioned images; `progress` is called with a line before each test.

    Raises ConfigError for mosaics of fewer than four images, AnnotationError for a file without COCO instances.
    """
    model, tokenizer = captioner.model, captioner.tokenizer
    options = replace(options, mosaics=min(options.mosaics, len(images)), photos=min(options.photos, len(images)))
    map_model = None
    if options.random_weights:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            map_model = CaptionModel(model.config, vocabulary=len(tokenizer)).eval().to(captioner.device)
    maps = maps_with_perturbation if options.perturbation else standard_maps
    report, notes = Report(options), []
    if options.instances is not None:
        progress("pointing at annotated objects")
        grounding = instance_pointing(model, tokenizer, images, options.instances, maps=maps, map_model=map_model)
        report = replace(report, grounding=summarize(grounding))
    if options.mosaics:
        progress(f"pointing in {options.mosaics} mosaics")
        pointing = mosaic_pointing(model, tokenizer, images, mosaics=options.mosaics, maps=maps, map_model=map_model)
        heads = heads_summary(pointing) if pointing.visual_objects.any() else None
        report = replace(report, pointing=summarize(pointing), heads=heads)
        if pointing.visual_objects.sum() < MIN_VISUAL_OBJECTS:
            notes.append("too few words for narrow intervals; take more mosaics")
    if options.photos:
        progress(f"deletion and insertion in {options.photos} photos")
        pixels = pixel_curves(model, tokenizer, images[: options.photos], maps=maps, map_model=map_model)
        report = replace(report, pixels=summarize(pixels))
    if options.captions and map_model is None:
        chosen = images[: options.captions]
        progress(f"objects in {len(chosen)} captions")
        examples = hallucination_examples(captioner, chosen)
        words, hallucinated = len(examples.hallucinated), int(examples.hallucinated.sum())
        report = replace(report, hallucination={"words": words, "hallucinated": hallucinated})
        if min(hallucinated, words - hallucinated) >= MIN_EXAMPLES:
            weights = fit_weights(examples.features, examples.hallucinated)
            report = replace(report, hallucination_weights=tuple(weights.tolist()))
        else:
            notes.append(f"fewer than {MIN_EXAMPLES} hallucinated objects, or others: too few to fit weights")
    return replace(report, notes=tuple(notes))


def hallucination_examples(captioner: Captioner, images: Sequence[CaptionedImage]) -> HallucinationExamples:
    """Caption images and compare the objects named with those in the references."""
    features, hallucinated, photos = [], [], []
    for photo, image in enumerate(images):
        for each in object_words_of(captioner.inspect(image.content, method="relevance")):
            features.append(each.features)
            hallucinated.append(is_hallucinated(each.concept, image.captions))
            photos.append(photo)
    return HallucinationExamples(
        np.array(features, np.float64).reshape(-1, len(FEATURES)),
        np.array(hallucinated, dtype=bool),
        np.array(photos, dtype=np.int64),
    )
