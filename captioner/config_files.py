"""Configurations as files: strict reading of YAML and JSON, overrides, and errors that name line and key."""

import io
import itertools
import json
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, is_dataclass, replace
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import CollectionEndEvent, CollectionStartEvent
from ruamel.yaml.nodes import MappingNode, ScalarNode, SequenceNode

from captioner.config import AUTO, Config, DecoderConfig, EncoderConfig, ModelConfig, Section
from captioner.errors import ConfigError

PRESETS = Path(__file__).parent / "presets"
MAX_VALUES = 10_000
"""Maximum number of values in a configuration: YAML aliases of aliases grow exponentially."""
MAX_DEPTH = 100
"""Maximum number of lists and mappings inside each other; reading takes time that grows with its square."""
STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_false", "ddp_find_unused_parameters_true")
"""The values of `training.trainer.strategy`."""
ONE_STRATEGY = (
    "FSDP, DeepSpeed and other strategies split models that do not fit one device, and these do: with gradients and "
    "AdamW's moments, 16 bytes a parameter"
)
"""Why there are no other strategies."""
TYPE_NAMES = {bool: "true or false", int: "an integer", float: "a finite number", str: "text", types.NoneType: "null"}

Keys = tuple[str, ...]
Schema = TypeVar("Schema", bound=Section)
_adapter: Any = cache(TypeAdapter)  # slow to build


def load_config(path: str | Path, overrides: Sequence[str] = (), places: dict[Keys, str] | None = None) -> Config:
    """Read a YAML file, or the preset of that name, and `key.path=value` overrides.

    `configs/NAME.yaml`, where presets used to be, still names one if there is no such file. The place of each key that
    is set is added to `places`. Raises ConfigError, which lists every problem with its line.
    """
    for name in presets():
        if Path(path) in (Path(name), Path("configs", f"{name}.yaml")) and not Path(path).exists():
            path = PRESETS / f"{name}.yaml"
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except OSError as error:
        is_name = not Path(path).suffix or Path(path).stem in presets()
        hint = f"; presets: {', '.join(presets())}" if is_name and isinstance(error, FileNotFoundError) else ""
        raise ConfigError(f"{path}: cannot read this configuration: {error.strerror}{hint}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start}); save the configuration as UTF-8") from error
    places = {} if places is None else places
    data = _read_yaml(text, lambda line: f"{path}:{line}", places)
    if data is None:
        raise ConfigError(f"{path}: empty; a configuration needs at least one key, for instance `name: my-run`")
    for override in overrides if isinstance(data, dict) else ():
        _override(data, override, places)
    config = config_from_dict(Config, data, str(path), places)
    return config if config.name is not None else replace(config, name=Path(path).stem)


def presets() -> list[str]:
    """The names of the configurations that come with this package."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def config_from_dict(cls: type[Schema], data: Any, source: str, places: Mapping[Keys, str] | None = None) -> Schema:
    """Build the dataclass `cls` from plain JSON data, strictly. Errors name each key's place, or else `source`."""
    places = {} if places is None else places
    try:
        config: Schema = _adapter(cls).validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        problems = dict(_explain(cls, data, each) for each in error.errors(include_url=False))  # one problem a key
    else:
        problems = {tuple(key.split(".")): f"{key}: {problem}" for key, problem in _contradictions(config)}
        if not problems:
            return config
    ranks = {keys: rank for rank, keys in enumerate([(), *places])}
    nearest = {keys: next(keys[:n] for n in range(len(keys), -1, -1) if keys[:n] in ranks) for keys in problems}
    ordered = sorted(problems, key=lambda keys: ranks[nearest[keys]])
    raise ConfigError("\n".join(f"{places.get(nearest[keys], source)}: {problems[keys]}" for keys in ordered))


def to_dict(config: Section) -> dict[str, Any]:
    """The inverse of `config_from_dict`: JSON types only."""
    return dict(json.loads(json.dumps(asdict(config))))


