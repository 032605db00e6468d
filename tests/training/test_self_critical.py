"""Self-critical training: its gradient, its rewards, and runs that resume and stop."""

import csv
import logging
import os
import signal
import time

import pytest
import torch
from pytorch_lightning.callbacks import Callback

from captioner.checkpoint import load_model
from captioner.config import Config, DecoderConfig, EncoderConfig, ModelConfig, SelfCriticalConfig, TokenizerConfig
from captioner.config_files import load_config
from captioner.data.annotations import CaptionedImage
from captioner.errors import ConfigError, Interrupted
from captioner.metrics.reward import EOS, CiderReward
from captioner.model.caption_model import CaptionModel
from captioner.tokenizer import Tokenizer
from captioner.training.run import train
from captioner.training.self_critical import SelfCriticalTask
from captioner.training.validation import CaptionValidation

CAPTIONS = [("a red circle", "a circle"), ("a blue star above",), ("a red star", "star")]
DATASETS = ["one", "two", "one"]
SAMPLES = 3


class Loop:
    """What the task asks Lightning's trainer."""

    world_size, global_rank, accumulate_grad_batches = 1, 0, 1

    def __init__(self, batches=0):
        self.total_batch_idx = batches
        self.fit_loop = self


@pytest.fixture
def task():
    torch.manual_seed(0)
    tokenizer = Tokenizer.train(["a red circle above a blue star"], TokenizerConfig(min_count=1))
    encoder = EncoderConfig(name="test_convnext", image_size=(64, 64))
    network = ModelConfig(encoder=encoder, decoder=DecoderConfig(width=32, heads=2, layers=2, max_length=10))
    model = CaptionModel(network, vocabulary=len(tokenizer))
    config = Config(self_critical=SelfCriticalConfig(samples=SAMPLES))
    images = [
        CaptionedImage(place, b"", captions, "train", dataset)
        for place, (captions, dataset) in enumerate(zip(CAPTIONS, DATASETS, strict=True))
    ]
    more = [CaptionedImage(3, b"", ("a blue circle",), "train", "two")]
    task = SelfCriticalTask(model, tokenizer, config, CaptionValidation(tokenizer, [], config.training), images + more)
    task._trainer = Loop()
    return task.eval()


@pytest.fixture
def memory(task):
    with torch.no_grad():
        return task.model.encode(torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8))


def test_the_loss_is_that_of_the_formula(task, memory):
    """Sample by sample and token by token: -(r - mean of the other rewards) log p, averaged over tokens."""
    loss, counted, logged = task.policy_loss(memory, [0, 1, 2])
    tokens, lengths = task.sample(memory, [0, 1, 2])
    texts = [task.tokenizer.decode(row[1:]) for row in tokens.tolist()]
    ended = [task.tokenizer.eos in row for row in tokens.tolist()]
    rewards = task.reward([0, 1, 2], texts, ended)
    total, count = 0.0, 0
    for image in range(3):
        for sample in range(SAMPLES):
            row = image * SAMPLES + sample
            others = [rewards[image, each] for each in range(SAMPLES) if each != sample]
            advantage = rewards[image, sample] - sum(others) / len(others)
            ids = tokens[row, : lengths[row]][None]
            logits = task.model.decoder(ids[:, :-1], memory.select(torch.tensor([image]))).logits[0].clone()
            logits[:, task.tokenizer.suppressed] = -torch.inf
            for place, token in enumerate(ids[0, 1:].tolist()):
                total -= advantage * logits[place].log_softmax(0)[token]
                count += 1
    assert loss.item() == pytest.approx((total / count).item(), rel=1e-4)
    assert counted == count
    assert logged["train_reward"] == pytest.approx(rewards.mean().item())
    assert logged["train_length"] == pytest.approx(sum(len(text.split()) for text in texts) / len(texts))


def test_a_start_token_is_no_end(task, memory):
    """GPT-2 has one token for both; captions that are cut off have no end to be rewarded for."""
    task.tokenizer.bos = task.tokenizer.eos
    tokens, _ = task.sample(memory, [0, 1, 2])
    texts = [task.tokenizer.decode(row[1:]) for row in tokens.tolist()]
    _, _, logged = task.policy_loss(memory, [0, 1, 2])
    assert any(task.tokenizer.eos not in row[1:] for row in tokens.tolist())
    assert logged["train_length"] == pytest.approx(sum(len(text.split()) for text in texts) / len(texts))


def test_rewards_rise(task):
    features = task.model.encoder(torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)).detach()
    optimizer = torch.optim.Adam(task.model.decoder.parameters(), lr=1e-2)
    rewards = []
    for step in range(60):
        task._trainer = Loop(batches=step)
        loss, _, logged = task.policy_loss(task.model.decoder.project(features), [0, 1, 2])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rewards.append(float(logged["train_reward"]))
    assert sum(rewards[-10:]) > 1.5 * sum(rewards[:10]) > 0


def test_samples_follow_the_model_and_their_step(task, memory):
    tokens, lengths = task.sample(memory, [0, 1, 2])
    again, _ = task.sample(memory, [0, 1, 2])
    assert torch.equal(tokens, again)
    task._trainer = Loop(batches=1)
    assert not torch.equal(tokens, task.sample(memory, [0, 1, 2])[0])
    assert (tokens[:, 0] == task.tokenizer.bos).all()
    for row, length in zip(tokens.tolist(), lengths.tolist(), strict=True):
        assert row[length - 1] == task.tokenizer.eos or length == task.model.decoder.config.max_length
        assert set(row[length:]) <= {task.tokenizer.pad}
        assert not set(row[1:length]) & set(task.tokenizer.suppressed)


