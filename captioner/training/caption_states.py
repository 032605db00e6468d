"""The decoder's states before each token of an image's captions.   K tokens · D width"""

from torch import Tensor

from captioner.data.dataset import CaptionDataset
from captioner.data.sampler import BatchPlan, Group
from captioner.model.caption_model import CaptionModel


def caption_states(model: CaptionModel, data: CaptionDataset, image: int) -> tuple[Tensor, Tensor]:
    """States (K, D) that predict all tokens of the captions of an image, given by its number, and the tokens (K,)."""
    batch = data[BatchPlan([Group(image, tuple(range(len(data.tokens[image]))), seed=0)])]
    features = batch.features if batch.images is None else model.encoder(batch.images)
    assert features is not None
    memory = model.decoder.project(features.to(model.decoder.token_embedding.weight.dtype))
    states, _ = model.decoder.states(batch.tokens[:, :-1], memory)
    rows, places = batch.predicting
    return states[rows, places], batch.tokens[rows, places + 1]