def dump_yaml(config: Section) -> str:
    """YAML that `load_config` reads back as the same configuration."""
    yaml: Any = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False
    yaml.width = 4096  # do not fold long paths
    stream = io.StringIO()
    yaml.dump(to_dict(config), stream)
    return stream.getvalue()


def json_schema() -> dict[str, Any]:
    """JSON Schema of a run's configuration, for editors that complete and check YAML."""
    schema = _adapter(Config).json_schema()
    for base, name in ((EncoderConfig, "EncoderSettings"), (DecoderConfig, "DecoderSettings")):
        # Pydantic reads docstrings of a class's own fields only: those of inherited fields come from the base.
        schema["$defs"][name]["properties"] |= _adapter(base).json_schema()["properties"]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _read_yaml(text: str, where: Callable[[int], str], places: dict[Keys, str]) -> Any:
    """Plain data. Adds the place of each key to `places`, in the order of the text; `where` names that of a line."""
    yaml: Any = YAML(typ="safe", pure=True)
    count = itertools.count(1)

    def plain(node: Any, keys: Keys) -> Any:
        place = where(node.start_mark.line + 1)
        if next(count) > MAX_VALUES:
            raise ConfigError(f"{place}: more than {MAX_VALUES} values; a configuration is small")
        if isinstance(node, MappingNode):
            mapping: dict[str, Any] = {}
            for key, value in node.value:
                place, inner = where(key.start_mark.line + 1), (*keys, str(key.value))
                if not isinstance(key, ScalarNode) or key.value in mapping:
                    raise ConfigError(f"{place}: key {'.'.join(inner):.60} is given twice, or is no plain text")
                places[inner] = place
                mapping[key.value] = plain(value, inner)
            return mapping
        if isinstance(node, SequenceNode):
            return [plain(item, keys) for item in node.value]
        kind = node.tag.rpartition(":")[2]
        if kind not in ("null", "bool", "int", "float"):  # dates and values with foreign tags are read as text
            return node.value
        try:
            return getattr(yaml.constructor, f"construct_yaml_{kind}")(node)
        except (LookupError, ValueError) as error:
            raise ConfigError(f"{place}: cannot read '{node.value:.60}' as {kind}") from error

    depth = 0
    try:
        for event in YAML(typ="safe", pure=True).parse(text):
            depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise ConfigError(f"{where(event.start_mark.line + 1)}: nested too deeply")
        return plain(root, ()) if (root := yaml.compose(text)) else None
    except RecursionError as error:
        raise ConfigError(f"{where(1)}: nested too deeply") from error
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line if mark else text.count("\n", 0, getattr(error, "position", 0))
        problem = getattr(error, "problem", None) or str(error).partition("\n")[0]
        hint = "; indent with spaces, never with tabs" if "'\\t'" in problem else ""
        raise ConfigError(f"{where(line + 1)}: not valid YAML: {problem}{hint}") from error


def _override(data: dict[str, Any], text: str, places: dict[Keys, str]) -> None:
    """Put `key.path=value` into `data`; an unknown key is left for the schema to find."""
    source = f"--set {text}"
    path, equals, value = text.partition("=")
    keys = tuple(part.strip() for part in path.split("."))
    if not equals or not all(keys):
        raise ConfigError(f"{source}: expected KEY=VALUE, for instance decoder.layers=4")
    section = data
    for depth, key in enumerate(keys[:-1], start=1):
        section[key] = {} if section.get(key) is None else section[key]
        if not isinstance(section[key], dict):
            raise ConfigError(f"{source}: {'.'.join(keys[:depth])} is a single value and has no key {keys[depth]}")
        places.setdefault(keys[:depth], source)
        section = section[key]
    for stale in [known for known in places if known[: len(keys)] == keys]:
        del places[stale]
    section[keys[-1]] = _read_yaml(value, lambda _: source, {})
    places[keys] = source


