"""Training on the drawn data set, end to end."""

import csv
import json
import logging
import os
import signal

import pytest
import torch
from pytorch_lightning.callbacks import GradientAccumulationScheduler

from captioner.checkpoint import load_model, load_training_file
from captioner.config_files import load_config
from captioner.data.formats import load_captions
from captioner.data.shards import write_shards
from captioner.errors import CheckpointError, ConfigError, TrainingError
from captioner.pipeline import Captioner
from captioner.training.durability import newest_checkpoint
from captioner.training.run import train

TINY = """
data: {batch_images: 10, captions_per_image: 5}
encoder: {name: test_convnext, image_size: [64, 64], train: all}
decoder: {width: 32, layers: 1, heads: 2, max_length: 24, dropout: 0.1}
tokenizer: {min_count: 1}
optimization: {learning_rate: 3.0e-3, warmup_steps: 2, ema_decay: 0.9}
training: {epochs: 2, trainer: {enable_progress_bar: false, accelerator: cpu, log_every_n_steps: 2}}
"""


MOSAICS = ("data.mosaics=0.5", "optimization.pointing=1", "training.epochs=2")


@pytest.fixture
def config(tmp_path, shapes):
    def load(*overrides):
        file = tmp_path / "tiny.yaml"
        file.write_text(TINY)
        return load_config(file, [f"data.root={shapes}", *overrides])

    return load


def weights(folder):
    return load_model(folder)[0].state_dict()


def test_a_run_leaves_a_model_that_captions(config, shapes, tmp_path):
    run = tmp_path / "run"
    folder = train(config(), run)
    assert folder == run / "model"
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert (run / "checkpoints" / "best.ckpt").is_file()
    rows = list(csv.DictReader((run / "metrics.csv").read_text().splitlines()))
    assert [row["val_loss"] for row in rows if row["val_loss"]]
    assert (run / "config.yaml").is_file()
    photo = load_captions(shapes).images[0].path
    captions = [Captioner.from_pretrained(model)(photo) for model in (folder, run / "checkpoints" / "best.ckpt")]
    assert captions[0] == captions[1]
    assert captions[0].text


def test_the_same_seed_gives_the_same_run(config, tmp_path):
    one, same = (weights(train(config("training.epochs=1"), tmp_path / name)) for name in ("one", "same"))
    other = weights(train(config("training.epochs=1", "training.seed=1"), tmp_path / "other"))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [(), MOSAICS], ids=["plain", "mosaics"])
def test_resumed_after_a_kill_equals_uninterrupted(config, tmp_path, shapes, launch, settings):
    """A real process is killed after its first epoch; resuming gives the weights of a run nobody killed."""
    settings = (*settings, f"data.annotations={named(shapes, tmp_path)}")
    whole = weights(train(config(*settings), tmp_path / "whole"))
    run = tmp_path / "run"
    words = [word for each in (f"data.root={config().data.root}", *settings) for word in ("--set", each)]
    process = launch("train", "--config", tmp_path / "tiny.yaml", "-o", run, *words)
    last = run / "checkpoints" / "last.ckpt"
    process.wait_until(last.is_file)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    found = newest_checkpoint(run / "checkpoints")
    assert found == last
    resumed = weights(train(config(*settings), run, resume=found))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_automatic_features_are_stored_in_the_run_of_a_frozen_encoder(config, shapes, tmp_path):
    auto = ("data.features=auto", "training.epochs=1", "training.trainer.limit_train_batches=1")
    shards = tmp_path / "shards"
    assert list(write_shards(load_captions(shapes).split("train").images, shards, max_bytes=10**6))
    cases = [
        (("encoder.train=none",), True),
        (("encoder.train=all",), False),
        (("data.augment=true",), False),
        ((f"data.shards={shards}",), False),
    ]
    for number, (settings, stored) in enumerate(cases):
        run = tmp_path / str(number)
        train(config("encoder.train=none", *settings, *auto), run)
        assert (run / "features").is_dir() == stored
        assert load_config(run / "config.yaml").data.features == (str(run / "features") if stored else None)


def test_stored_features_train_like_photos(config, tmp_path):
    frozen = ("encoder.train=none", "training.epochs=1", "optimization.ema_decay=null")
    photos = weights(train(config(*frozen), tmp_path / "photos"))
    stored = weights(train(config(*frozen, f"data.features={tmp_path / 'store'}"), tmp_path / "stored"))
    for name in photos:
        # float16 features move a few weights; a different order or view of the photos would move all by far more.
        assert (photos[name] - stored[name]).abs().mean() < 3e-4


