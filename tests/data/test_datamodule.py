"""Loaders as Lightning's trainer and the configuration ask for them."""

import pickle
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from captioner.config import DataConfig, EncoderConfig, TokenizerConfig
from captioner.data.datamodule import CaptionDataModule
from captioner.data.formats import load_captions
from captioner.extraction import extract_features
from captioner.model.encoder import VisionEncoder
from captioner.tokenizer import Tokenizer

ENCODER = EncoderConfig(name="test_convnext", image_size=(64, 64), interpolation="bicubic")


def loaders(shapes, store=None, **options):
    captions = load_captions(shapes)
    tokenizer = Tokenizer.train(["a red circle"], TokenizerConfig(min_count=1))
    config = DataConfig(batch_images=4, **options)
    splits = captions.split("train"), captions.split("val")
    return CaptionDataModule(config, *splits, tokenizer, ENCODER, max_length=9, seed=0, store=store)


def trainer(device, **options):
    """What a loader asks Lightning's trainer."""
    defaults = {"global_rank": 0, "world_size": 1, "accumulate_grad_batches": 1, "limit_train_batches": 1.0}
    return SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device(device)), **(defaults | options))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_memory_is_pinned_for_accelerators(shapes, device):
    module = loaders(shapes)
    module.trainer = trainer(device)
    assert module.train_dataloader().pin_memory == (device == "cuda")


@pytest.mark.parametrize(("augment", "views"), [(False, 1), (True, 1), (False, 3)])
def test_views_are_those_of_photos_or_of_the_store(shapes, tmp_path, augment, views):
    """`augment` is for photos as they come, `feature_views` for stores; validation always takes the plain view."""
    assert loaders(shapes, augment=augment, feature_views=views).train_set.augmented == augment
    torch.manual_seed(0)
    encoder = VisionEncoder(ENCODER)
    store = extract_features(encoder, load_captions(shapes), tmp_path, views=lambda image: views)
    module = loaders(shapes, store, augment=augment, feature_views=views)

    def drawn(data):
        """Which views of the store an epoch reads."""
        samples = [data.sample(group) for plan in module._sampler(data, shuffle=True) for group in plan.groups]
        views_of = [[store.read(str(sample.image_id), view) for view in range(views)] for sample in samples]
        return {
            next(view for view, each in enumerate(stored) if torch.equal(sample.encoded, each))
            for sample, stored in zip(samples, views_of, strict=True)
        }

    assert drawn(module.train_set) == set(range(views))
    assert drawn(module.val_set) == {0}


@pytest.mark.parametrize(("limit", "expected"), [(1.0, "all"), (2, 2), (0.5, "half"), (10**6, "all")])
def test_an_epoch_may_be_limited(shapes, limit, expected):
    module = loaders(shapes, captions_per_image=1)
    whole = len(list(module.train_dataloader()))
    module.trainer = trainer("cpu", limit_train_batches=limit)
    assert module.train_batches == {"all": whole, "half": whole // 2}.get(expected, expected)


def test_workers_start_without_lightning(shapes):
    """A worker imports what it unpickles, and Lightning takes seconds."""
    loader = loaders(shapes).train_dataloader()
    code = "import pickle, sys; pickle.load(sys.stdin.buffer); print('pytorch_lightning' in sys.modules)"
    parts = pickle.dumps((loader.dataset, loader.worker_init_fn, loader.collate_fn))
    found = subprocess.run([sys.executable, "-c", code], input=parts, capture_output=True, check=True)
    assert found.stdout == b"False\n"
