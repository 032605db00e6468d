"""The embeddings of new words, fitted before training.

A new word starts near the mean of all words, and where the model has another word for the same thing, it would go on to
say that one. So the new embeddings are fitted first, as in a logistic regression, while everything else stays.
K tokens to predict · D width · V known words · W new words
"""

import logging

import numpy as np
import torch
from torch import Tensor

from captioner.data.dataset import CaptionDataset
from captioner.data.sampler import evenly_spaced
from captioner.model.caption_model import CaptionModel
from captioner.training.caption_states import caption_states

log = logging.getLogger(__name__)

IMAGES = 300
"""Most images with new words, and most images without them, whose captions are read; evenly spaced."""
MAX_LOGITS = 2**25
"""Most logits of new words at a time, which bounds memory."""
STEPS = 50
"""Steps of L-BFGS; the problem is convex."""
SPREAD = 4.0
"""Standard deviation of the prior, in those of the known embeddings: with it, new ones are fitted as far from the mean
as those of frequent words are."""


def fit_new_words(model: CaptionModel, data: CaptionDataset, words: range) -> None:
    """Fit the embeddings of the tokens `words` to captions; those of words that the read captions lack stay.

    The objective is the cross-entropy of the tokens, new and known ones, with a normal prior on the new embeddings
    around the mean of the known ones. Images without a new word show where not to say it.
    """
    if not words:
        return
    states, totals, targets = _read(model, data, words)
    known = model.decoder.token_embedding.weight.detach()[: words.start]
    mean, variance = known.mean(dim=0), SPREAD**2 * known.var(dim=0).mean()
    rows = targets.unique()
    rows = rows[rows >= 0]
    if not len(rows):  # the words are those of captions without pictures
        return
    picked = (targets[:, None] == rows).float()  # (K, W), at most one in a row
    new = mean.repeat(len(rows), 1).requires_grad_()
    optimizer = torch.optim.LBFGS([new], max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        logits = states @ new.T
        every = torch.cat([totals[:, None], logits], dim=1).logsumexp(dim=1)
        value: Tensor = every.sum() - (picked * logits).sum() + (new - mean).square().sum() / (2 * variance)
        value.backward()
        return value

    optimizer.step(loss)
    with torch.no_grad():
        model.decoder.token_embedding.weight[words.start + rows] = new.detach()
    log.info("fitted the embeddings of %d new words", len(rows))


@torch.no_grad()
def _read(model: CaptionModel, data: CaptionDataset, words: range) -> tuple[Tensor, Tensor, Tensor]:
    """States (K, D) before each token, the log-sum of exp of their logits of known words (K,), and the token (K,): the
    number of a new word, or -1 for a known one."""
    model.eval()
    known = model.decoder.token_embedding.weight[: words.start]
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    room = MAX_LOGITS // len(words)
    for image in _images(data, words):
        read, tokens = caption_states(model, data, image)
        new = (tokens >= words.start) & (tokens < words.stop)
        totals = (read @ known.T).logsumexp(dim=1)
        found.append((read, totals, torch.where(new, tokens - words.start, -1)))
        room -= len(read)
        if room <= 0:
            break
    states, totals, targets = (torch.cat(parts) for parts in zip(*found, strict=True))
    return states.float(), totals.float(), targets


def _images(data: CaptionDataset, words: range) -> list[int]:
    """The images to read, those with new words and those without in turns."""
    having = [any(token in words for caption in image for token in caption) for image in data.tokens]
    chosen = [
        evenly_spaced([place for place, each in enumerate(having) if each == kind], IMAGES) for kind in (True, False)
    ]
    order = np.concatenate([np.linspace(0, 1, len(kind)) for kind in chosen]).argsort(kind="stable")
    both = [place for kind in chosen for place in kind]
    return [both[place] for place in order]