def test_init_keeps_the_network_and_appends_words(config, tmp_path, shapes, caplog):
    first = train(config("training.epochs=1"), tmp_path / "first")
    text = (shapes / "captions.json").read_text()
    data = json.loads(text)
    for annotation in data["annotations"]:
        annotation["caption"] += " zebrafish"
    (tmp_path / "new.json").write_text(json.dumps(data))
    settings = config("training.epochs=1", f"data.annotations={tmp_path / 'new.json'}")
    caplog.clear()
    with caplog.at_level(logging.INFO, "captioner"):
        second = train(settings, tmp_path / "second", init=first)
    assert "words, 1 of them new (zebrafish)\n" in caplog.text
    (_, old), (model, new) = load_model(first), load_model(second)
    assert len(new) == len(old) + 1
    assert new.unk not in new.encode("zebrafish")
    assert old.unk in old.encode("zebrafish")
    assert model.decoder.token_embedding.weight.shape[0] == len(new)
    assert new.encode("a red circle") == old.encode("a red circle")


def test_a_loss_that_is_not_finite_stops_the_run(config, tmp_path):
    with pytest.raises(TrainingError, match="learning_rate"):
        train(
            config("optimization.learning_rate=1e30", "optimization.gradient_clip=0", "training.epochs=4"),
            tmp_path / "run",
        )


def test_lightning_is_reached_from_the_configuration(config, tmp_path):
    settings = config(
        "training.epochs=1",
        "training.trainer.callbacks=[{class_path: pytorch_lightning.callbacks.Timer, "
        "init_args: {duration: '00:00:10:00'}}]",
        "training.trainer.logger=[{class_path: pytorch_lightning.loggers.CSVLogger, init_args: "
        "{save_dir: %s, name: extra}}]" % (tmp_path / "logs"),
        "training.trainer.limit_train_batches=1",
    )
    train(settings, tmp_path / "run")
    assert list((tmp_path / "logs" / "extra").rglob("metrics.csv"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.trainer.callbacks=[{class: Timer}]", r"class_path: pytorch_lightning\.callbacks\.NAME"),
        ("training.trainer.callbacks=[{class_path: Timer}]", "names no class"),
        ("training.trainer.callbacks=[{class_path: pytorch_lightning.callbacks.Nonsense}]", "Nonsense"),
        ("training.trainer.callbacks={class_path: no_such_module.Timer}", "no_such_module"),
        ("training.trainer.callbacks=[{class_path: pathlib.Path}]", "pathlib.Path is not a pytorch_lightning Callback"),
        ("training.trainer.logger={class_path: pytorch_lightning.callbacks.Timer}", "Timer is not a .* Logger"),
        (
            "training.trainer.callbacks=[{class_path: pytorch_lightning.callbacks.Timer, init_args: {wrong: 1}}]",
            "Timer rejects its init_args",
        ),
        ("training.trainer.precission=32", "did you mean precision"),
        ("training.trainer.precision=nonsense", "rejected by Lightning"),
        (
            "training.trainer.callbacks=[{class_path: pytorch_lightning.callbacks.ModelCheckpoint, "
            "init_args: {monitor: val_cider_d, mode: max}}]",
            "more than one stateful callback",
        ),
    ],
)
def test_what_lightning_does_not_know_is_a_clear_error(config, tmp_path, override, message):
    with pytest.raises(ConfigError, match=message):
        train(config(override), tmp_path / "run")


def test_a_schedule_of_accumulation_is_refused(config, tmp_path):
    """A batch's weight is its share of a step's tokens, which is computed for a whole epoch."""
    with pytest.raises(ConfigError, match=r"set training\.trainer\.accumulate_grad_batches"):
        train(config(), tmp_path / "run", callbacks=[GradientAccumulationScheduler({0: 1, 1: 2})])


