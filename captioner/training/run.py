"""A training run is a folder: config.yaml (resolved), environment.jsonl (one line a start), train.log, metrics.csv,
curves.png, tensorboard/, checkpoints/ (best and last), features/ (for `data.features: auto`), start/ (the model before
training, for `training.interpolate`) and, at the end, model/, the model folder of the best epoch.
"""

import hashlib
import json
import logging
import platform
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.loggers import TensorBoardLogger
from tqdm import tqdm

from captioner.calibration import calibrate
from captioner.checkpoint import MODEL_PREFIX, load_model, load_training_file, save_model
from captioner.config import Config
from captioner.config_files import dump_yaml, to_dict
from captioner.data.annotations import CaptionedImage, CaptionSet
from captioner.data.datamodule import CaptionDataModule, split_mosaics
from captioner.data.features import FeatureStore
from captioner.data.mosaics import Mosaics
from captioner.data.sources import load_splits, load_texts, styles_of, usable_splits
from captioner.errors import ConfigError, ResourceError
from captioner.extraction import extract_features
from captioner.files import locked, write_whole
from captioner.inspection.pointing import best_heads, mosaic_pointing
from captioner.model.caption_model import CaptionModel
from captioner.model_files import CHECKPOINTS, MODEL, check_new_run
from captioner.text import first_line
from captioner.tokenizer import Tokenizer
from captioner.training.card import model_card
from captioner.training.durability import BEST, Durability, check_same_run, stopped_early
from captioner.training.history import History
from captioner.training.interpolation import interpolate
from captioner.training.language import LanguageTask
from captioner.training.new_model import add_controls, new_model
from captioner.training.new_words import fit_new_words
from captioner.training.patience import Patience
from captioner.training.self_critical import SelfCriticalTask
from captioner.training.task import CaptionTask, CrossEntropyTask
from captioner.training.trainer import make_trainer, training_device
from captioner.training.validation import CaptionValidation

log = logging.getLogger(__name__)

HEAD_MOSAICS = 200
"""Number of validation mosaics on which heads are ranked after training."""
FEATURES, START = "features", "start"
LOCK = ".lock"


@dataclass(frozen=True, kw_only=True)
class Run:
    """Everything a training run needs but its loss."""

    config: Config
    """The settings, with the network as it was built."""
    identity: dict[str, Any]
    """The settings as given, and a fingerprint of the captions; compared when a run is resumed."""
    model: CaptionModel
    tokenizer: Tokenizer
    val: CaptionSet
    loaders: CaptionDataModule
    init: Path | None
    resume: Path | None


def train(
    config: Config,
    folder: Path,
    *,
    init: Path | None = None,
    resume: Path | None = None,
    fast_dev_run: bool = False,
    skip_bad: bool = False,
    callbacks: Sequence[Callback] = (),
) -> Path | None:
    """Train a captioner and return the model folder of its best epoch, `folder/model`.

    `init` is a model folder to start from: its network and vocabulary, to which new words of the captions are added.
    `resume` is a training checkpoint to continue from, with its network and vocabulary; without it, a folder that
    already holds a run is refused. `fast_dev_run` runs one batch of everything and writes nothing. `skip_bad` leaves
    unusable photos out. Returns None after a dry run, and in all but the first of several processes. Raises
    ConfigError, AnnotationError, CheckpointError, ResourceError or TrainingError.
    """
    if resume is None and not fast_dev_run:
        check_new_run(folder)
    config = config.with_features_in(None if fast_dev_run else folder / FEATURES)
    run = prepare(config, init=init, resume=resume, skip_bad=skip_bad)
    parts = run.model, run.tokenizer, run.config, CaptionValidation(run.tokenizer, run.val.images, config.training)
    task: CaptionTask
    match config.training.objective:
        case "cross_entropy":
            task = CrossEntropyTask(*parts)
        case "self_critical":
            task = SelfCriticalTask(*parts, run.loaders.train_set.images)
        case "language":
            task = LanguageTask(*parts)
    return fit(run, task, folder, fast_dev_run=fast_dev_run, callbacks=callbacks)


