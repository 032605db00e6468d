"""Configurations are read strictly, and all errors are reported at once, with their lines."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioner.config import (
    Config,
    DataConfig,
    DecoderSettings,
    EncoderConfig,
    EncoderSettings,
    ModelConfig,
    OptimizationConfig,
    TrainingConfig,
)
from captioner.config_files import config_from_dict, dump_yaml, json_schema, load_config, to_dict
from captioner.errors import ConfigError


def written(folder: Path, text: str | bytes, name: str = "run.yaml") -> Path:
    file = folder / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def problems(file: Path, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(file, overrides)
    return str(caught.value).replace(f"{file.parent}/", "").splitlines()


def test_missing_keys_take_their_defaults(tmp_path: Path) -> None:
    file = written(tmp_path, "decoder: {layers: 2}\nencoder:\n  image_size: [224, 336]\n  train: 3\n")
    assert load_config(file) == Config(
        name="run", decoder=DecoderSettings(layers=2), encoder=EncoderSettings(image_size=(224, 336), train=3)
    )


def test_a_name_in_the_file_is_kept(tmp_path: Path) -> None:
    assert load_config(written(tmp_path, "name: small\n")).name == "small"


def test_yaml_is_read_as_1_2(tmp_path: Path) -> None:
    text = "name: no\noptimization: {learning_rate: 3e-4, weight_decay: 1}\ntraining: {trainer: {precision: on}}\n"
    config = load_config(written(tmp_path, text))
    assert config.name == "no"
    assert config.optimization == OptimizationConfig(learning_rate=3e-4, weight_decay=1.0)
    assert config.training.trainer == {"precision": "on"}


def test_a_byte_order_mark_anchors_and_dates_are_read(tmp_path: Path) -> None:
    text = (
        b"\xef\xbb\xbfname: 2024-05-01\ndata: {augment: &yes true}\ntraining:\n  trainer:\n    a: &a {x: 1, y: *yes}\n"
    )
    config = load_config(written(tmp_path, text + b"    b: [*a, ~, 0x10, 1_0.5, !odd 3, two]\n"))
    assert config.name == "2024-05-01"
    assert config.data == DataConfig(augment=True)
    assert config.training.trainer["b"] == [{"x": 1, "y": True}, None, 16, 10.5, "3", "two"]


def test_aliases_of_aliases_are_bounded(tmp_path: Path) -> None:
    lines = [f"    a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30)]
    (line,) = problems(written(tmp_path, "training:\n  trainer:\n    a0: &a0 [x]\n" + "".join(lines)))
    assert line == "run.yaml:3: more than 10000 values; a configuration is small"


PIECES = [*"{}[],-?|>#'\"\n\t", ": ", "- ", "\n  ", "&a ", "*a", "<<: ", "!!int ", "!!bool ", "!!set ", "%YAML 1.1\n"]
PIECES += ["---", "1", ".nan", "true", "~", "2020-01-01", "name", "decoder", "layers", "training", "trainer"]


@given(st.lists(st.sampled_from(PIECES), max_size=14))
def test_any_text_loads_or_raises_a_config_error(tmp_path_factory: pytest.TempPathFactory, parts: list[str]) -> None:
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_text("".join(parts), encoding="utf-8")
    try:
        message = f"{file}: {load_config(file).name}"
    except ConfigError as error:
        message = str(error)
    assert message.startswith(str(file))


def test_every_schema_error_is_reported_at_once(tmp_path: Path) -> None:
    text = """\
name: run
decoder:
  layers: true
  widht: 3
  heads: 3.0
width: 4
zebra: 1
encoder:
  train: true
  image_size: [1]
  fit: stretch
data: {workers: "3"}
optimization:
  learning_rate: 1
  ema_decay: .inf
  betas: [0.9, 1]
  warmup_steps: -1