def test_a_folder_that_holds_a_run_is_refused(config, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    with pytest.raises(ConfigError, match="already holds a run"):
        train(config(), tmp_path)


def test_a_dry_run_writes_nothing(config, tmp_path):
    train(config(), tmp_path / "run", fast_dev_run=True)
    assert not (tmp_path / "run").exists()


def test_a_foreign_checkpoint_is_not_resumed(config, tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "foreign.ckpt")
    with pytest.raises(CheckpointError, match="not a checkpoint of this program"):
        train(config(), tmp_path / "run", resume=tmp_path / "foreign.ckpt")


def test_a_resumed_run_needs_no_init(config, tmp_path):
    """The network and the words are the checkpoint's, whatever the configuration says by default."""
    first = train(config("training.epochs=1"), tmp_path / "first")
    other = ("decoder.width=64", "decoder.heads=4")
    train(config("training.epochs=1", *other), tmp_path / "second", init=first)
    last = newest_checkpoint(tmp_path / "second" / "checkpoints")
    model = train(config("training.epochs=2", *other), tmp_path / "second", resume=last)
    assert load_model(model)[0].decoder.config.width == 32
    assert "decoder:\n  width: 32" in (tmp_path / "second" / "config.yaml").read_text()


def test_the_card_says_what_a_model_started_from(config, tmp_path):
    first = train(config("training.epochs=1"), tmp_path / "first")
    second = train(config("training.epochs=1"), tmp_path / "second", init=first)
    assert f"Started from `{first}`" in (second / "README.md").read_text()
    assert "Started from" not in (first / "README.md").read_text()


def test_the_last_epoch_is_kept_even_where_it_is_not_the_best(config, tmp_path):
    # No step is large enough to change a weight, so no later epoch is better than the first.
    still = [f"optimization.{name}=1.0e-30" for name in ("learning_rate", "encoder_learning_rate")]
    train(config("training.epochs=3", "optimization.ema_decay=null", *still), tmp_path / "run")
    best, last = (load_training_file(tmp_path / "run" / "checkpoints" / f"{name}.ckpt") for name in ("best", "last"))
    assert (best["epoch"], last["epoch"]) == (0, 2)


def test_the_best_epoch_is_the_one_of_the_best_cider(config, tmp_path):
    settings = ("training.epochs=4", "optimization.learning_rate=1.0e-2", "data.captions_per_image=2")
    train(config("data.batch_images=4", *settings), tmp_path / "run")
    rows = list(csv.DictReader((tmp_path / "run" / "metrics.csv").read_text().splitlines()))
    scores = [float(row["val_cider_d"]) for row in rows if row["val_cider_d"]]
    best = load_training_file(tmp_path / "run" / "checkpoints" / "best.ckpt")
    assert len(scores) == 4
    assert max(scores) > 0
    assert scores[best["epoch"]] == max(scores)
    assert f"CIDEr-D {max(scores):.4f}" in (tmp_path / "run" / "model" / "README.md").read_text()


def test_the_best_epoch_can_be_the_one_of_the_least_loss(config, tmp_path):
    settings = ("training.epochs=4", "optimization.learning_rate=3.0e-2", "training.best_by=loss")
    train(config("data.batch_images=4", "data.captions_per_image=2", *settings), tmp_path / "run")
    rows = list(csv.DictReader((tmp_path / "run" / "metrics.csv").read_text().splitlines()))
    losses = [float(row["val_loss"]) for row in rows if row["val_loss"]]
    best = load_training_file(tmp_path / "run" / "checkpoints" / "best.ckpt")
    [chosen] = [float(state["current_score"]) for state in best["callbacks"].values() if "current_score" in state]
    assert losses[best["epoch"]] == min(losses)
    assert chosen == pytest.approx(min(losses), rel=1e-5)  # not the CIDEr-D of that epoch
    assert f"cross-entropy {min(losses):.3f}" in (tmp_path / "run" / "model" / "README.md").read_text()


def test_one_validation_image_falls_back_to_the_loss(config, tmp_path, shapes):
    data = json.loads((shapes / "captions.json").read_text())
    val = [image for image in data["images"] if image["split"] == "val"]
    for image in val[1:]:
        image["split"] = "unused"
    (tmp_path / "one.json").write_text(json.dumps(data))
    folder = train(config("training.epochs=2", f"data.annotations={tmp_path / 'one.json'}"), tmp_path / "run")
    assert "cross-entropy" in (folder / "README.md").read_text()


def test_mosaics_are_trained_on_and_looked_at(config, tmp_path, shapes):
    """Shapes are no objects of the noun list, so the captions get some."""
    settings = config(*MOSAICS, f"data.annotations={named(shapes, tmp_path)}")
    folder = train(settings, tmp_path / "run")
    rows = list(csv.DictReader((tmp_path / "run" / "metrics.csv").read_text().splitlines()))
    for column in ("val_pointing", "val_entropy", "val_null_mass", "heads/pointing_0.1", "heads/null_mass_0.0"):
        values = [float(row[column]) for row in rows if row.get(column)]
        assert len(values) == 2, column
        assert 0 <= min(values) <= max(values) <= (4 if "entropy" in column else 1)
    assert any(row.get("train_pointing_loss") for row in rows)
    best = load_model(folder)[0].config.best_heads
    assert set(best) <= {(0, 0), (0, 1)}


def test_stored_mosaics_train_like_photos(config, tmp_path, shapes):
    frozen = (*MOSAICS, "encoder.train=none", "training.epochs=1", "optimization.ema_decay=null")
    frozen += (f"data.annotations={named(shapes, tmp_path)}",)
    photos = weights(train(config(*frozen), tmp_path / "photos"))
    stored = weights(train(config(*frozen, f"data.features={tmp_path / 'store'}"), tmp_path / "stored"))
    for name in photos:
        assert (photos[name] - stored[name]).abs().mean() < 3e-4


def named(shapes, folder):
    """The drawn captions with a dog in each, and four validation images or more."""
    data = json.loads((shapes / "captions.json").read_text())
    for place, image in enumerate(data["images"]):
        image["split"] = "val" if place % 3 == 0 else "train"
    for annotation in data["annotations"]:
        annotation["caption"] = f"a dog and {annotation['caption']}"
    (folder / "named.json").write_text(json.dumps(data))
    return folder / "named.json"


def test_training_without_a_log_is_possible(config, tmp_path):
    train(config("training.epochs=1", "training.trainer.log_every_n_steps=0"), tmp_path / "run")
    rows = list(csv.DictReader((tmp_path / "run" / "metrics.csv").read_text().splitlines()))
    assert [bool(row["val_loss"]) for row in rows] == [True]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("optimization.pointing=1",), "optimization.pointing: needs mosaics"),
        (("data.feature_views=4",), r"data\.feature_views: .*data\.features names none.*data\.augment: true"),
        (("data.augment=true", "data.features=store"), r"data\.augment: true needs data\.feature_views of at least 2"),
    ],
)
def test_settings_that_need_others(config, tmp_path, overrides, message):
    with pytest.raises(ConfigError, match=message):
        train(config("encoder.train=none", *overrides), tmp_path / "run")


