"""captioner config: show, check, schema."""

import json
from pathlib import Path

import pytest

from captioner.cli import main
from captioner.config_files import json_schema, load_config, presets


def test_show_prints_the_resolved_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "small.yaml"
    file.write_text("decoder: {layers: 2}\n")
    assert main(["config", "show", str(file), "--set", "decoder.width=64", "--set", "encoder.image_size=[32, 64]"]) == 0
    shown = tmp_path / "shown.yaml"
    shown.write_text(capsys.readouterr().out)
    config = load_config(shown)
    assert config == load_config(file, ["decoder.width=64", "encoder.image_size=[32, 64]"])
    assert (config.name, config.decoder.layers, config.decoder.width) == ("small", 2, 64)


def test_check_names_what_is_wrong_in_every_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text("name: good\nencoder: {pretrained: true}\n")
    bad.write_text("nme: bad\ndecoder: {layers: 0}\n")
    assert main(["config", "check", str(good)]) == 0
    assert capsys.readouterr() == (f"{good}: OK\n", "")
    assert main(["config", "check", str(bad), str(good)]) == 2
    out, err = capsys.readouterr()
    assert out == f"{good}: OK\n"
    assert sorted(err.splitlines()) == [
        f"{bad}:1: unknown key nme; did you mean name?",
        f"{bad}:2: decoder.layers: got 0, expected a value greater than or equal to 1",
    ]


def test_check_knows_encoders_and_options_of_the_trainer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("encoder: {name: vit_smal_patch16_224, train: all}\ntraining: {trainer: {precison: 16-mixed}}\n")
    assert main(["config", "check", str(file)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    first, second = err.splitlines()
    assert first.startswith(f"{file}: encoder.name: timm ")
    assert "has no model 'vit_smal_patch16_224'; did you mean vit_small_patch16_224" in first
    option = "training.trainer.precison: Lightning's Trainer has no such option; did you mean precision?"
    assert second == f"{file}: {option}"


@pytest.mark.parametrize(
    ("encoder", "warned"),
    [("{name: test_vit}", True), ("{pretrained: true}", False), ("{train: 1}", False), ("{weights: a.pth}", False)],
)
def test_check_warns_of_a_random_encoder_that_is_frozen(
    encoder: str, warned: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.yaml").write_text(f"encoder: {encoder}\n")
    assert main(["config", "check", str(tmp_path / "a.yaml")]) == 0
    out, err = capsys.readouterr()
    assert out == f"{tmp_path / 'a.yaml'}: OK\n"
    assert ("warning: the encoder is random and frozen, unless --init names a model" in err) == warned


def test_check_does_not_steer_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.yaml").write_text('"\\e[31mred": 1\nname: "\\a"\n')
    assert main(["config", "check", str(tmp_path / "a.yaml")]) == 2
    assert "\x1b" not in capsys.readouterr().err


def test_schema_prints_json_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "schema"]) == 0
    assert json.loads(capsys.readouterr().out) == json_schema()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["config"], "the following arguments are required: ACTION; see captioner config --help"),
        (["config", "shw"], "invalid choice: 'shw'"),
        (["config", "show", "--st=1"], "unknown flag --st; did you mean --set?; see captioner config show --help"),
        (["config", "show", "a.yaml", "--s", "a=1"], "unknown flag --s; "),
        (["config", "check"], "the following arguments are required: FILE"),
    ],
)
def test_usage_errors_are_one_line(arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("captioner: error: ")
    assert expected in err
    assert err.count("\n") == 1


def test_presets_are_found_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_config("finetune") == load_config("configs/finetune.yaml")
    assert load_config("finetune").name == "finetune"
    assert main(["config", "check", "shapes", "finetun"]) == 2
    out, err = capsys.readouterr()
    assert out == "shapes: OK\n"
    assert (
        err == f"finetun: cannot read this configuration: No such file or directory; presets: {', '.join(presets())}\n"
    )
    (tmp_path / "finetune").write_text("name: mine\n")
    assert load_config("finetune").name == "mine"