def prepare(config: Config, *, init: Path | None = None, resume: Path | None = None, skip_bad: bool = False) -> Run:
    """Load the captions, build or load the tokenizer and the model, and compute stored features on the run's device.

    Raises AnnotationError, which lists them, if photos are unusable; with `skip_bad`, they are left out.
    """
    pl.seed_everything(config.training.seed, workers=True, verbose=False)
    if config.training.threads:
        torch.set_num_threads(config.training.threads)
    if config.optimization.pointing and not config.data.mosaics:
        raise ConfigError("optimization.pointing: needs mosaics; set data.mosaics, to 0.3 for instance")
    if config.training.interpolate and init is None and resume is None:
        raise ConfigError("training.interpolate: averages a run with the model that it starts from; give --init")
    if config.training.interpolate and config.training.objective == "language":
        raise ConfigError("training.interpolate: measures captions of pictures; not for training.objective: language")
    if config.training.objective == "self_critical" and init is None and resume is None:
        raise ConfigError("training.objective: self_critical improves a trained captioner; name one with --init")
    data, device = config.data, training_device(config)
    train, val = load_splits(data)
    words = range(0)
    if config.training.objective != "language" and data.shards is None:
        train, val = usable_splits(train, val, skip_bad=skip_bad)
    texts = load_texts(data)
    identity = to_dict(config) | {"captions": _fingerprint(train.images, val.images, texts)}
    if resume is not None:
        state = load_training_file(resume)
        check_same_run(identity, state, resume)
        identity = state["identity"]
        model, tokenizer = load_model(resume)
        log.info("resuming after step %d of %s, with its network and vocabulary", state["global_step"], resume)
    else:
        captions = [text for image in train.images + texts for text in image.captions]
        model, tokenizer, words = new_model(config, captions, init)
        tokenizer = add_controls(config, model, tokenizer, styles_of(data, train))
    model.encoder.freeze(config.encoder.train, config.encoder.batch_norm, config.encoder.depthwise)
    model.decoder.set_dropout(config.decoder.dropout)
    model.decoder.set_language(config.decoder.language)
    pictures = config.training.objective != "language"
    if pictures:
        mosaics = split_mosaics(data, train, val, config.training.seed)
        store = _features(config, model, replace(train, images=train.images + val.images), mosaics, device)
    else:
        train, mosaics, store = replace(train, images=train.images + texts), {}, None
    loaders = CaptionDataModule(
        data,
        train,
        val,
        tokenizer,
        model.encoder.config,
        max_length=model.decoder.config.max_length,
        seed=config.training.seed,
        store=store,
        mosaics=mosaics,
        pictures=pictures,
    )
    if pictures and loaders.stream is None:
        fit_new_words(model, loaders.train_set, words)
    model.train()  # a loaded model is in evaluation mode, which Lightning would keep
    return Run(
        config=replace(
            config,
            encoder=config.encoder.resolved(model.config.encoder),
            decoder=config.decoder.resolved(model.config.decoder),
        ),
        identity=identity,
        model=model,
        tokenizer=tokenizer,
        val=val,
        loaders=loaders,
        init=init,
        resume=resume,
    )


def fit(
    run: Run, task: CaptionTask, folder: Path, *, fast_dev_run: bool = False, callbacks: Sequence[Callback] = ()
) -> Path | None:
    """Train a task, write the model of its best epoch and return that model's folder; see `train`."""
    config = run.config
    captioned = len(run.val) > 1 and config.training.objective != "language"
    by_score = captioned and config.training.best_by == "cider_d"
    monitor, mode = ("val_cider_d", "max") if by_score else ("val_loss", "min")
    best = ModelCheckpoint(
        folder / CHECKPOINTS, filename=Path(BEST).stem, monitor=monitor, mode=mode, enable_version_counter=False
    )
    watchers = list(callbacks)
    if not fast_dev_run:
        durability = Durability(folder / CHECKPOINTS, run.identity, config.training)
        watchers += [best, durability, History(folder)]
    if patience := config.training.patience:
        watchers.append(Patience(monitor, mode, patience))
    trainer = make_trainer(
        config, watchers, [TensorBoardLogger(folder, name="tensorboard", version="")], fast_dev_run=fast_dev_run
    )
    if fast_dev_run or not trainer.is_global_zero:
        _fit(trainer, task, run)
        return None
    with _writing(folder):
        write_whole(folder / "config.yaml", dump_yaml(config).encode(), sync=True)
        _record_environment(folder)
        if config.training.interpolate and run.resume is None:
            save_model(folder / START, run.model, run.tokenizer, card="# The model before training\n")
        _fit(trainer, task, run)
        if stopped_early(trainer):
            better = "neither val_cider_d nor val_loss" if by_score else "val_loss has not"
            reason = f"{better} improved for {patience} epochs (training.patience)"
            log.info("stopped after epoch %d, as %s", trainer.current_epoch - 1, reason)
        _save_best(run, folder, best, trainer)
    return folder / MODEL


