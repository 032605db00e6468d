"""Cross-entropy training from stored features: `python -m benchmarks.training`.

Uses random features of the bundled model's shape, or of another encoder's, and random captions of Flickr8k's lengths.
Four measurements take turns: bare steps in which the captions of an image share its keys and values, the same in mixed
precision (bfloat16), bare steps with the same number of captions and one caption per image, and the machine's matrix
product. Then Lightning's loop, with the
package's task and loader, is compared with a bare loop that does the same. Padding does not count as useful operations.
"""

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import nn

from benchmarks.limits import matrix_product
from captioner.config import Config, DataConfig, DecoderSettings, EncoderSettings, ModelConfig, TokenizerConfig
from captioner.data.annotations import CaptionedImage, CaptionSet
from captioner.data.datamodule import CaptionDataModule
from captioner.data.dataset import Batch
from captioner.data.features import FeatureStore, FeatureWriter, StoreKey
from captioner.model.caption_model import CaptionModel
from captioner.tokenizer import Tokenizer
from captioner.training.optimization import optimizer_and_schedule
from captioner.training.task import CrossEntropyTask
from captioner.training.validation import CaptionValidation

IMAGES, CAPTIONS, VOCABULARY = 32, 5, 3500
WORDS_MEAN, WORDS_SPREAD = 10.8, 3.7
"""Words per Flickr8k caption: mean and standard deviation."""
DECODER = DecoderSettings(width=384, layers=3, heads=6, max_length=40, dropout=0.3)
"""The shape of the bundled model's decoder."""
TURNS = 3
"""How often the bare loop and Lightning's take turns."""


class Clock(pl.Callback):
    """Records when each batch starts."""

    def __init__(self) -> None:
        self.starts: list[float] = []

    def on_train_batch_start(self, *arguments: Any) -> None:
        self.starts.append(time.perf_counter())


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20, help="steps of each kind")
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--captions", type=int, default=CAPTIONS, help="captions per image in a batch, of its five")
    parser.add_argument(
        "--encoder", default="tf_efficientnet_lite2", help="timm encoder that gives the shape of the features"
    )
    parser.add_argument("--output", type=Path, help="also write the numbers to this file")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), arguments)
    print(json.dumps(found, indent=2))
    if arguments.output:
        arguments.output.write_text(json.dumps(found, indent=2) + "\n")
    return 0


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, float]:
    steps, images = arguments.steps, arguments.images
    torch.manual_seed(0)
    captions, tokenizer = draw_captions(folder, images * (steps + 2))
    config = Config(
        data=DataConfig(batch_images=images, captions_per_image=arguments.captions),
        encoder=EncoderSettings(name=arguments.encoder),
        decoder=DECODER,
    )
    network = ModelConfig(encoder=config.encoder.network(), decoder=DECODER.network())
    model = CaptionModel(network, vocabulary=len(tokenizer), dropout=DECODER.dropout)
    store = draw_features(folder, captions, model)
    grouped = loader(config, captions, tokenizer, model, store)
    single = loader(
        replace(config, data=replace(config.data, batch_images=images * arguments.captions, captions_per_image=1)),
        captions,
        tokenizer,
        model,
        store,
    )
    task = CrossEntropyTask(model.train(), tokenizer, config, CaptionValidation(tokenizer, [], config.training))
    optimizer, _ = optimizer_and_schedule(model, config.optimization, total_steps=1000)
    seconds: dict[str, list[float]] = {"grouped": [], "mixed": [], "single": [], "read": []}
    peaks, operations, padded = [], [], []
    for number, (batch, other) in enumerate(zip(timed(grouped, seconds["read"]), single, strict=False)):
        if number == steps:
            break
        peaks.append(matrix_product())
        for name, each in (("grouped", batch), ("mixed", batch), ("single", other)):
            start = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=name == "mixed"):
                step(task, each, optimizer)
            seconds[name].append(time.perf_counter() - start)
        operations.append(useful_operations(model, batch, tokenizer.pad))
        padded.append(float((batch.tokens == tokenizer.pad).float().mean()))
    bare, whole = lightning(folder, config, captions, tokenizer, model, store, optimizer, steps)
    median = {name: statistics.median(values) for name, values in seconds.items() if values}
    peak = statistics.median(peaks)
    return {
        "step_seconds": round(median["grouped"], 4),
        "share_of_peak": round(statistics.median(operations) / median["grouped"] / peak, 3),
        "mixed_over_float32": round(median["mixed"] / median["grouped"], 2),
        "grouped_over_single": round(median["single"] / median["grouped"], 2),
        "reading_over_step": round(median["read"] / median["grouped"], 4),
        "padded_share": round(statistics.mean(padded), 3),
        "lightning_over_bare": round(whole / bare, 3),
        "product_gflops": round(peak / 1e9, 1),
    }


