"""Calibration of a trained model: the confidence of its words, and its distance from familiar photos.

K words · F features of a word · B images · S photos · N positions · E encoder width
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from captioner.caption import Caption, caption_memory, confidences, word_features
from captioner.data.annotations import CaptionedImage
from captioner.data.dataset import read_photo, view_pixels
from captioner.data.features import FeatureStore
from captioner.data.sampler import evenly_spaced
from captioner.generation import BeamSearch
from captioner.inspection.hallucination import fit_weights
from captioner.inspection.word_table import are_objects, plain_words
from captioner.model.caption_model import CaptionModel
from captioner.model.familiarity import DIRECTIONS, Familiarity, summarize
from captioner.model.packed import pack
from captioner.prefetch import prefetch
from captioner.tokenizer import Tokenizer

log = logging.getLogger(__name__)

BATCH = 16
MAX_TRAIN, MAX_VAL = 4000, 2000
"""Photos that are encoded, evenly spaced in the split; more change little."""
MIN_TRAIN, MIN_VAL = 4 * DIRECTIONS, 100
"""With fewer photos nothing is fitted."""
MIN_OBJECTS = 50
"""Fewest object words that have a regression of their own."""
FAMILIAR_SHARE = 0.98
"""Share of the validation photos that are familiar."""


class WordOutcomes(NamedTuple):
    """The words of captions, and whether they were right."""

    features: NDArray[np.float64]
    """(K, F) of `word_features`; the first one is the log-odds."""
    right: NDArray[np.bool_]
    """(K,) whether a human caption of the photo has the word, in lower case and without punctuation."""
    is_object: NDArray[np.bool_]
    """(K,) whether the word names an object."""
    captions: NDArray[np.int64]
    """(K,) the number of the caption."""

    @classmethod
    def of(cls, captions: Iterable[tuple[Caption, Sequence[str]]]) -> "WordOutcomes":
        """The words of captions, each with the human captions of its photo."""
        features, right, objects, numbers = [], [], [], []
        for number, (caption, references) in enumerate(captions):
            known = {word for reference in references for word in plain_words(reference.split())}
            words = [word.text for word in caption.words]
            features.append(word_features([word.log_prob for word in caption.words], caption.unfamiliarity))
            right += [word in known for word in plain_words(words)]
            objects.append(are_objects(words))
            numbers += [number] * len(words)
        return cls(np.concatenate(features), np.array(right), np.concatenate(objects), np.array(numbers))

    def take(self, chosen: NDArray[np.bool_]) -> "WordOutcomes":
        """Some of the words."""
        return WordOutcomes(self.features[chosen], self.right[chosen], self.is_object[chosen], self.captions[chosen])

    def fit(self) -> tuple[tuple[float, float, float, float], ...]:
        """`ModelConfig.confidence`; captions with few objects have one regression for all words."""
        few = self.is_object.sum() < MIN_OBJECTS
        weights = (
            fit_weights(self.features[part | few], self.right[part | few]).tolist()
            for part in (~self.is_object, self.is_object)
        )
        return tuple((odds, place, distance, bias) for odds, place, distance, bias in weights)

    def confidence(self, weights: Sequence[Sequence[float]]) -> NDArray[np.float64]:
        """(K,) by these weights."""
        return confidences(self.features, self.is_object, weights)


@torch.no_grad()
def calibrate(
    model: CaptionModel,
    tokenizer: Tokenizer,
    train: Sequence[CaptionedImage],
    val: Sequence[CaptionedImage],
    store: FeatureStore | None = None,
) -> None:
    """Fit the confidence of words and the familiar distance on photos, from a store or encoded now.

    The model must be in evaluation mode. With too few photos nothing is fitted, and what was fitted before is dropped.
    """
    if len(train) < MIN_TRAIN or len(val) < MIN_VAL:
        log.info("confidence is not calibrated: that takes %d training and %d validation photos", MIN_TRAIN, MIN_VAL)
        model.familiarity = None
        model.config = replace(model.config, confidence=(), familiar_distance=None)
        return
    log.info("calibrating confidence on %d validation photos", min(len(val), MAX_VAL))
    decoder, captions, distances = pack(model.decoder), [], []
    seen = torch.cat([summarize(features) for _, features in _features(model, evenly_spaced(train, MAX_TRAIN), store)])
    model.familiarity = Familiarity.fit(seen)
    for images, features in _features(model, evenly_spaced(val, MAX_VAL), store):
        distances.append(model.familiarity(features))
        found = caption_memory(decoder, tokenizer, decoder.project(features), BeamSearch())
        captions += [(best, image.captions) for [best, *_], image in zip(found, images, strict=True)]
    limit = float(torch.cat(distances).quantile(FAMILIAR_SHARE))
    known = zip(captions, (torch.cat(distances) / limit).tolist(), strict=True)
    outcomes = WordOutcomes.of((replace(each, unfamiliarity=far), references) for (each, references), far in known)
    model.config = replace(model.config, confidence=outcomes.fit(), familiar_distance=limit)


def _features(
    model: CaptionModel, images: Sequence[CaptionedImage], store: FeatureStore | None
) -> Iterator[tuple[list[CaptionedImage], Tensor]]:
    """Batches of images with their features (B, N, E)."""
    encoder, device = model.encoder, model.encoder.mean.device

    def encoded(image: CaptionedImage) -> tuple[CaptionedImage, Tensor]:
        if store is not None:
            return image, store.read(str(image.image_id))
        return image, torch.from_numpy(view_pixels(read_photo(image), encoder.config, image))

    with closing(prefetch(images, encoded, BATCH)) as batches:
        for batch in batches:
            chosen, parts = zip(*batch, strict=True)
            stacked = torch.stack(parts).to(device)
            yield list(chosen), encoder(stacked) if store is None else stacked.float()