tokenizer:
training: {seed: .nan, threads: 0, trainer: []}
"""
    assert problems(written(tmp_path, text)) == [
        "run.yaml:3: decoder.layers: got true, expected an integer",
        "run.yaml:4: unknown key decoder.widht; did you mean decoder.width?",
        "run.yaml:5: decoder.heads: got 3.0, expected an integer",
        "run.yaml:6: unknown key width; did you mean decoder.width?",
        "run.yaml:7: unknown key zebra; known here: "
        "name, data, tokenizer, encoder, decoder, optimization, self_critical, training",
        "run.yaml:9: encoder.train: got true, expected one of none, all or an integer",
        "run.yaml:10: encoder.image_size: got [1], expected a list of 2, each an integer or null",
        'run.yaml:11: encoder.fit: got "stretch", expected one of squash, crop, letterbox',
        'run.yaml:12: data.workers: got "3", expected an integer',
        "run.yaml:15: optimization.ema_decay: got Infinity, expected a finite number or null",
        "run.yaml:16: optimization.betas: got [0.9, 1], expected a value less than 1",
        "run.yaml:17: optimization.warmup_steps: got -1, expected a value greater than or equal to 0",
        "run.yaml:18: tokenizer: got null, expected a mapping with the keys kind, min_count, vocabulary_size",
        "run.yaml:19: training.seed: got NaN, expected an integer",
        "run.yaml:19: training.threads: got 0, expected a value greater than or equal to 1",
        "run.yaml:19: training.trainer: got [], expected a mapping",
    ]


@pytest.mark.parametrize("value", ["true", "3.0", '"3"', "null", "[3]", "{a: 3}", "0", "-1", "1e2"])
def test_layers_must_be_a_positive_integer(tmp_path: Path, value: str) -> None:
    (line,) = problems(written(tmp_path, f"decoder:\n  layers: {value}\n"))
    assert line.startswith("run.yaml:2: decoder.layers: got ")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("decoder: {width: 10, heads: 4}", "run.yaml:1: decoder.width: 10 is not a multiple of decoder.heads"),
        ("name: a/b", "run.yaml:1: name: got 'a/b', expected a folder's name, without / \\ or :"),
        ("name: ..", "run.yaml:1: name: got '..', expected a folder's name, without / \\ or :"),
        ('name: "a\\0"', "run.yaml:1: name: got 'a\\x00', expected a folder's name, without / \\ or :"),
        ("decoder: {layers: !!int x}", "run.yaml:1: cannot read 'x' as int"),
        ("decoder: {layers: !!bool }", "run.yaml:1: cannot read '' as bool"),
        ("training: {seed: -1}", "run.yaml:1: training.seed: got -1, expected a value greater than or equal to 0"),
        ("training: {seed: 4294967296}",
         "run.yaml:1: training.seed: got 4294967296, expected a value less than 4294967296"),
        (
            "data: {features: f}\nencoder: {train: all}",
            "run.yaml:1: data.features: stored features need encoder.train: none",
        ),
        ("training: {trainer: {a: [.nan]}}", "run.yaml:1: training.trainer: expected finite numbers"),
        ("training: {trainer: {a: -.inf}}", "run.yaml:1: training.trainer: expected finite numbers"),
        (
            "data: {shards: tars, mosaics: 0.5}",
            "run.yaml:1: data.mosaics: does not go with data.shards, whose samples are not listed in memory; remove "
            "one of them",
        ),
        (
            "{data: {shards: tars}, training: {objective: language}}",
            "run.yaml:1: training.objective: language does not go with data.shards, whose samples are not listed in "
            "memory; add --set training.objective=cross_entropy, or remove data.shards",
        ),
        (
            "training:\n  trainer:\n    strategy: fsdp",
            'run.yaml:3: training.trainer.strategy: got "fsdp", expected auto or ddp; FSDP, DeepSpeed and other '
            "strategies split models that do not fit one device, and these do: with gradients and AdamW's moments, 16 "
            "bytes a parameter",
        ),
        ("data: {train_split: ''}", "run.yaml:1: data.train_split: String should have at least 1 character"),
        ("decoder: {dropout: 1.0}", "run.yaml:1: decoder.dropout: got 1.0, expected a value less than 1"),
        ("data: {workers: -1}", "run.yaml:1: data.workers: got -1, expected a value greater than or equal to 0"),
        (f"data: {{workers: {'x' * 80}}}", f'run.yaml:1: data.workers: got "{"x" * 59}, expected an integer'),
        ("- 1", "run.yaml: got [1], expected a mapping with the keys name, data, tokenizer, encoder, decoder, "
         "optimization, self_critical, training"),
    ],
)  # fmt: skip
def test_unusable_values_are_refused(tmp_path: Path, text: str, expected: str) -> None:
    assert problems(written(tmp_path, text)) == [expected]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "run.yaml: empty; a configuration needs at least one key, for instance `name: my-run`"),
        ("# nothing\n", "run.yaml: empty; a configuration needs at least one key, for instance `name: my-run`"),
        ("name: a\ndata: {}\nname: b\n", "run.yaml:3: key name is given twice, or is no plain text"),
        ("data:\n  root: a\n  root: a\n", "run.yaml:3: key data.root is given twice, or is no plain text"),
        ("name: a\n? [b]\n: 1\n", "run.yaml:2: key "),
        ("data:\n\troot: a\n", "run.yaml:2: not valid YAML: found character '\\t' that cannot start any token; "
         "indent with spaces"),
        ("data: [1\n", "run.yaml:2: not valid YAML: expected ',' or ']'"),
        ("a: 1\n---\nb: 2\n", "run.yaml:2: not valid YAML: but found another document"),
        ("name: *there\n", "run.yaml:1: not valid YAML: found undefined alias 'there'"),
        ("data: {}\nname: a\x01\n", "run.yaml:2: not valid YAML: "),
        ("[" * 500, "run.yaml:1: nested too deeply"),
        ("training: {trainer: &a {x: *a}}", "run.yaml:1: nested too deeply"),
        (b"name: caf\xe9\n", "run.yaml: not UTF-8 text (byte 9); save the configuration as UTF-8"),
    ],
)  # fmt: skip
def test_invalid_yaml_is_reported_in_one_line(tmp_path: Path, text: str | bytes, expected: str) -> None:
    (line,) = problems(written(tmp_path, text))
    assert line.startswith(expected)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    assert problems(tmp_path / "no.yaml") == ["no.yaml: cannot read this configuration: No such file or directory"]
    (tmp_path / "folder").mkdir()
    assert problems(tmp_path / "folder")[0].startswith("folder: cannot read this configuration: ")


def test_overrides_win_and_fill_in_sections(tmp_path: Path) -> None:
    file = written(tmp_path, "decoder:\n  layers: 2\n  nme: 1\ntraining:\n")
    overrides = [
        "decoder={width: 64}",
        "decoder.heads=2",
        "training.trainer.logger.name=x=y",
        "data.annotations=",
        "encoder.image_size=[32, 64]",
    ]
    assert load_config(file, overrides) == Config(
        name="run",
        decoder=DecoderSettings(width=64, heads=2),
        encoder=EncoderSettings(image_size=(32, 64)),
        training=TrainingConfig(trainer={"logger": {"name": "x=y"}}),
    )


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("decoder.widht=3", "unknown key decoder.widht; did you mean decoder.width?"),
        ("decodr.width=3", "unknown key decodr; did you mean decoder?"),
        ("decoder.layers.x=3", "decoder.layers is a single value and has no key x"),
        ("encoder.weights.x.y=3", 'encoder.weights: got {"x": {"y": 3}}, expected text or null'),
        ("optimization.betas.0=3", 'optimization.betas: got {"0": 3}, expected a list of 2, each a finite number'),
        ("decoder.layers=true", "decoder.layers: got true, expected an integer"),
        ("decoder={layers: 0}", "decoder.layers: got 0, expected a value greater than or equal to 1"),
        ("decoder.layers", "expected KEY=VALUE, for instance decoder.layers=4"),
        ("decoder..layers=3", "expected KEY=VALUE, for instance decoder.layers=4"),
    ],
)
def test_a_wrong_override_names_itself(tmp_path: Path, override: str, expected: str) -> None:
    assert problems(written(tmp_path, "decoder:\n  layers: 2\n"), override) == [f"--set {override}: {expected}"]


def test_an_override_that_is_not_yaml(tmp_path: Path) -> None:
    (line,) = problems(written(tmp_path, "name: a"), "decoder.layers=[")
    assert line.startswith("--set decoder.layers=[: not valid YAML: ")


def test_an_override_below_a_single_value_is_refused(tmp_path: Path) -> None:
    file = written(tmp_path, "decoder: 3\n")
    override = "decoder.width=4"
    assert problems(file, override) == [f"--set {override}: decoder is a single value and has no key width"]
    file = written(tmp_path, "decoder: {width: {x: {}}}\n")
    assert problems(file, "decoder.width.x.y=4")[0].startswith("run.yaml:1: decoder.width: got {")


def test_a_model_folders_configuration_is_as_strict() -> None:
    config = ModelConfig(encoder=EncoderConfig(image_size=(32, 64)))
    assert config_from_dict(ModelConfig, to_dict(config), "config.json") == config
    with pytest.raises(ConfigError, match=r"^config\.json: unknown key encoder\.nme; did you mean encoder\.name\?$"):
        config_from_dict(ModelConfig, {"encoder": {"nme": "x"}}, "config.json")
    with pytest.raises(
        ConfigError,
        match=r"^config\.json: unknown key epochs; known here: encoder, decoder, best_heads, hallucination, "
        r"confidence, familiar_distance$",
    ):
        config_from_dict(ModelConfig, {"epochs": 1}, "config.json")
    with pytest.raises(ConfigError, match=r"^config\.json: decoder\.width: 10 is not"):
        config_from_dict(ModelConfig, {"decoder": {"width": 10}}, "config.json")
    with pytest.raises(ConfigError, match=r"best_heads: got 3, expected a list, each a list of 2, each an integer$"):
        config_from_dict(ModelConfig, {"best_heads": 3}, "config.json")


@pytest.mark.parametrize("data", [None, 3, [], "text"])
def test_a_model_configuration_of_another_kind(data: Any) -> None:
    with pytest.raises(
        ConfigError,
        match=r"^config\.json: got .*, expected a mapping with the keys encoder, decoder, best_heads, hallucination, "
        r"confidence, familiar_distance$",
    ):
        config_from_dict(ModelConfig, data, "config.json")


def test_lone_surrogates_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^config\.json: Invalid JSON"):
        config_from_dict(ModelConfig, {"encoder": {"name": "\ud800"}}, "config.json")


def test_plain_data_holds_json_types_only() -> None:
    plain = to_dict(Config(encoder=EncoderSettings(image_size=(1, 2))))
    assert json.loads(json.dumps(plain)) == plain
    assert plain["encoder"]["image_size"] == [1, 2]
    assert config_from_dict(Config, plain, "here") == Config(encoder=EncoderSettings(image_size=(1, 2)))


TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Cn", "Co"]), min_size=1)


@given(
    TEXTS,
    st.floats(min_value=0, exclude_min=True, allow_infinity=False),
    st.integers(min_value=1, max_value=2**31 - 1),
    TEXTS,
)
def test_written_yaml_reads_back_as_the_same(
    tmp_path_factory: pytest.TempPathFactory, text: str, number: float, count: int, key: str
) -> None:
    config = Config(
        name="same",
        data=DataConfig(root=text, workers=count),
        optimization=OptimizationConfig(learning_rate=number),
        training=TrainingConfig(trainer={key: [text, number, None, {"a": True}]}),
    )
    file = tmp_path_factory.getbasetemp() / "same.yaml"
    file.write_text(dump_yaml(config), encoding="utf-8")
    assert load_config(file) == config


def test_the_schema_describes_and_bounds_every_key() -> None:
    schema = json_schema()
    assert list(schema["properties"]) == list(to_dict(Config()))
    assert schema["additionalProperties"] is False
    assert schema["$defs"]["DecoderSettings"]["properties"]["width"] == {
        "default": 512,
        "description": "D, features of a token.",
        "exclusiveMaximum": 2**31,
        "minimum": 1,
        "title": "Width",
        "type": "integer",
    }


def test_the_presets_are_valid() -> None:
    for preset in sorted((Path(__file__).parent.parent / "captioner" / "presets").glob("*.yaml")):
        assert load_config(preset).name


def test_settings_give_the_network_and_take_it_back_resolved() -> None:
    settings = EncoderSettings(name="test_vit", train=2, weights="a.pth")
    network = settings.network()
    assert type(network) is EncoderConfig
    assert network == EncoderConfig(name="test_vit")
    resolved = settings.resolved(EncoderConfig(name="test_vit", image_size=(32, 64)))
    assert resolved == EncoderSettings(name="test_vit", train=2, weights="a.pth", image_size=(32, 64))
