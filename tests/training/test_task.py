"""The loss: grouped captions cost what single ones cost, and padding counts for nothing."""

import warnings

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from captioner.config import Config, OptimizationConfig
from captioner.data.dataset import Sample, collate
from captioner.data.mosaics import CORNERS
from captioner.training.attention_losses import pointing, pointing_loss
from captioner.training.task import CrossEntropyTask


def images(count):
    return torch.randint(0, 256, (count, 3, 64, 64), dtype=torch.uint8)


def loss(task, batch):
    """Without label smoothing."""
    states, _ = task.model.decoder.states(batch.tokens[:, :-1], task.encode(batch))
    return task.cross_entropy(states, batch)


def test_grouped_captions_cost_what_single_ones_cost(task, make_batch):
    photos = images(2)
    texts = ["a red circle", "a blue star above a circle", "star", "a a a a a a"]
    grouped = make_batch(texts, photos)
    total = loss(task, grouped) * grouped.predicts.sum()
    single = [make_batch([text], photos[place // 2][None]) for place, text in enumerate(texts)]
    torch.testing.assert_close(total, sum(loss(task, each) * each.predicts.sum() for each in single))


def test_padding_counts_for_nothing(task, make_batch):
    plain = make_batch(["a red circle"], images(1))
    padded = plain._replace(tokens=torch.nn.functional.pad(plain.tokens, (0, 6)))
    torch.testing.assert_close(loss(task, plain), loss(task, padded))


def test_where_padding_is_the_end_token_the_end_is_learned(task):
    """GPT-2 has one special token for everything; its captions may be cut off, too."""
    rows = [[2, 4, 5, 2], [2, 4, 4, 5, 2], [2, 4, 4, 5, 4]]
    photos = images(3)
    batch = collate([Sample(place, photos[place], (row,)) for place, row in enumerate(rows)], pad=2)
    assert batch.tokens[0].tolist() == [2, 4, 5, 2, 2]
    with torch.no_grad():
        each = task.model(photos, batch.tokens[:, :-1]).log_softmax(-1).gather(2, batch.tokens[:, 1:, None])[..., 0]
    expected = -sum(row[: len(ids) - 1].sum() for row, ids in zip(each, rows, strict=True)) / 11
    torch.testing.assert_close(loss(task, batch), expected)


def test_stored_features_give_the_photos_loss(task, make_batch):
    photos = make_batch(["a red circle", "star"], images(2))
    with torch.no_grad():
        stored = photos._replace(images=None, features=task.model.encoder(photos.images).half())
        torch.testing.assert_close(loss(task, photos), loss(task, stored), atol=1e-3, rtol=0)


def test_the_training_loss_is_smoothed_as_asked(task, make_batch):
    batch = make_batch(["a red circle"], images(1))
    logits = task.model(batch.images, batch.tokens[:, :-1])
    expected = torch.nn.functional.cross_entropy(logits[0], batch.tokens[0, 1:], label_smoothing=0.1)
    torch.testing.assert_close(task.loss(batch, task.encode(batch))[0], expected)
    assert not torch.isclose(task.loss(batch, task.encode(batch))[0], loss(task, batch))


@pytest.mark.parametrize(("step", "share"), [(0, 0), (25, 0.5), (50, 1), (100, 1)])
def test_the_pointing_loss_grows_to_the_middle_of_the_run(task, make_batch, monkeypatch, step, share):
    monkeypatch.setattr(CrossEntropyTask, "total_steps", 100)
    monkeypatch.setattr(CrossEntropyTask, "global_step", step)
    alone = make_batch(["a red circle", "star"], images(2))
    mosaics = alone._replace(corners=torch.tensor([0, 3]), objects=alone.tokens == task.tokenizer.encode("star")[0])
    plain, pointed = task.loss(mosaics, task.encode(mosaics))
    assert pointed is None
    task.config = Config(optimization=OptimizationConfig(pointing=0.5))
    assert task.loss(alone, task.encode(alone))[1] is None
    found, pointed = task.loss(mosaics, task.encode(mosaics))
    _, weights = task.model.decoder.states(alone.tokens[:, :-1], task.encode(alone), return_weights=True)
    encoder = task.model.encoder
    torch.testing.assert_close(pointed, pointing_loss(pointing(weights, mosaics, encoder.grid, encoder.patches)))
    torch.testing.assert_close(found, plain + 0.5 * share * pointed, atol=1e-5, rtol=1e-5)
    assert CORNERS == 4


def gradients(task, batches, accumulate):
    """Those of the one optimizer step that Lightning takes, in float64."""
    found = {}

    class Recorder(pl.Callback):
        def on_before_optimizer_step(self, trainer, task, optimizer):
            found.update({name: each.grad.clone() for name, each in task.named_parameters() if each.grad is not None})

    class Plain(CrossEntropyTask):
        def configure_optimizers(self):
            return torch.optim.SGD(self.model.parameters(), lr=0.0)

        def log(self, name, value, **options):
            pass

    trainer = pl.Trainer(
        accelerator="cpu",
        precision="64-true",
        max_epochs=1,
        accumulate_grad_batches=accumulate,
        callbacks=[Recorder()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    task.model.train()
    own = Plain(task.model, task.tokenizer, task.config, task.validation)
    with warnings.catch_warnings(action="ignore"):  # frozen parts in evaluation mode, no validation
        trainer.fit(own, DataLoader(batches, batch_size=None))
    return found


def test_accumulated_batches_give_the_gradient_of_one_batch(task, make_batch):
    """Though they have unequal numbers of tokens; a batch of weight 0 changes nothing."""
    texts, photos = ["a red circle above a blue star", "star", "a star"], images(3)
    whole = gradients(task, [make_batch(texts, photos)], 1)
    counts = [int(make_batch([text], photos[:1]).predicts.sum()) for text in texts]
    parts = [
        make_batch([text], photos[place][None])._replace(weight=counts[place] / sum(counts))
        for place, text in enumerate(texts)
    ]
    parts.append(parts[0]._replace(weight=0.0))
    found = gradients(task, parts, 4)
    assert whole.keys() == found.keys()
    for name, gradient in whole.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-10, atol=1e-14)
    equal = gradients(task, [part._replace(weight=0.25) for part in parts], 4)
    assert not all(torch.allclose(equal[name], whole[name], rtol=1e-3) for name in whole)