def _fingerprint(*splits: Sequence[CaptionedImage]) -> str:
    """A hash of each split's images and captions."""
    each = [
        (str(image.image_id), image.split, image.captions, *filter(None, (image.styles,)))
        for split in splits
        for image in split
    ]
    return hashlib.sha256(json.dumps(each).encode()).hexdigest()[:16]


def _features(
    config: Config, model: CaptionModel, captions: CaptionSet, mosaics: Mapping[str, Mosaics], device: torch.device
) -> FeatureStore | None:
    if config.data.features is None:
        return None

    def count(image: CaptionedImage) -> int:
        return config.data.feature_views if image.split == config.data.train_split else 1

    total = sum(map(count, captions.images)) + sum(len(each.layout) for each in mosaics.values())
    with tqdm(total=total, desc="features", unit="photo", disable=None) as bar:
        return extract_features(
            model.encoder,
            captions,
            Path(config.data.features),
            views=count,
            mosaics=mosaics,
            device=device,
            advance=bar.update,
        )


def _fit(trainer: pl.Trainer, task: CaptionTask, run: Run) -> None:
    with warnings.catch_warnings():
        # Advice on worker counts, and a deprecation inside Lightning.
        warnings.filterwarnings("ignore", module="pytorch_lightning")
        try:
            trainer.fit(task, run.loaders, ckpt_path=run.resume, weights_only=True)
        except SystemExit:  # how Lightning ends after Ctrl-C
            raise KeyboardInterrupt from None
        except MisconfigurationException as error:
            raise ConfigError(f"training: rejected by Lightning ({first_line(error)})") from error


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Lock the run's folder and copy the package's log to train.log. Raises ResourceError if another process has it."""
    logger = logging.getLogger("captioner")
    try:
        with locked(folder / LOCK, wait=False):
            handler = logging.FileHandler(folder / "train.log", encoding="utf-8")
            handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
            logger.addHandler(handler)
            try:
                yield
            finally:
                logger.removeHandler(handler)
                handler.close()
    except BlockingIOError as error:
        raise ResourceError(
            f"{folder}: another process trains in this folder; wait for it, or name another folder with -o"
        ) from error


def _record_environment(folder: Path) -> None:
    """Append the command, machine and package versions of this start to environment.jsonl."""
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


def _save_best(run: Run, folder: Path, best: ModelCheckpoint, trainer: pl.Trainer) -> None:
    """Write the model folder of the best epoch, calibrated, and with the heads that point best if it has mosaics."""
    model, val = run.model.float(), run.val.images  # model folders hold float32, whatever the training precision
    if best.best_model_path:
        state = load_training_file(Path(best.best_model_path))["state_dict"]
        model.load_state_dict({name.removeprefix(MODEL_PREFIX): value for name, value in state.items()})
    model.eval()
    if run.config.training.interpolate:
        if (folder / START).is_dir():
            interpolate(model, load_model(folder / START)[0].state_dict(), run.loaders.val_set)
        else:
            log.warning("training.interpolate: left out, as %s is not there", folder / START)
    if (seen := run.loaders.train_set).pictures:
        calibrate(model, run.tokenizer, seen.images, val, seen.store)
    if run.config.data.mosaics:
        ranked = len(val) >= 4
        heads = best_heads(mosaic_pointing(model, run.tokenizer, val, mosaics=HEAD_MOSAICS)) if ranked else ()
        model.config = replace(model.config, best_heads=heads)
    save_model(folder / MODEL, model, run.tokenizer, card=model_card(run.config, run.init, best, trainer))
