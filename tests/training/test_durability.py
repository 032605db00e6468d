"""Runs that are killed, ended by signals, or meet full disks and losses that are not finite: real ones."""

import copy
import hashlib
import logging
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import pytest
import torch
from pytorch_lightning.callbacks import Callback, EarlyStopping, ModelCheckpoint

from captioner.checkpoint import load_model, load_training_file
from captioner.config import Config
from captioner.config_files import load_config, to_dict
from captioner.data.dataset import SIGNALS
from captioner.errors import CheckpointError, ConfigError, Interrupted, ResourceError, TrainingError
from captioner.files import locked
from captioner.training.durability import BEST, LAST, WholeCheckpoints, check_same_run, newest_checkpoint
from captioner.training.history import read_table
from captioner.training.run import LOCK, train

soak = import_module("scripts.soak")


BASE = ("data.augment=false", "data.captions_per_image=2", "training.checkpoint_minutes=60")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, shapes):
    """A run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "tiny.yaml").write_text(soak.CONFIG % shapes)
    train(load_config(folder / "tiny.yaml", BASE), folder / "run")
    return folder / "run"


@pytest.fixture
def config(tmp_path, shapes):
    def load(*overrides):
        file = tmp_path / "tiny.yaml"
        file.write_text(soak.CONFIG % shapes)
        return load_config(file, [*BASE, *overrides])

    return load


class SignalAt(Callback):
    """Sends SIGTERM to this process, once, where one of Lightning's hooks is called in an epoch."""

    def __init__(self, epoch, hook):
        self.epoch = epoch
        setattr(self, hook, self.send)

    def send(self, trainer, *arguments):
        if trainer.current_epoch == self.epoch:
            self.epoch = None
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)


def weights(model):
    return load_model(model)[0].state_dict()


def equal(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="process groups as Unix has them")
@pytest.mark.parametrize(
    ("variant", "kills"), [("photos, two batches a step", 1), ("stored features, loader workers", 1)]
)
def test_a_run_that_is_killed_is_the_run_that_is_not(shapes, tmp_path, launch, variant, kills):
    """The short form of `make soak`: SIGKILL, weights bit for bit, and the same metrics.csv."""
    done, same = soak.soak(tmp_path, shapes, soak.VARIANTS[variant], kills, seed=1, start=launch)
    assert same, done


def wait_for_rows(process, run, rows):
    """Return once the metrics.csv of a run has so many rows."""
    table = run / "metrics.csv"

    def is_there():
        assert process.poll() is None
        return table.exists() and len(read_table(table)) >= rows

    process.wait_until(is_there)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals as Unix has them")