def test_rewards_are_the_cider_of_each_data_set(task):
    """References and document frequencies of its own data set; a caption that broke off has no end."""
    texts = ["a red circle", "red", "a star", "a blue star above", "circle", "above", "a red star", "star", "blue"]
    ended = [True, False] + [True] * 7
    found = task.reward([0, 1, 2], texts, ended)
    words = [text.split() + [EOS] * end for text, end in zip(texts, ended, strict=True)]
    one = CiderReward.of([CAPTIONS[0], CAPTIONS[2]]).reward([0, 1], [words[:3], words[6:]])
    two = CiderReward.of([CAPTIONS[1], ("a blue circle",)]).reward([0], [words[3:6]])
    assert found[[0, 2]].numpy() == pytest.approx(one, abs=1e-5)
    assert found[[1]].numpy() == pytest.approx(two, abs=1e-5)
    assert found[0, 0] > found[0, 1]
    assert torch.equal(task.reward([1], texts[3:6], [True] * 3), found[[1]])  # a batch without images of the other


TINY = """
data: {batch_images: 6, captions_per_image: 5}
encoder: {name: test_convnext, image_size: [64, 64], train: all}
decoder: {width: 32, layers: 1, heads: 2, max_length: 12, dropout: 0.1}
tokenizer: {min_count: 1}
optimization: {learning_rate: 3.0e-3, warmup_steps: 2}
training: {epochs: 8, patience: 0, trainer: {enable_progress_bar: false, accelerator: cpu, log_every_n_steps: 1}}
"""
CRITICAL = (
    "training.objective=self_critical",
    "optimization.learning_rate=5.0e-4",
    "encoder.train=none",
    "decoder.dropout=0",
    "self_critical.max_drop=9",
)


@pytest.fixture(scope="module")
def configure(tmp_path_factory, shapes):
    file = tmp_path_factory.mktemp("config") / "tiny.yaml"
    file.write_text(TINY)
    return lambda *overrides: load_config(file, [f"data.root={shapes}", *overrides])


@pytest.fixture(scope="module")
def trained(configure, tmp_path_factory):
    return train(configure(), tmp_path_factory.mktemp("trained"))


def table(run, column):
    return [float(row[column]) for row in csv.DictReader((run / "metrics.csv").read_text().splitlines()) if row[column]]


def test_the_model_that_training_starts_from_is_scored(configure, trained, tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="captioner"):
        folder = train(configure(*CRITICAL, "training.epochs=1"), tmp_path / "run", init=trained)
    assert any(record.message.startswith("before training: CIDEr-D") for record in caplog.records)
    assert all(0 < share <= 1 for share in table(tmp_path / "run", "train_distinct"))
    before, after = (load_model(each)[0].state_dict() for each in (trained, folder))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith("decoder.") for name in changed)


class SignalAt(Callback):
    """Sends SIGTERM to this process after a step."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *arguments):
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals as Unix has them")
@pytest.mark.parametrize("more", [(), ("data.mosaics=0.5", "optimization.pointing=0.2", "encoder.train=all")])
def test_a_resumed_run_ends_as_an_uninterrupted_one(configure, trained, tmp_path, more):
    config = configure(*CRITICAL, *more, "training.epochs=3")
    whole = train(config, tmp_path / "whole", init=trained)
    with pytest.raises(Interrupted):
        train(config, tmp_path / "part", init=trained, callbacks=[SignalAt(4)])
    resumed = train(config, tmp_path / "part", resume=tmp_path / "part" / "checkpoints" / "last.ckpt")
    assert (whole / "model.safetensors").read_bytes() == (resumed / "model.safetensors").read_bytes()
    tables = [(tmp_path / name / "metrics.csv").read_text() for name in ("whole", "part")]
    assert tables[0] == tables[1]


def test_a_run_whose_captions_get_worse_is_stopped(configure, trained, tmp_path, caplog):
    settings = (*CRITICAL, "optimization.learning_rate=0.5", "self_critical.max_drop=0.01", "training.epochs=9")
    train(configure(*settings), tmp_path / "run", init=trained)
    assert len(table(tmp_path / "run", "val_cider_d")) < 9
    assert "by more than self_critical.max_drop 0.01: stopping" in caplog.text
    caplog.clear()
    train(configure(*settings), tmp_path / "run", resume=tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert "stopping" in caplog.text


def test_a_batch_of_mosaics_alone_teaches_nothing_without_cross_entropy(configure, trained, tmp_path):
    settings = (*CRITICAL, "data.mosaics=1", "self_critical.cross_entropy=0", "optimization.weight_decay=0")
    folder = train(configure(*settings, "training.epochs=1"), tmp_path / "run", init=trained)
    before, after = (load_model(each)[0].state_dict() for each in (trained, folder))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_mixed_precision(configure, trained, tmp_path):
    settings = (*CRITICAL, "training.epochs=1", "training.trainer.precision=bf16-mixed")
    assert train(configure(*settings), tmp_path / "run", init=trained) is not None


def test_it_starts_from_a_trained_model(configure, tmp_path):
    with pytest.raises(ConfigError, match=r"training\.objective: .* --init"):
        train(configure(*CRITICAL), tmp_path / "run")
