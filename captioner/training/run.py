"""A training run is a folder: config.yaml (resolved), environment.jsonl (a line a leg), train.log, metrics.csv,
curves.png, tensorboard/, checkpoints/ (best and last) and, at the end, the model folder of the best epoch, model/.
"""

import hashlib
import inspect
import json
import logging
import platform
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from difflib import get_close_matches
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.callbacks import (
    Callback,
    EarlyStopping,
    LearningRateMonitor,
    ModelCheckpoint,
    TQDMProgressBar,
    WeightAveraging,
)
from pytorch_lightning.loggers import TensorBoardLogger
from torch.optim.swa_utils import get_ema_multi_avg_fn
from tqdm import tqdm

from captioner.checkpoint import MODEL, MODEL_PREFIX, load_model, load_training_file, save_model
from captioner.config import Config, DecoderConfig, ModelConfig
from captioner.config_files import dump_yaml, to_dict
from captioner.data.annotations import CaptionedImage, CaptionSet
from captioner.data.datamodule import CaptionDataModule, split_mosaics
from captioner.data.features import FeatureStore
from captioner.data.formats import load_captions
from captioner.data.mosaics import Mosaics
from captioner.errors import CheckpointError, ConfigError
from captioner.extraction import extract_features
from captioner.files import write_whole
from captioner.gpt2 import language_decoder
from captioner.inspection.pointing import best_heads, mosaic_pointing
from captioner.model.caption_model import CaptionModel
from captioner.tokenizer import Tokenizer
from captioner.training.durability import (
    BEST,
    Durability,
    WholeCheckpoints,
    check_same_run,
    had_enough,
    newest_checkpoint,
    what_was_asked,
)
from captioner.training.history import History
from captioner.training.task import CaptionTask

log = logging.getLogger(__name__)

HEAD_MOSAICS = 200
"""Validation mosaics on which heads are ranked after training."""
CHECKPOINTS = "checkpoints"


def train(
    config: Config,
    folder: Path,
    *,
    init: Path | None = None,
    resume: Path | None = None,
    fast_dev_run: bool = False,
) -> Path:
    """Train a captioner as `config` says and return the model folder of its best epoch, `folder/model`.

    `init` starts from a model folder: its network and words, with new words of the captions appended. `resume` goes on
    from a training checkpoint, with its network and words; without it a folder that holds a run is refused.
    `fast_dev_run` is one batch of everything, and writes nothing. Raises ConfigError, AnnotationError, CheckpointError
    or TrainingError.
    """
    if resume is None and not fast_dev_run and any((folder / CHECKPOINTS).glob("*.ckpt")):
        raise ConfigError(f"{folder}: holds a run already; go on with --resume auto, or name another folder with -o")
    pl.seed_everything(config.training.seed, workers=True, verbose=False)
    if config.training.threads:
        torch.set_num_threads(config.training.threads)
    data = config.data
    captions = load_captions(data.root, data.annotations, data.images, data.format)
    used = replace(captions, images=captions.split(data.train_split).images + captions.split(data.val_split).images)
    asked = what_was_asked(config, _fingerprint(used))
    if resume is not None:
        state = load_training_file(resume)
        check_same_run(asked, state, resume)
        asked = state.get("asked", asked)  # what the run was begun with
        log.info("going on after step %d of %s, with its network and words", state["global_step"], resume)
    texts = [text for image in captions.split(data.train_split).images for text in image.captions]
    model, tokenizer = _start(config, texts, init) if resume is None else load_model(resume)
    model.encoder.freeze(config.encoder.train, config.encoder.batch_norm)
    model.decoder.set_dropout(config.decoder.dropout)
    model.decoder.set_language(config.decoder.language)
    if config.optimization.blind and not model.decoder.config.null_patch:
        raise ConfigError("optimization.blind: words need a null patch to look at; set decoder.null_patch")
    if config.optimization.null_mass and not config.optimization.blind:
        raise ConfigError("optimization.null_mass: is learned from images that are hidden; set optimization.blind")
    if config.optimization.pointing and not data.mosaics:
        raise ConfigError("optimization.pointing: is learned from mosaics; set data.mosaics, to 0.3 for instance")
    model.train()  # a loaded model is ready to caption, and Lightning leaves modes as they are
    config = replace(
        config,
        encoder=config.encoder.resolved(model.config.encoder),
        decoder=config.decoder.resolved(model.config.decoder),
    )
    mosaics = split_mosaics(data, captions, config.training.seed)
    store = _features(config, model, used, mosaics)
    loaders = CaptionDataModule(
        data,
        captions,
        tokenizer,
        model.encoder.config,
        max_length=config.decoder.max_length,
        seed=config.training.seed,
        store=store,
    )
    references = {image.image_id: image.captions for image in captions.split(data.val_split).images}
    task = CaptionTask(model, tokenizer, config, references)
    monitor, mode = ("val_cider_d", "max") if len(references) > 1 else ("val_loss", "min")
    best = ModelCheckpoint(
        folder / CHECKPOINTS, filename=Path(BEST).stem, monitor=monitor, mode=mode, enable_version_counter=False
    )
    durability = Durability(
        folder / CHECKPOINTS,
        {"resolved": to_dict(config)} | asked,
        minutes=config.training.checkpoint_minutes,
        nonfinite_steps=config.training.nonfinite_steps,
    )
    watchers: list[Callback] = [] if fast_dev_run else [best, durability]
    if config.training.patience:
        watchers.append(
            EarlyStopping(monitor, mode=mode, patience=config.training.patience, check_finite=False, strict=False)
        )
    trainer = _trainer(config, folder, watchers, fast_dev_run)
    writes = trainer.is_global_zero and not fast_dev_run
    if writes:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / "config.yaml", dump_yaml(config).encode(), sync=True)
        _tell_environment(folder)
    with warnings.catch_warnings(), _logged(folder / "train.log") if writes else nullcontext():
        # Advice about worker counts that depends on the machine, and a deprecation inside Lightning.
        warnings.filterwarnings("ignore", module="pytorch_lightning")
        try:
            trainer.fit(task, loaders, ckpt_path=resume, weights_only=True)
        except SystemExit:  # how Lightning ends after Ctrl-C
            raise KeyboardInterrupt from None
        except MisconfigurationException as error:
            raise ConfigError(f"training: Lightning does not take it ({str(error).splitlines()[0]})") from error
        if had_enough(trainer):
            reason = f"{monitor} was no better in {config.training.patience} epochs (training.patience)"
            log.info("epoch %d: stopped, as %s", trainer.current_epoch, reason)
    if writes:
        if best.best_model_path:
            state = load_training_file(Path(best.best_model_path))["state_dict"]
            model.load_state_dict({name.removeprefix(MODEL_PREFIX): value for name, value in state.items()})
        if data.mosaics:
            val = captions.split(data.val_split).images
            model.eval()
            heads = best_heads(mosaic_pointing(model, tokenizer, val, mosaics=HEAD_MOSAICS)) if len(val) >= 4 else ()
            model.config = replace(model.config, best_heads=heads)
        save_model(folder / MODEL, model, tokenizer, card=_card(config, trainer, best, init))
    return folder / MODEL