@pytest.mark.parametrize(("number", "workers"), [(number, int(number == signal.SIGTERM)) for number in SIGNALS])
def test_a_signal_saves_and_ends_with_its_code(config, whole, tmp_path, launch, number, workers):
    """To all processes of the run, as a terminal or SLURM sends it."""
    settings = (*BASE, f"data.workers={workers}")
    config()
    run = tmp_path / "run"
    words = [word for each in settings for word in ("--set", each)]
    process = launch("train", "--config", tmp_path / "tiny.yaml", *words, "-o", run)
    wait_for_rows(process, run, rows=5)
    os.killpg(process.pid, number)
    code, out, err = process.wait(), process.read(1), process.read(2)
    assert code == 128 + number, err
    assert not out
    [last] = [line for line in err.splitlines() if line.startswith("captioner: error: ")]
    assert last.startswith(f"captioner: error: {signal.Signals(number).name} after step ")
    assert "--resume auto" in last
    found = newest_checkpoint(run / "checkpoints")
    assert found == run / "checkpoints" / LAST
    assert load_training_file(found)["global_step"] == int(last.split("step ")[1].split(";")[0])
    assert equal(weights(whole / "model"), weights(train(config(*settings), run, resume=found)))
    assert (run / "metrics.csv").read_text() == (whole / "metrics.csv").read_text()


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals as Unix has them")
def test_a_signal_to_one_of_two_processes_ends_both(config, tmp_path):
    config()
    run = tmp_path / "run"
    command = [sys.executable, "-m", "captioner", "train", "--config", str(tmp_path / "tiny.yaml"), "-o", str(run)]
    command += ["--set", "training.epochs=50", "--set", "training.checkpoint_minutes=60"]
    command += ["--set", "training.trainer.devices=2", "--set", "training.trainer.strategy=ddp"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 120
    while len(read_table(run / "metrics.csv") if (run / "metrics.csv").exists() else ()) < 5:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)  # which waits for the other one's end of the pipe too
    assert process.returncode == 143, err
    assert f"after step {load_training_file(run / 'checkpoints' / LAST)['global_step']};" in err


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals as Unix has them")
def test_a_signal_in_validation_ends_the_run(config, tmp_path):
    """In this process: the handlers are those of before, whether a run ends by itself or by a signal."""
    before = [signal.getsignal(each) for each in SIGNALS]
    settings = config("data.batch_images=1", "training.trainer.limit_train_batches=9")
    with pytest.raises(Interrupted) as ended:
        train(settings, tmp_path / "run", callbacks=[SignalAt(1, "on_validation_batch_end")])
    assert ended.value.exit_code == 143
    assert [signal.getsignal(each) for each in SIGNALS] == before
    state = load_training_file(tmp_path / "run" / "checkpoints" / LAST)
    rows = read_table(tmp_path / "run" / "metrics.csv")
    assert max(rows) - 1 == state["global_step"]  # the last batch but one of the second epoch
    expected = f"SIGTERM after step {max(rows)}; continue with --resume auto, from step {state['global_step']}"
    assert str(ended.value) == expected
    resumed = weights(train(settings, tmp_path / "run", resume=tmp_path / "run" / "checkpoints" / LAST))
    assert equal(weights(train(settings, tmp_path / "whole")), resumed)


WORSENING = (
    "optimization.learning_rate=0.02",
    "optimization.ema_decay=null",
    "training.epochs=6",
    "data.batch_images=8",
    "data.captions_per_image=5",
)


class Worsen(Callback):
    """Deletes what was learned before the validations of late epochs, so that the best epoch is an early one."""

    def on_validation_start(self, trainer, task):
        if trainer.current_epoch >= 3:
            task.model.decoder.token_embedding.weight.data.zero_()


@pytest.fixture(scope="module")
def worsened(tmp_path_factory, shapes):
    """Such a run, undisturbed."""
    folder = tmp_path_factory.mktemp("worsened")
    (folder / "tiny.yaml").write_text(soak.CONFIG % shapes)
    train(load_config(folder / "tiny.yaml", [*BASE, *WORSENING]), folder / "run", callbacks=[Worsen()])
    assert load_training_file(folder / "run" / "checkpoints" / BEST)["epoch"] < 3
    return folder / "run"


def digest(model):
    return hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals and links as Unix has them")
@pytest.mark.parametrize("place", ["relative", "absolute", "linked", "moved"])
def test_a_resumed_run_exports_the_epoch_that_an_uninterrupted_one_does(config, worsened, tmp_path, monkeypatch, place):
    """However the folder is named: Lightning compares real paths, and forgets the best score where they differ."""
    monkeypatch.chdir(tmp_path)
    run = {"relative": Path("runs/own"), "linked": tmp_path / "link" / "own"}.get(place, tmp_path / "own")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    settings, last = config(*WORSENING), None
    for leg, epoch in enumerate((1, 3, 4, None) if place == "relative" else (3, None)):
        if epoch is None:
            assert digest(train(settings, run, resume=last, callbacks=[Worsen()])) == digest(worsened / "model")
        else:
            with pytest.raises(Interrupted):
                train(settings, run, resume=last, callbacks=[Worsen(), SignalAt(epoch, "on_train_epoch_end")])
        if place == "moved":
            run = run.rename(tmp_path / f"moved {leg}")
        last = run / "checkpoints" / LAST
    assert (run / "metrics.csv").read_text() == (worsened / "metrics.csv").read_text()


