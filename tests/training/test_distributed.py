"""Real processes of torch.distributed, with gloo."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from captioner.checkpoint import load_model, load_training_file
from captioner.data.formats import load_captions
from captioner.data.shards import read_index, write_shards
from captioner.generation import Greedy
from captioner.metrics import score_captions
from captioner.pipeline import Captioner
from captioner.training.history import read_table
from captioner.training.optimization import warmup_cosine

pytestmark = pytest.mark.slow

CONFIG = """
data: {root: %s, annotations: %s, batch_images: 64, captions_per_image: 1, mosaics: 0.5}
encoder: {name: test_convnext, image_size: [64, 64], train: all}
decoder: {width: 32, layers: 1, heads: 2, max_length: 24, dropout: 0}
tokenizer: {min_count: 1}
training: {epochs: 1, trainer: {accelerator: cpu, precision: 64-true, log_every_n_steps: 1}}
"""


def validation(run):
    """The rows of metrics.csv with the results of a validation."""
    return [row for row in read_table(run / "metrics.csv").values() if "val_loss" in row]


@pytest.fixture
def command(tmp_path, shapes):
    """The words of `captioner train` with settings, and with callbacks of recorders.py: name=JSON of its argument."""
    (tmp_path / "plain.yaml").write_text(CONFIG % (shapes, shapes / "captions.json"))

    def words(folder, *settings, **callbacks):
        entries = [
            {"class_path": f"tests.training.recorders.{name}", "init_args": arguments}
            for name, arguments in callbacks.items()
        ]
        sets = ("data.mosaics=0", "training.epochs=1", f"training.trainer.callbacks={json.dumps(entries)}", *settings)
        sets = [word for each in sets for word in ("--set", each)]
        return ["train", "--config", tmp_path / "plain.yaml", "-o", folder, *sets]

    return words


@pytest.fixture(scope="module")
def named(tmp_path_factory, shapes):
    """Settings for captions that name objects, in mosaics: shapes are no object words."""
    data = json.loads((shapes / "captions.json").read_text())
    for place, image in enumerate(data["images"]):
        image["split"] = "val" if place % 3 == 0 else "train"
    for annotation in data["annotations"]:
        annotation["caption"] = f"a dog and {annotation['caption']}"
    file = tmp_path_factory.mktemp("named") / "captions.json"
    file.write_text(json.dumps(data))
    return f"data.annotations={file}", "data.mosaics=0.5", "data.batch_images=256"


@pytest.fixture
def train(command, launch, named, tmp_path):
    """Train in so many processes; returns the gradients of the first step."""

    def run(name, world, *settings):
        recorder = {"path": str(tmp_path / f"{name}.pt")}
        words = command(tmp_path / name, *named, f"training.trainer.devices={world}", *settings, Gradients=recorder)
        process = launch(*words, world=world)
        assert process.wait() == 0, process.read(2)
        assert process.read(1) == f"{tmp_path / name / 'model'}\n"
        return torch.load(recorder["path"], weights_only=True)

    return run


def test_fewer_batches_than_processes_and_batches_of_unequal_length(train, named, shapes, tmp_path):
    """Three processes share two training batches and one of validation: the run ends, its one step has the gradient of
    one process with all captions in one batch, and its scores are those of all images. Two processes that accumulate
    two batches each have that gradient too.
    """
    expected = train("whole", 1)
    accumulated = ("data.batch_images=24", "training.trainer.accumulate_grad_batches=2")
    for found in (train("shared", 3, "data.batch_images=64"), train("accumulated", 2, *accumulated)):
        assert expected.keys() == found.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-10, atol=1e-14)
    [measured], [single] = (validation(tmp_path / name) for name in ("shared", "whole"))
    assert measured["val_loss"] == pytest.approx(single["val_loss"], rel=1e-6)
    assert measured["val_pointing"] == pytest.approx(single["val_pointing"], rel=1e-6)
    val = load_captions(shapes, named[0].removeprefix("data.annotations=")).split("val").images
    captioner = Captioner(*load_model(tmp_path / "shared" / "model"), name="run")
    captions = captioner([image.path for image in val], search=Greedy())
    scores = score_captions(
        {image.image_id: caption.text for image, caption in zip(val, captions, strict=True)},
        {image.image_id: image.captions for image in val},
    )
    assert measured["val_cider_d"] == pytest.approx(scores["cider_d"], abs=1e-6)


def test_self_critical_training_by_torchrun(command, launch, tmp_path):
    """Two processes with batches of unequal size, and different samples, have the gradient of one with all images."""
    started = launch(*command(tmp_path / "start"))
    assert started.wait() == 0, started.read(2)
    options = ("training.objective=self_critical", "optimization.learning_rate=1e-6")

    def words(name, images):
        recorder = {"path": str(tmp_path / f"{name}.pt")}
        settings = (*options, f"data.batch_images={images}")
        return *command(tmp_path / name, *settings, Gradients=recorder), "--init", tmp_path / "start" / "model"

    whole = launch(*words("whole", 256))
    assert whole.wait() == 0, whole.read(2)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "-m"]
    shared = [*torchrun, "captioner", *words("shared", 64), "--set", "training.trainer.devices=2"]
    finished = subprocess.run(list(map(str, shared)), capture_output=True, text=True, check=False, timeout=200)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout == f"{tmp_path / 'shared' / 'model'}\n"
    assert finished.stderr.count("before training: CIDEr-D") == 1  # one process reports
    expected, found = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("whole", "shared"))
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-10, atol=1e-12)
    [measured], [single] = (read_table(tmp_path / name / "metrics.csv").values() for name in ("shared", "whole"))
    assert measured["val_cider_d"] == pytest.approx(single["val_cider_d"], abs=1e-6)


def test_a_run_goes_on_with_other_numbers_of_processes(command, launch, shapes, tmp_path):
    """Two processes, then one, then three, an epoch each: every caption is trained on once an epoch, the schedule goes
    by epochs, and the average of the weights is kept.
    """
    run, steps = tmp_path / "run", {}
    data = ("data.batch_images=2", "training.epochs=3", "optimization.ema_decay=0.5")
    rates = ("optimization.learning_rate=1e-3", "optimization.warmup_steps=0", "optimization.final_learning_rate=0")
    for epoch, world in enumerate((2, 1, 3)):
        callbacks = {"Batches": {"path": str(tmp_path / "batches")}, "StopAfter": {"epoch": epoch}}
        words = command(run, *data, *rates, f"training.trainer.devices={world}", **callbacks)
        process = launch(*words, "--resume", "auto", world=world)
        assert process.wait() == 0, process.read(2)
        state = load_training_file(run / "checkpoints" / "last.ckpt")
        lines = [
            json.loads(line)
            for rank in range(world)
            for line in Path(f"{tmp_path / 'batches'}.{world}.{rank}").read_text().splitlines()
        ]
        assert {line[0] for line in lines} == {epoch}
        shown = Counter(image for line in lines for image in line[3])
        train = load_captions(shapes).split("train").images
        assert shown == {image.image_id: len(image.captions) for image in train}
        steps[world] = len(lines) // world
        first = {line[1] for line in lines if line[1] == min(line[1] for line in lines)}
        assert first == {sum(list(steps.values())[:-1])}
        assert state["global_step"] == sum(steps.values())
        for _, step, rate, _ in lines:
            if step not in first:  # that one still has the rate of the end of the epoch before
                place = epoch * steps[world] + step - min(first)
                expected = warmup_cosine(place, warmup=0, total=3 * steps[world], final=0)
                assert rate == pytest.approx(1e-3 * expected, rel=1e-6, abs=1e-12)
    rows = read_table(run / "metrics.csv")
    assert list(rows) == sorted(rows)
    assert [row["epoch"] for row in rows.values() if "val_loss" in row] == [0, 1, 2]
    weights, average = state["current_model_state"], state["state_dict"]
    assert any(not torch.equal(weights[name], average[name]) for name in weights)
    assert steps[1] > steps[2] > steps[3]


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("killed", "has died or lost its connection"),
        ("hangs", "made no progress for 0.1 minutes (training.stall_minutes), and the others wait"),
        ("fails", "failed with AnnotationError: photo.jpg: is broken"),
    ],
)
def test_a_process_that_dies_or_hangs_ends_the_run(command, launch, tmp_path, how, reason):
    settings = ("data.batch_images=2", "training.stall_minutes=0.1", "training.trainer.devices=2")
    process = launch(*command(tmp_path / "run", *settings, Misbehave={"how": how}), world=2)
    assert process.wait() == 1
    errors = [
        line for line in process.read(2).splitlines() if line.startswith("captioner: error: process 1 of 2 (pid ")
    ]
    assert len(errors) == 1, process.read(2)
    assert reason in errors[0]
    assert errors[0].endswith("; continue with --resume auto")


def test_training_from_shards(command, launch, shapes, tmp_path):
    """A step of two processes has the gradient of one with all samples; then a run that is stopped after an epoch, with
    loader workers and a sample that is broken, goes on as the run that is not.
    """
    shards = tmp_path / "shards"
    [path] = write_shards(load_captions(shapes).split("train").images, shards, max_bytes=10**6)
    stream = (f"data.shards={shards}", "data.captions_per_image=9")
    for name, world, images in (("whole", 1, 64), ("shared", 2, 12)):
        recorder = {"path": str(tmp_path / f"{name}.pt")}
        settings = (*stream, f"data.batch_images={images}", f"training.trainer.devices={world}")
        process = launch(*command(tmp_path / name, *settings, Gradients=recorder), world=world)
        assert process.wait() == 0, process.read(2)
    expected, found = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("whole", "shared"))
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-10, atol=1e-14)

    entry, data = read_index(path).entries[3], bytearray(path.read_bytes())
    data[entry.photo : entry.photo + entry.photo_size] = bytes(entry.photo_size)
    path.write_bytes(data)
    stream = (
        *stream,
        "data.workers=1",
        "data.batch_images=3",
        "training.epochs=2",
        "training.trainer.precision=32-true",
    )
    whole = launch(*command(tmp_path / "long", *stream))
    assert whole.wait() == 0, whole.read(2)
    assert whole.read(2).count(": 1 samples left out, as they cannot be used\n") == 2
    for epoch in (0, 1):
        process = launch(*command(tmp_path / "cut", *stream, StopAfter={"epoch": epoch}), "--resume", "auto")
        assert process.wait() == 0, process.read(2)
    one, other = (load_training_file(tmp_path / name / "checkpoints" / "last.ckpt") for name in ("long", "cut"))
    assert one["global_step"] == other["global_step"]
    assert all(torch.equal(weights, other["state_dict"][name]) for name, weights in one["state_dict"].items())