def step(task: CrossEntropyTask, batch: Batch, optimizer: torch.optim.Optimizer) -> None:
    loss, _ = task.loss(batch, task.encode(batch))
    loss.backward()
    nn.utils.clip_grad_norm_(task.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def lightning(
    folder: Path,
    config: Config,
    captions: CaptionSet,
    tokenizer: Tokenizer,
    model: CaptionModel,
    store: FeatureStore,
    optimizer: torch.optim.Optimizer,
    steps: int,
) -> tuple[float, float]:
    """Median seconds per batch of a bare loop and of Lightning's, which take turns over the same batches."""
    task = CrossEntropyTask(model, tokenizer, config, CaptionValidation(tokenizer, [], config.training))
    module = datamodule(config, captions, tokenizer, model, store)
    bare: list[float] = []
    whole: list[float] = []
    for _ in range(TURNS):
        starts = []
        for batch in islice(module.train_dataloader(), steps):
            starts.append(time.perf_counter())
            step(task, batch, optimizer)
        bare += np.diff(starts).tolist()
        clock = Clock()
        trainer = pl.Trainer(
            max_epochs=1,
            limit_train_batches=steps,
            limit_val_batches=0,
            gradient_clip_val=1.0,
            callbacks=[clock],
            logger=pl.loggers.CSVLogger(folder),
            enable_checkpointing=False,
            enable_progress_bar=False,  # keeps the output clean
            enable_model_summary=False,
            accelerator="cpu",
            use_distributed_sampler=False,
        )
        trainer.fit(task, module)
        whole += np.diff(clock.starts).tolist()
    return statistics.median(bare), statistics.median(whole)


def useful_operations(model: CaptionModel, batch: Batch, pad: int) -> float:
    """Floating-point operations of a step for real tokens and patches; backward counts as twice forward."""
    assert batch.features is not None
    images, patches, encoder_width = batch.features.shape
    width, layers = DECODER.width, DECODER.layers
    inputs = batch.tokens[:, :-1] != pad
    tokens = float(inputs.sum()) - len(inputs)  # the last real token predicts nothing
    a_token = layers * 14 * width**2 + model.decoder.vocabulary * width
    read = 2 * layers * width * (patches + tokens / len(inputs) / 2)
    project = images * patches * width * (encoder_width + layers * 2 * width)
    return 3 * 2 * (tokens * (a_token + read) + project)


def draw_captions(folder: Path, images: int) -> tuple[CaptionSet, Tokenizer]:
    drawn = random.Random(0)
    words = [f"w{number}" for number in range(VOCABULARY)]

    def caption() -> str:
        length = max(3, round(drawn.gauss(WORDS_MEAN, WORDS_SPREAD)))
        return " ".join(drawn.choices(words, k=length))

    found = tuple(
        CaptionedImage(number, folder / f"{number}.jpg", tuple(caption() for _ in range(CAPTIONS)), "train")
        for number in range(images)
    )
    tokenizer = Tokenizer.train([" ".join(words)], TokenizerConfig(min_count=1))
    val = replace(found[0], image_id=images, split="val")
    return CaptionSet((*found, val), folder), tokenizer


def draw_features(folder: Path, captions: CaptionSet, model: CaptionModel) -> FeatureStore:
    key = StoreKey(encoder={}, weights="", transform="", files="")
    shape = (model.encoder.patches.stop, model.encoder.width)
    writer = FeatureWriter(folder, key, views={str(image.image_id): 1 for image in captions.images}, shape=shape)
    drawn = np.random.default_rng(0)
    for _ in captions.images:
        writer.write(drawn.standard_normal((1, *shape)).astype(np.float16))
    writer.finish()
    store = FeatureStore.open(folder, key)
    assert store is not None
    return store


def datamodule(
    config: Config, captions: CaptionSet, tokenizer: Tokenizer, model: CaptionModel, store: FeatureStore
) -> CaptionDataModule:
    return CaptionDataModule(
        config.data,
        captions.split("train"),
        captions.split("val"),
        tokenizer,
        model.encoder.config,
        max_length=DECODER.max_length,
        seed=0,
        store=store,
    )


def loader(config: Config, captions: CaptionSet, tokenizer: Tokenizer, model: CaptionModel, store: FeatureStore) -> Any:
    return datamodule(config, captions, tokenizer, model, store).train_dataloader()


def timed(batches: Any, seconds: list[float]) -> Any:
    """Yield the batches, and append how long each took to load."""
    iterator = iter(batches)
    while True:
        start = time.perf_counter()
        batch = next(iterator, None)
        if batch is None:
            return
        seconds.append(time.perf_counter() - start)
        yield batch


if __name__ == "__main__":
    sys.exit(main())
