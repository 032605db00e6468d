"""captioner config: show and check configurations."""

import argparse
import json
import sys

from captioner.config_files import dump_yaml, json_schema, load_config
from captioner.errors import ConfigError
from captioner.text import printable, printable_lines


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(metavar="ACTION", dest="action", required=True)
    show = actions.add_parser("show", help="print the configuration with every default filled in")
    show.add_argument("file", metavar="FILE|PRESET")
    show.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="override a key, as for train")
    check = actions.add_parser(
        "check", help="report all errors in configurations, and warn of a random encoder that is not trained"
    )
    check.add_argument("files", metavar="FILE|PRESET", nargs="+")
    actions.add_parser("schema", help="print the JSON Schema, for editors")


def run(arguments: argparse.Namespace) -> int:
    if arguments.action == "show":
        print(dump_yaml(load_config(arguments.file, arguments.set)), end="")
        return 0
    if arguments.action == "schema":
        print(json.dumps(json_schema(), indent=2))
        return 0
    return max(map(check, arguments.files))


def check(file: str) -> int:
    """Print what is wrong in a configuration, or that nothing is; returns the exit code."""
    try:
        config = load_config(file)
    except ConfigError as error:
        print(printable_lines(str(error)), file=sys.stderr)
        return error.exit_code

    from captioner.model.encoder import check_encoder_name
    from captioner.training.trainer import trainer_options

    code, encoder = 0, config.encoder
    for look in (lambda: check_encoder_name(encoder.name), lambda: trainer_options(config)):
        try:
            look()
        except ConfigError as error:
            print(printable_lines(f"{file}: {error}"), file=sys.stderr)
            code = error.exit_code
    if encoder.is_random_and_frozen and config.training.objective != "self_critical":
        problem = (
            "the encoder is random and frozen, unless --init names a model; set encoder.pretrained or encoder.train"
        )
        print(f"{printable(file)}: warning: {problem}", file=sys.stderr)
    if code == 0:
        print(f"{printable(file)}: OK")
    return code