def find_checkpoint(folder: Path, resume: str) -> Path | None:
    """The checkpoint that `--resume` means: a file, or for `auto` the run's newest whole one; None if there is none."""
    if resume != "auto":
        if not Path(resume).is_file():
            raise CheckpointError(f"--resume {resume}: no such file; name a .ckpt file, or `auto`")
        return Path(resume)
    return newest_checkpoint(folder / CHECKPOINTS)


def _fingerprint(captions: CaptionSet) -> str:
    """Of which images there are in which split, with which captions."""
    each = [(str(image.image_id), image.split, image.captions) for image in captions.images]
    return hashlib.sha256(json.dumps(each).encode()).hexdigest()[:16]


@contextmanager
def _logged(path: Path) -> Iterator[None]:
    """What this package logs meanwhile goes to the file too."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logger = logging.getLogger("captioner")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()


def _tell_environment(folder: Path) -> None:
    """Append what this leg of the run runs on to environment.jsonl."""
    found = {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "devices": [torch.cuda.get_device_name(each) for each in range(torch.cuda.device_count())],
    }
    found |= {name: version(name) for name in ("captioner", "torch", "timm", "pytorch-lightning", "tokenizers")}
    with (folder / "environment.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(found) + "\n")


def _start(config: Config, texts: list[str], init: Path | None) -> tuple[CaptionModel, Tokenizer]:
    if init is not None and config.decoder.init is not None:
        raise ConfigError("decoder.init and --init: choose one; both say where the decoder's weights come from")
    if init is None and config.decoder.init is None and config.decoder.language == "freeze":
        raise ConfigError("decoder.language: freeze needs a language that is there; set decoder.init or give --init")
    if config.decoder.init is not None:
        shape, language, tokenizer = language_decoder(config.decoder.network(), Path(config.decoder.init))
        model = _new_model(config, shape, tokenizer)
        model.decoder.load_state_dict(language, strict=False)  # what reads the image is new
        log.info(
            "starting from %s: its %d words and %d layers of width %d, whatever tokenizer and decoder say",
            config.decoder.init,
            len(tokenizer),
            shape.layers,
            shape.width,
        )
        return model, tokenizer
    if init is None:
        tokenizer = Tokenizer.train(texts, config.tokenizer)
        return _new_model(config, config.decoder.network(), tokenizer), tokenizer
    model, tokenizer = load_model(init)
    # A language that is left alone learns no words.
    frozen = config.decoder.language == "freeze"
    extended = tokenizer if frozen else tokenizer.extend(texts, config.tokenizer.min_count)
    model.decoder.grow(len(extended))
    log.info("starting from %s: %d words, %d of them new", init, len(extended), len(extended) - len(tokenizer))
    return model, extended


def _new_model(config: Config, decoder: DecoderConfig, tokenizer: Tokenizer) -> CaptionModel:
    return CaptionModel(
        ModelConfig(encoder=config.encoder.network(), decoder=decoder),
        vocabulary=len(tokenizer),
        dropout=config.decoder.dropout,
        pretrained=config.encoder.pretrained,
        weights=config.encoder.weights,
    )


def _features(
    config: Config, model: CaptionModel, captions: CaptionSet, mosaics: dict[str, Mosaics]
) -> FeatureStore | None:
    if config.data.features is None:
        return None
    if config.encoder.train not in ("none", 0):
        raise ConfigError("data.features: stored features cannot follow a trained encoder; set encoder.train to none")
    views = config.data.feature_views

    def count(image: CaptionedImage) -> int:
        return views if image.split == config.data.train_split else 1

    total = sum(count(image) for image in captions.images) + sum(len(each.layout) for each in mosaics.values())
    with tqdm(total=total, desc="features", unit="photo", disable=None) as bar:
        folder = Path(config.data.features)
        return extract_features(model.encoder, captions, folder, views=count, mosaics=mosaics, advance=bar.update)


def _trainer(config: Config, folder: Path, watchers: list[Callback], fast_dev_run: bool) -> pl.Trainer:
    options: dict[str, Any] = dict(config.training.trainer)
    callbacks: list[Callback] = [LearningRateMonitor("step"), *watchers]
    if options.get("enable_progress_bar", True):
        callbacks.append(TQDMProgressBar(refresh_rate=20))
    if config.optimization.ema_decay is not None:
        # By interpolation, which leaves what does not change, a frozen encoder for instance, as it is to the bit.
        callbacks.append(WeightAveraging(multi_avg_fn=get_ema_multi_avg_fn(config.optimization.ema_decay)))
    callbacks += _named(options.pop("callbacks", []), pl.callbacks, "callbacks")
    loggers = [TensorBoardLogger(folder, name="tensorboard", version="")]
    loggers += _named(options.pop("logger", []), pl.loggers, "logger")
    defaults: dict[str, Any] = {
        "max_epochs": config.training.epochs,
        "gradient_clip_val": config.optimization.gradient_clip or None,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 10,
        "enable_model_summary": False,
    }
    if not fast_dev_run:
        callbacks.append(History(folder, (defaults | options)["log_every_n_steps"]))
    known = list(inspect.signature(pl.Trainer.__init__).parameters)
    if "max_steps" in options:
        raise ConfigError("training.trainer.max_steps: a run is as long as training.epochs says; set that")
    for option in options:
        if option not in known:
            close = "".join(f"; did you mean {name}?" for name in get_close_matches(option, known, n=1))
            raise ConfigError(f"training.trainer.{option}: Lightning's Trainer has no such option{close}")
    try:
        return pl.Trainer(
            **(defaults | options),
            callbacks=callbacks,
            logger=loggers,
            plugins=[WholeCheckpoints()],
            use_distributed_sampler=False,  # GroupSampler shares its batches out itself
            fast_dev_run=fast_dev_run,
        )
    except (TypeError, ValueError, MisconfigurationException) as error:
        raise ConfigError(f"training.trainer: Lightning does not take it ({str(error).splitlines()[0]})") from error


def _named(entries: Any, module: Any, key: str) -> list[Any]:
    """Lightning's own callbacks and loggers from YAML: `{class: DeviceStatsMonitor, ...arguments}`."""
    made = []
    for entry in entries if isinstance(entries, list) else [entries]:
        name = str(entry.get("class")) if isinstance(entry, dict) else ""
        if name not in module.__all__:
            names = ", ".join(get_close_matches(name, module.__all__) or module.__all__)
            raise ConfigError(
                f"training.trainer.{key}: {json.dumps(entry)} names none of Lightning's; write {{class: NAME, ...}} "
                f"with one of {names}"
            )
        arguments = {option: value for option, value in entry.items() if option != "class"}
        try:
            made.append(getattr(module, name)(**arguments))
        except TypeError as error:
            raise ConfigError(f"training.trainer.{key}: {name} does not take this ({error})") from error
    return made


def _card(config: Config, trainer: pl.Trainer, best: ModelCheckpoint, init: Path | None) -> str:
    if best.best_model_score is None:
        score = "not measured"
    elif best.monitor == "val_loss":
        score = f"cross-entropy {float(best.best_model_score):.3f} nats a token, of the best epoch"
    else:
        score = f"CIDEr-D {float(best.best_model_score):.4f} (greedy search), of the best epoch, which was chosen by it"
    origin = init or config.decoder.init
    start = f"* Started from `{origin}`: the terms in its card apply too.\n" if origin else ""
    return (
        f"# {config.name or 'captioner model'}\n\n"
        f"An image captioner trained with captioner. Encoder: timm `{config.encoder.name}`"
        f" at {config.encoder.image_size}; decoder: {config.decoder.layers} layers of width {config.decoder.width}.\n\n"
        f"* Data: `{config.data.root}`, split `{config.data.train_split}`; its terms apply to the weights too.\n"
        f"{start}"
        f"* Validation split `{config.data.val_split}`: {score}.\n"
        f"* Seed {config.training.seed}, {trainer.current_epoch} epochs, {trainer.global_step} steps.\n\n"
        f"```yaml\n{dump_yaml(config)}```\n"
    )
