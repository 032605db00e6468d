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
    show.add_argument("file", metavar="FILE")
    show.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="override a key, as for train")
    check = actions.add_parser("check", help="report all errors in configurations")
    check.add_argument("files", metavar="FILE", nargs="+")
    actions.add_parser("schema", help="print the JSON Schema, for editors")


def run(arguments: argparse.Namespace) -> int:
    if arguments.action == "show":
        print(dump_yaml(load_config(arguments.file, arguments.set)), end="")
        return 0
    if arguments.action == "schema":
        print(json.dumps(json_schema(), indent=2))
        return 0
    code = 0
    for file in arguments.files:
        try:
            load_config(file)
            print(f"{printable(file)}: OK")
        except ConfigError as error:
            print(printable_lines(str(error)), file=sys.stderr)
            code = error.exit_code
    return code
