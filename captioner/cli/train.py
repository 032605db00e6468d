"""captioner train: a captioner from a configuration."""

import argparse
import sys
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Train a captioner from a YAML file; the best epoch's model folder is RUN/model."
    add = parser.add_argument
    add("--config", required=True, metavar="FILE", help="the configuration (YAML)")
    add("-o", "--output", metavar="RUN", help="the run's folder; default: runs/<config name>")
    add("--init", metavar="MODEL", help="start from this model folder, or from the bundled model ('bundled')")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key: --set training.epochs=3")
    add("--resume", metavar="auto|FILE", help="continue from the run's last checkpoint, or from this one")
    add("--fast-dev-run", action="store_true", help="run one batch of everything and keep nothing")


def run(arguments: argparse.Namespace) -> int:
    from captioner.config_files import load_config

    config = load_config(arguments.config, arguments.set)
    folder = Path(arguments.output or Path("runs") / (config.name or "unnamed"))

    import logging

    from tqdm.contrib.logging import logging_redirect_tqdm

    from captioner.pipeline import model_folder
    from captioner.training.run import find_checkpoint, train

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for library in ("pytorch_lightning", "timm", "huggingface_hub", "httpx"):  # chatty
        logging.getLogger(library).setLevel(logging.ERROR)
    resume = find_checkpoint(folder, arguments.resume) if arguments.resume else None
    if arguments.resume and resume is None:
        print(f"captioner: nothing to resume in {folder}; starting a new run", file=sys.stderr)
    init = model_folder(arguments.init) if arguments.init else None
    with logging_redirect_tqdm():  # log lines go above a progress bar
        model = train(config, folder, init=init, resume=resume, fast_dev_run=arguments.fast_dev_run)
    if model is not None:
        print(model)
    return 0
