"""Training steps on an accelerator: everything stays there, and the host waits as rarely as is stated here."""

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from lightning_fabric.utilities.apply_func import move_data_to_device
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.data._utils.pin_memory import pin_memory

from captioner.config import Config, DataConfig, OptimizationConfig, SelfCriticalConfig
from captioner.data.annotations import CaptionedImage
from captioner.data.dataset import Batch, Sample, collate
from captioner.generation.search import CHECK_STEPS
from captioner.training.durability import Durability
from captioner.training.self_critical import SelfCriticalTask
from captioner.training.task import CrossEntropyTask
from tests.fake_cuda import FakeCuda, on_cuda, to_fake_cuda

READ, MASK, COPY = "aten._local_scalar_dense.default", "aten.nonzero.default", "aten._to_copy.default"
IMAGES = 3


class Trainer:
    """What tasks ask Lightning's trainer."""

    world_size, global_rank, accumulate_grad_batches, global_step = 1, 0, 1, 0

    def __init__(self):
        self.total_batch_idx = 0
        self.fit_loop = self.strategy = self

    def reduce(self, sums, reduce_op):
        return sums


@pytest.fixture
def cuda(monkeypatch):
    """Fake CUDA, where lists are read from the GPU at once: corners of no mosaic, and captions of one word."""

    def tolist(self):
        mode.waits.append("tolist")
        return [-1] * len(self) if self.ndim == 1 else [[4] * self.shape[1]] * len(self)

    mode = FakeCuda()
    monkeypatch.setattr(FakeTensor, "tolist", tolist)
    return mode


def prepare(task):
    """A task on fake CUDA, a batch that came there as Lightning moves it, and what will be logged.

    Lightning copies logged tensors on their device, and reads them when it writes a line of the log.
    """
    logged = {}

    def log(name, value, *, prog_bar, batch_size):
        logged[name] = value.clone()

    to_fake_cuda(task)
    task._trainer, task.log = Trainer(), log
    return move_data_to_device(make_batch(), torch.device("cuda")), logged


def make_batch():
    captions = ([1, 4, 5, 2], [1, 4, 2])
    samples = [Sample(place, torch.zeros(3, 64, 64, dtype=torch.uint8), captions) for place in range(IMAGES)]
    return collate(samples, pad=0)


def test_a_batch_is_pinned_and_moved_without_waiting(cuda):
    """As a loader with `pin_memory` pins it, and Lightning moves it."""
    with cuda:
        batch = move_data_to_device(pin_memory(make_batch(), "cuda"), torch.device("cuda"))
    tensors = [each for each in batch if isinstance(each, torch.Tensor)]
    assert isinstance(batch, Batch)
    assert batch.image_ids == [*range(IMAGES)]
    assert on_cuda(*tensors)
    assert cuda.pinned == len(tensors) > 0
    assert cuda.waits == []


@pytest.mark.parametrize("processes", [1, 2])
def test_a_training_step_waits_for_nothing(cuda, task, processes):
    """Its logging included; with shards, processes exchange their numbers of tokens."""
    task.train()
    with cuda:
        batch, logged = prepare(task)
        task.trainer.world_size = processes
        task.config = replace(task.config, data=DataConfig(shards="shards" if processes > 1 else None))
        found = task.training_step(batch, 0)
        assert on_cuda(found["loss"], *logged.values())
    assert cuda.waits == []


def test_the_pointing_loss_looks_for_object_words(cuda, task, monkeypatch):
    """Whether there are any, and which; the shares of corners are copied to the GPU."""
    monkeypatch.setattr(CrossEntropyTask, "total_steps", 10)
    with cuda:
        batch, logged = prepare(task)
        task.config = Config(optimization=OptimizationConfig(pointing=0.1))
        found = task.training_step(batch, 0)
        assert on_cuda(found["loss"], logged["train_pointing_loss"])
    assert Counter(cuda.waits) == {READ: 1, MASK: 1, COPY: 1}


def test_a_step_of_the_optimizer_reads_whether_the_gradient_is_finite(cuda, task, tmp_path):
    """One number: whether the step is skipped, counted and reported is decided on the host."""
    with cuda:
        weights = [torch.nn.Parameter(torch.zeros(size, device="cuda")) for size in (2, 3)]
        for each in weights:
            each.grad = torch.zeros_like(each)
        callback = Durability(tmp_path, {}, Config().training)
        callback.on_before_optimizer_step(SimpleNamespace(global_step=0), task, torch.optim.SGD(weights, lr=0.1))
        assert all(on_cuda(each.grad) for each in weights)
    assert cuda.waits == [READ]


def test_a_self_critical_step_reads_its_samples_once(cuda, task):
    """Rewards are computed from words, on the host."""
    images = [CaptionedImage(place, b"", ("a red circle",), "train") for place in range(IMAGES)]
    config = Config(self_critical=SelfCriticalConfig(samples=4, cross_entropy=0.5))
    critical = SelfCriticalTask(task.model, task.tokenizer, config, task.validation, images)
    steps = critical.model.decoder.config.max_length - 1
    with cuda:
        cuda.answer = 0  # images whose samples have finished
        batch, logged = prepare(critical)
        found = critical.training_step(batch, 0)
        assert on_cuda(found["loss"], logged["train_reward"], logged["train_loss"])
    assert Counter(cuda.waits) == {
        "tolist": 2,  # corners and samples
        READ: (steps - 1) // CHECK_STEPS,  # the search
        MASK: 1,  # the tokens that were sampled
        COPY: 6,  # to the GPU: of the search first and excluded tokens (two lists), noise; excluded tokens, rewards
    }