def test_a_folder_in_which_another_process_trains_is_refused(config, tmp_path):
    run = tmp_path / "run"
    with locked(run / LOCK), pytest.raises(ResourceError, match="another process trains in this folder"):
        train(config("training.epochs=1"), run)
    assert not (run / "config.yaml").exists()
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / f".{LAST}.partial").write_bytes(b"of a process that was killed")
    train(config("training.epochs=1"), run)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["best.ckpt", LAST]
    assert not (run / LOCK).exists()


@pytest.fixture
def small_disk(tmp_path):
    """A tmpfs of 16 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("mounting a small disk takes root")
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mount.returncode:
        pytest.skip(f"no small disk can be mounted here: {mount.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_leaves_what_was_there(small_disk):
    path = small_disk / LAST
    old = {"captioner": {}, "state_dict": {"a": torch.zeros(1000)}}
    WholeCheckpoints().save_checkpoint(old, path)
    with pytest.raises(ResourceError, match=r"earlier checkpoints are intact.*--resume auto"):
        WholeCheckpoints().save_checkpoint(old | {"more": torch.zeros(2**22)}, path)
    assert [each.name for each in small_disk.iterdir()] == [LAST]
    assert torch.equal(load_training_file(path)["state_dict"]["a"], torch.zeros(1000))


def test_a_folder_that_cannot_be_made_is_an_error_with_its_reason(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match=r"cannot be written \(Not a directory"):
        WholeCheckpoints().save_checkpoint({}, tmp_path / "file" / "checkpoints" / LAST)


@pytest.mark.slow
def test_a_run_on_a_full_disk_ends_in_a_sentence(config, shapes, tmp_path, small_disk, launch):
    """The disk fills up after the first checkpoint, which stays whole."""
    config()
    last = small_disk / "run" / "checkpoints" / LAST
    words = ("--config", tmp_path / "tiny.yaml", "--set", "training.epochs=50", "-o", small_disk / "run")
    process = launch("train", *words)
    process.wait_until(lambda: last.exists() or process.poll() is not None)
    with (small_disk / "filler").open("wb", buffering=0) as filler, suppress(OSError):
        while True:
            filler.write(bytes(2**14))
    code, err = process.wait(), process.read(2)
    assert code == 5, err
    assert len([line for line in err.splitlines() if line.startswith("captioner: error:")]) == 1
    assert "Traceback" not in err
    assert load_training_file(last)["global_step"] > 0


def test_no_run_begins_without_room_for_checkpoints(config, small_disk):
    with pytest.raises(ResourceError, match="make room"):
        train(config("decoder.width=512"), small_disk / "run")


class Poison(Callback):
    """Makes the gradients of some steps NaN."""

    def __init__(self, steps):
        self.steps = steps

    def on_before_optimizer_step(self, trainer, task, optimizer):
        if trainer.global_step in self.steps:
            for each in task.parameters():
                each.grad = None if each.grad is None else each.grad * torch.nan
            self.steps = self.steps - {trainer.global_step} if trainer.global_step < 20 else self.steps


def test_steps_that_are_not_finite_change_nothing_and_end_the_run(config, tmp_path, caplog):
    """Three bad steps are skipped; ten in a row end the run, with the images and the checkpoint of before."""
    model = weights(train(config("training.epochs=1"), tmp_path / "some", callbacks=[Poison({3, 4, 5})]))
    skipped = [int(step) for step in re.findall(r"step (\d+): non-finite", caplog.text)]
    assert skipped == [4, 5, 6], "as metrics.csv counts: after three steps, the fourth begins"
    assert all(each.isfinite().all() for each in model.values())
    with pytest.raises(TrainingError, match=r"in 10 steps up to step 30; the last batch held images \[.*last.ckpt"):
        train(config("training.checkpoint_minutes=0"), tmp_path / "many", callbacks=[Poison({3, 4, 5, *range(20, 40)})])
    state = load_training_file(tmp_path / "many" / "checkpoints" / LAST)
    assert state["global_step"] == 20
    assert all(each.isfinite().all() for each in state["state_dict"].values())


@pytest.mark.parametrize("batches", [1, 3, 40])
def test_weights_that_are_not_finite_are_not_kept(config, tmp_path, batches):
    """Neither as the last nor as the best ones, however short the epoch."""
    settings = (f"training.trainer.limit_train_batches={batches}",)
    with pytest.raises(TrainingError, match="learning_rate"):
        train(config("optimization.learning_rate=1e38", "optimization.gradient_clip=0", *settings), tmp_path / "run")
    assert not list((tmp_path / "run" / "checkpoints").glob("*.ckpt"))


def test_the_newest_whole_checkpoint_is_found(config, tmp_path, caplog):
    train(config("training.epochs=1"), tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    assert newest_checkpoint(folder) == folder / LAST
    (folder / LAST).write_bytes((folder / LAST).read_bytes()[:-1000])
    assert newest_checkpoint(folder) == folder / "best.ckpt"
    assert "skipped" in caplog.text
    (folder / "best.ckpt").write_bytes(b"")
    with pytest.raises(CheckpointError, match="not a complete checkpoint"):
        newest_checkpoint(folder)


@pytest.mark.slow
def test_a_run_goes_on_with_its_own_settings_only(config, shapes, tmp_path):
    run = tmp_path / "run"
    train(config("training.epochs=1"), run)
    last = run / "checkpoints" / LAST
    with pytest.raises(ConfigError, match=r"batch_images was 2 and is 4; optimization\.learning_rate was"):
        train(config("data.batch_images=4", "optimization.learning_rate=1.0e-3"), run, resume=last)
    other = shapes.parent / "named.json"
    other.write_text((shapes / "captions.json").read_text().replace("red", "scarlet"))
    with pytest.raises(ConfigError, match="captions was"):
        train(config(f"data.annotations={other}", f"data.images={shapes / 'images'}"), run, resume=last)
    train(config("training.epochs=2", "data.workers=1"), run, resume=last)


def test_a_run_goes_on_by_the_settings_in_its_folder(config, whole, tmp_path):
    run = tmp_path / "run"
    train(config("training.epochs=1", "decoder.width=64"), run, init=whole / "model")
    own = load_config(run / "config.yaml", ["training.epochs=2"])
    assert own.decoder.width == 32  # that of the model it began with
    last = run / "checkpoints" / LAST
    train(own, run, resume=last)
    train(config("training.epochs=3", "decoder.width=64"), run, resume=last)
    with pytest.raises(ConfigError, match=r"decoder\.width was 64 and is 48"):
        train(config("decoder.width=48"), run, resume=last)


def test_a_checkpoint_of_another_version_is_not_resumed(config, whole, tmp_path):
    state = load_training_file(whole / "checkpoints" / LAST)
    state.pop("identity")
    torch.save(state, tmp_path / "old.ckpt")
    with pytest.raises(CheckpointError, match="another version of captioner; start a new run with --init"):
        train(config(), tmp_path / "run", resume=tmp_path / "old.ckpt")


def test_a_run_that_stopped_early_does_not_train_on(config, tmp_path, caplog):
    caplog.set_level(logging.INFO, "captioner")
    still = [f"optimization.{name}=1.0e-30" for name in ("learning_rate", "encoder_learning_rate")]
    settings = ("training.epochs=9", "training.patience=1", "optimization.ema_decay=null", *still)
    settings += ("data.batch_images=20", "data.captions_per_image=5")
    run = tmp_path / "run"
    train(config(*settings), run)
    last = run / "checkpoints" / LAST
    steps, table = load_training_file(last)["global_step"], (run / "metrics.csv").read_text()
    assert "stopped after epoch 1, as neither val_cider_d nor val_loss improved for 1 epochs" in caplog.text
    caplog.clear()
    train(config(*settings), run, resume=last)
    assert "stopped after epoch 1, as neither val_cider_d" in caplog.text
    assert load_training_file(last)["global_step"] == steps
    assert (run / "metrics.csv").read_text() == table
    train(config(*settings, "training.patience=3"), run, resume=last)
    assert load_training_file(last)["global_step"] > steps


def test_a_run_resumed_in_another_folder_starts_its_best_epoch_afresh(config, tmp_path):
    """The best checkpoint stays in the old folder; the new one ends with a model though no later epoch is better."""
    still = [f"optimization.{name}=1.0e-30" for name in ("learning_rate", "encoder_learning_rate")]
    settings = ("optimization.ema_decay=null", "training.trainer.limit_train_batches=2", *still)
    train(config("training.epochs=1", *settings), tmp_path / "run")
    last = tmp_path / "run" / "checkpoints" / LAST
    assert (
        train(config("training.epochs=2", *settings), tmp_path / "other", resume=last) == tmp_path / "other" / "model"
    )
    assert load_training_file(tmp_path / "other" / "checkpoints" / BEST)["epoch"] == 1
    assert load_training_file(tmp_path / "run" / "checkpoints" / BEST)["epoch"] == 0


def test_a_users_callbacks_keep_their_state(config, tmp_path):
    """A folder of its own for checkpoints, and a patience of its own."""

    def callbacks():
        kept = ModelCheckpoint(tmp_path / "own", filename="{epoch}", monitor="val_loss", save_top_k=5)
        return [kept, EarlyStopping("val_loss", patience=7)]

    limit = "training.trainer.limit_train_batches=3"
    train(config(limit, "training.epochs=1"), tmp_path / "run", callbacks=callbacks())
    kept, stopping = callbacks()
    last = tmp_path / "run" / "checkpoints" / LAST
    train(config(limit, "training.epochs=2"), tmp_path / "run", resume=last, callbacks=[kept, stopping])
    assert sorted(Path(path).name for path in kept.best_k_models) == ["epoch=0.ckpt", "epoch=1.ckpt"]
    assert stopping.patience == 7


@pytest.mark.parametrize(
    ("trainer", "signaled"),
    [
        ("{val_check_interval: 0.5}", (0, "on_validation_batch_start")),
        (
            "{val_check_interval: 7, check_val_every_n_epoch: null, limit_train_batches: 6, log_every_n_steps: 1}",
            (1, "on_train_batch_end"),
        ),
    ],
    ids=["twice an epoch", "every 7 batches"],
)
def test_validation_within_an_epoch_is_not_passed_over(config, tmp_path, trainer, signaled):
    settings = (f"training.trainer={trainer}", f"training.epochs={signaled[0] + 1}")
    train(config(*settings), tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(config(*settings), tmp_path / "cut", callbacks=[SignalAt(*signaled)])
    train(config(*settings), tmp_path / "cut", resume=newest_checkpoint(tmp_path / "cut" / "checkpoints"))
    assert (tmp_path / "cut" / "metrics.csv").read_text() == (tmp_path / "whole" / "metrics.csv").read_text()


def test_lengths_in_steps_are_refused(config, tmp_path):
    with pytest.raises(ConfigError, match=r"with training\.epochs"):
        train(config("training.trainer.max_steps=5"), tmp_path / "run")


def test_settings_that_an_older_version_lacked_have_their_defaults():
    now = to_dict(Config()) | {"captions": "abc"}
    before = copy.deepcopy(now)
    del before["training"]["interpolate"]
    checkpoint = {"identity": before, "captioner": {"run": copy.deepcopy(before)}}
    check_same_run(now, checkpoint, Path("last.ckpt"))
    now["training"]["interpolate"] = True
    with pytest.raises(ConfigError, match=r"training\.interpolate was false and is true"):
        check_same_run(now, checkpoint, Path("last.ckpt"))