@pytest.mark.parametrize("features", [False, True])
def test_the_precision_of_training_is_not_that_of_the_model(config, tmp_path, features):
    """A model folder holds float32, and heads are ranked with it."""
    stored = (f"data.features={tmp_path / 'store'}", "encoder.train=none") if features else ()
    settings = config("training.trainer.precision=bf16-true", "training.epochs=1", "data.mosaics=0.5", *stored)
    model = weights(train(settings, tmp_path / "run"))
    assert {each.dtype for each in model.values() if each.is_floating_point()} == {torch.float32}


def test_mixed_precision_trains_with_clipped_gradients(config, tmp_path):
    """Lightning does not clip gradients of a fused optimizer then."""
    settings = config("training.trainer.precision=bf16-mixed", "optimization.gradient_clip=1.0")
    train(settings, tmp_path / "run", fast_dev_run=True)


def test_two_sources_are_trained_together_and_validated_apart(config, shapes, tmp_path):
    one, two = (tmp_path / name for name in ("one", "two"))
    for folder in (one, two):
        folder.symlink_to(shapes)
    sources = f"data.sources=[{{name: one, root: {one}}}, {{name: two, root: {two}, weight: 0.5}}]"
    folder = train(config("data.root=data/shapes", sources, "training.epochs=1"), tmp_path / "run")
    rows = csv.DictReader((tmp_path / "run" / "metrics.csv").read_text().splitlines())
    [row] = [row for row in rows if row["val_loss"]]
    assert float(row["val_one_cider_d"]) == float(row["val_two_cider_d"]) == pytest.approx(float(row["val_cider_d"]))
    assert f"`{one}` (split `train`) and `{two}` (split `train`)" in (folder / "README.md").read_text()
