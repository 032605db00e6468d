"""captioner train: a captioner from a configuration."""

import argparse
import json
import os
import sys
from pathlib import Path

from captioner.cli.files import check_folder
from captioner.config import Config
from captioner.config_files import PRESETS, Keys, load_config, presets, to_dict
from captioner.data.sources import check_paths
from captioner.errors import CheckpointError, ConfigError
from captioner.model_files import BUNDLED, CHECKPOINTS, check_new_run, existing_model, model_folder

DEFAULT_PRESET = "finetune"
"""The preset that trains on a folder for which no configuration is named; it starts from the bundled model."""
AUTO = "auto"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Train a captioner; the best epoch's model folder is RUN/model. `captioner train DATA` fine-tunes the bundled "
        "model, as with --config finetune --init bundled."
    )
    add = parser.add_argument
    add("data", nargs="?", metavar="DATA", help="a folder of photos and captions, in place of the config's data.root")
    add("--config", metavar="FILE|PRESET", help=f"a YAML file, or one of {', '.join(presets())}")
    add("-o", "--output", metavar="RUN", help="the run's folder; default: runs/<name of DATA, or of the config>")
    add("--init", type=existing_model, metavar="MODEL", help="start from a model folder or a .ckpt, or from 'bundled'")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key: --set training.epochs=3")
    add("--resume", metavar="auto|FILE", help="continue from the run's last checkpoint, or from this one")
    add("--skip-bad", action="store_true", help="leave out photos that cannot be used, instead of refusing to start")
    add("--fast-dev-run", action="store_true", help="run one batch of everything and keep nothing")


def run(arguments: argparse.Namespace) -> int:
    data, init, overrides = arguments.data, arguments.init, list(arguments.set)
    if data is None and arguments.config is None:
        raise ConfigError("nothing to train on; name a folder of photos and captions, or a configuration with --config")
    if data is not None:
        overrides.insert(0, f"data.root={json.dumps(data)}")
        init = init or (BUNDLED if arguments.config is None else None)
    places: dict[Keys, str] = {}
    config = load_config(arguments.config or DEFAULT_PRESET, overrides, places)
    given = {".".join(keys) for keys, place in places.items() if not place.startswith(str(PRESETS))}
    name = config.name if data is None else Path(os.path.abspath(data)).name
    folder = Path(arguments.output or Path("runs") / (name or "unnamed"))
    resume = None if arguments.resume in (None, AUTO) else Path(arguments.resume)
    if resume is not None and not resume.is_file():
        raise CheckpointError(f"--resume {resume}: no such file; name a .ckpt file, or `auto`")
    check_paths(config.data)
    if not arguments.fast_dev_run:
        check_folder("-o", folder)
        if arguments.resume is None:
            check_new_run(folder)

    import logging

    from tqdm.contrib.logging import logging_redirect_tqdm

    from captioner.training.durability import newest_checkpoint
    from captioner.training.run import train
    from captioner.training.trainer import is_first_process

    level = logging.INFO if is_first_process() else logging.WARNING
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr)
    for library in ("pytorch_lightning", "timm", "huggingface_hub", "httpx"):  # chatty
        logging.getLogger(library).setLevel(logging.ERROR)
    if arguments.resume == AUTO and (resume := newest_checkpoint(folder / CHECKPOINTS)) is None:
        print(f"captioner: nothing to resume in {folder}; starting a new run", file=sys.stderr)
    start = model_folder(init) if init else None
    if start is not None and resume is None and is_first_process():
        _report_ignored(config, start, given)
    with logging_redirect_tqdm():  # log lines go above a progress bar
        trained = train(
            config,
            folder,
            init=start,
            resume=resume,
            fast_dev_run=arguments.fast_dev_run,
            skip_bad=arguments.skip_bad,
        )
    if trained is not None:
        print(trained)
    return 0


def _report_ignored(config: Config, start: Path, given: set[str]) -> None:
    """Print the network settings that the user gave and that differ from those of the model to start from."""
    if not any(key.startswith(("encoder.", "decoder.")) for key in given):
        return  # and the model is loaded once

    from captioner.checkpoint import load_model

    ours, kept = to_dict(config), to_dict(load_model(start)[0].config)
    ignored = [
        f"{section}.{name} {ours[section][name]} (the model has {value})"
        for section in ("encoder", "decoder")
        for name, value in kept[section].items()
        if f"{section}.{name}" in given and ours[section][name] != value
    ]
    if ignored:
        print(f"captioner: training starts from {start}; ignored: {', '.join(ignored)}", file=sys.stderr)
