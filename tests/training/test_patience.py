"""Early stopping: a run goes on while its score or its loss improves."""

from types import SimpleNamespace

import pytest
import torch

from captioner.training.patience import Patience


def validations_until_stop(scores, losses, patience):
    """After how many validations a run with these results stops; None if it does not."""
    callback = Patience("val_cider_d", "max", patience)
    callback._check_on_train_epoch_end = False
    metrics = {}
    trainer = SimpleNamespace(
        callback_metrics=metrics,
        sanity_checking=False,
        fast_dev_run=False,
        should_stop=False,
        current_epoch=0,
        state=SimpleNamespace(fn="fit"),
        strategy=SimpleNamespace(reduce_boolean_decision=lambda decision, all: decision),
    )
    for count, (score, loss) in enumerate(zip(scores, losses, strict=True), start=1):
        metrics.update(val_cider_d=torch.tensor(score), val_loss=torch.tensor(loss))
        callback.on_validation_end(trainer, None)
        if trainer.should_stop:
            return count
        state, callback = callback.state_dict(), Patience("val_cider_d", "max", patience)  # as after --resume
        callback._check_on_train_epoch_end = False
        callback.load_state_dict(state)
    return None


@pytest.mark.parametrize(
    ("scores", "losses", "stop"),
    [
        ([0.3, 0.2, 0.2, 0.2], [3.0, 2.9, 2.8, 2.7], None),
        ([0.3, 0.4, 0.5, 0.6], [3.0, 3.1, 3.2, 3.3], None),
        ([0.3, 0.2, 0.2, 0.2], [3.0, 3.0, 3.1, 3.1], 3),
        ([0.3, 0.2, 0.4, 0.3, 0.3], [3.0, 2.9, 3.1, 3.1, 3.1], 5),
        ([0.3, 0.2, 0.2, 0.2], [3.0, float("nan"), 3.1, 3.1], 3),
    ],
)
def test_it_stops_when_neither_improves(scores, losses, stop):
    assert validations_until_stop(scores, losses, patience=2) == stop