def _explain(cls: Any, data: Any, error: Any) -> tuple[Keys, str]:
    """The key that a pydantic error is about, and what is wrong with it."""
    keys: Keys = ()
    sections = {name: section for name, section in to_dict(cls()).items() if isinstance(section, dict)}
    for key in map(str, error["loc"]):
        if not is_dataclass(cls):
            break
        known = get_type_hints(cls)
        keys, data = (*keys, key), data[key]
        if key not in known:
            close = [".".join((*keys[:-1], match)) for match in get_close_matches(key, known, n=1)]
            close += [f"{name}.{key}" for name, section in sections.items() if key in section]
            hint = f"did you mean {close[0]}?" if close else f"known here: {', '.join(known)}"
            return keys, f"unknown key {'.'.join(keys)}; {hint}"
        cls = known[key]
    name = f"{'.'.join(keys)}: " if keys else ""
    if error["type"] in ("json_invalid", "string_too_short"):
        return keys, f"{name}{error['msg']}"
    expected = error["msg"].replace("Input should be", "a value") if "_than" in error["type"] else _expected(cls)
    return keys, f"{name}got {json.dumps(data, ensure_ascii=False):.60}, expected {expected}"


def _expected(kind: Any) -> str:
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return f"one of {', '.join(inner)}"
    if origin is tuple:
        length = "" if inner[-1] is ... else f" of {len(inner)}"
        return f"a list{length}, each {_expected(inner[0])}"
    if origin not in (None, dict):  # a union
        return " or ".join(map(_expected, inner))
    mapping = f"a mapping with the keys {', '.join(get_type_hints(kind))}" if is_dataclass(kind) else "a mapping"
    return TYPE_NAMES.get(kind, mapping)


def _contradictions(config: Section) -> Iterator[tuple[str, str]]:
    """Keys whose values do not go together, and what is wrong with them."""
    if isinstance(config, Config | ModelConfig) and config.decoder.width % config.decoder.heads:
        yield "decoder.width", f"{config.decoder.width} is not a multiple of decoder.heads"
    if not isinstance(config, Config):
        return
    name, data = config.name or "run", config.data
    if set(name) & set("/\\:") or name in (".", "..") or not name.isprintable():
        yield "name", f"got {name!r}, expected a folder's name, without / \\ or :"
    stored = data.features not in (None, AUTO)
    if stored and config.encoder.train != "none":
        yield "data.features", "stored features need encoder.train: none"
    if stored and data.augment and data.feature_views == 1:
        yield (
            "data.augment",
            "true needs data.feature_views of at least 2, as the store in data.features holds only the plain view of "
            "each image; raise data.feature_views, or set data.augment: false",
        )
    if not stored and data.feature_views > 1:
        yield (
            "data.feature_views",
            "views are kept in a feature store, and data.features names none; name a folder there, or set "
            "data.augment: true to augment images as they come",
        )
    if data.shards is not None:
        others = {"data.sources": data.sources, "data.features": stored, "data.mosaics": data.mosaics}
        others |= {"data.control": data.control, "data.length_control": data.length_control}
        for key in (key for key, given in others.items() if given):
            yield key, "does not go with data.shards, whose samples are not listed in memory; remove one of them"
        if config.training.objective != "cross_entropy":
            yield (
                "training.objective",
                f"{config.training.objective} does not go with data.shards, whose samples are not listed in memory; "
                "add --set training.objective=cross_entropy, or remove data.shards",
            )
    strategy = config.training.trainer.get("strategy", "auto")
    if strategy not in STRATEGIES:
        yield "training.trainer.strategy", f"got {json.dumps(strategy):.60}, expected auto or ddp; {ONE_STRATEGY}"
    if any(word in json.dumps(config.training.trainer) for word in ("NaN", "Infinity")):
        yield "training.trainer", "expected finite numbers"
