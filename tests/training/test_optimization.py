"""The schedule and what decays."""

from itertools import pairwise

import pytest

from captioner.config import DecoderConfig, EncoderConfig, ModelConfig, OptimizationConfig
from captioner.errors import ConfigError
from captioner.model.caption_model import CaptionModel
from captioner.training.optimization import optimizer_and_schedule, parameter_groups, warmup_cosine


def test_warmup_then_half_a_cosine():
    factors = [warmup_cosine(step, warmup=10, total=110, final=0.1) for step in range(120)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == pytest.approx(1.0)
    assert factors[60] == pytest.approx(0.55)
    assert factors[110] == factors[119] == pytest.approx(0.1)
    assert all(later <= earlier for earlier, later in pairwise(factors[9:]))


def small(train):
    encoder = EncoderConfig(name="test_convnext", image_size=(64, 64))
    network = ModelConfig(encoder=encoder, decoder=DecoderConfig(width=32, heads=2, layers=1))
    model = CaptionModel(network, vocabulary=20)
    model.encoder.freeze(train)
    return model


def test_a_schedule_goes_on_where_it_is_shifted_to():
    """Also from before its beginning: PyTorch asks for the first rate before a checkpoint's step is restored."""
    shift = -50
    config = OptimizationConfig(learning_rate=1.0, warmup_steps=0, final_learning_rate=0)
    _, schedule = optimizer_and_schedule(small("none"), config, total_steps=100, shift=lambda: shift)
    [factor] = set(schedule.lr_lambdas)
    assert factor(0) == 1
    assert factor(100) == warmup_cosine(50, warmup=0, total=100, final=0)


def test_matrices_decay_and_gains_biases_and_the_null_patch_do_not():
    model = small("all")
    groups = parameter_groups(model, OptimizationConfig(weight_decay=0.3, learning_rate=1.0, encoder_learning_rate=0.1))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    place = {names[id(p)]: (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert set(place) == set(names.values())
    assert place["decoder.token_embedding.weight"] == (1.0, 0.3)
    assert place["decoder.blocks.0.cross_attention.null"] == (1.0, 0.0)
    assert place["decoder.final_norm.weight"] == (1.0, 0.0)
    assert place["encoder.backbone.stem.0.weight"] == (0.1, 0.3)
    assert place["encoder.backbone.stem.0.bias"] == (0.1, 0.0)


def test_a_frozen_encoder_is_not_optimized():
    model = small("none")
    optimizer, _ = optimizer_and_schedule(model, OptimizationConfig(), total_steps=10)
    optimized = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert optimized == {id(p) for p in model.decoder.parameters()}


def test_learning_rates_fall_from_layer_to_layer():
    model = small("all")
    config = OptimizationConfig(learning_rate=1.0, encoder_learning_rate=0.5, encoder_layer_decay=0.1)
    groups = parameter_groups(model, config)
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    layers = model.encoder.layer_groups()
    for depth, layer in enumerate(reversed(layers)):
        ours = [rates[id(each)] for name, each in model.encoder.backbone.named_parameters() if name in layer]
        assert ours == pytest.approx([0.5 * 0.1**depth] * len(ours))
    assert len(layers) > 2
    assert groups[0]["lr"] == 1.0  # the one that is logged


def test_layer_decay_needs_layers_that_timm_names():
    encoder = EncoderConfig(name="pit_ti_224", image_size=(32, 48))
    network = ModelConfig(encoder=encoder, decoder=DecoderConfig(width=32, heads=2, layers=1))
    model = CaptionModel(network, vocabulary=20)
    with pytest.raises(ConfigError, match="encoder_layer_decay"):
        parameter_groups(model, OptimizationConfig(encoder_layer_decay=0.5))
