"""Uniform grids: few steps, small error, zeros stay zeros."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import make

from tersor.models.errors import BadInput
from tersor.models.network import check_form
from tersor.pipeline.linear import quantize_weights, round_to_grid
from tersor.pipeline.recipe import Linear


@given(st.integers(1, 16), st.booleans(), st.sampled_from([None, 0]), st.integers(0, 1000))
@settings(max_examples=80, deadline=None)
def test_grid_has_at_most_two_to_the_bits_steps_and_keeps_zero(
    bits: int, symmetric: bool, axis: int | None, seed: int
) -> None:
    weight = torch.randn(6, 40, generator=torch.Generator().manual_seed(seed))
    weight[:, ::5] = 0
    rounded, scale = round_to_grid(weight, bits, symmetric=symmetric, axis=axis)
    assert not rounded[:, ::5].any()
    steps = rounded / scale
    for row in [steps] if axis is None else steps:
        found = row.round().unique()
        # one bit is a sign with a scale; its zeros are pruned connections, not a third level
        assert found[found != 0].numel() <= 2 if bits == 1 else found.numel() <= 2**bits


@pytest.mark.parametrize("symmetric", [True, False])
def test_error_is_at_most_half_a_step(symmetric: bool) -> None:
    weight = torch.randn(8, 100)
    rounded, scale = round_to_grid(weight, 5, symmetric=symmetric, axis=0)
    # an asymmetric grid is shifted to hold zero exactly, which costs up to half a step at an end
    assert ((rounded - weight).abs() <= scale * (0.5 if symmetric else 1.0) * 1.0001).all()


def test_more_bits_less_error() -> None:
    weight = torch.randn(50, 50)
    errors = [float((round_to_grid(weight, b)[0] - weight).square().sum()) for b in range(2, 13)]
    assert errors == sorted(errors, reverse=True)


def test_one_bit_is_sign_times_mean_magnitude() -> None:
    rounded, scale = round_to_grid(torch.tensor([[1.0, -3.0, 0.0]]), 1)
    assert scale.item() == 2.0
    assert rounded.tolist() == [[2.0, -2.0, 0.0]]


def test_all_zero_channel_has_scale_one() -> None:
    weight = torch.cat([torch.zeros(1, 4), torch.ones(1, 4)])
    rounded, scale = round_to_grid(weight, 4, axis=0)
    assert scale.flatten().tolist()[0] == 1.0
    assert torch.equal(rounded, weight)


def test_quantized_network_agrees_with_its_forms() -> None:
    quantized, details = quantize_weights(make(), Linear(stage="linear", bits=3))
    assert len(quantized.forms) == 4
    for name, form in quantized.forms.items():
        check_form(name, quantized.tensors[name], form)
    assert details["bits"] == 3


def test_infinite_weight_is_told() -> None:
    net = make()
    bad = net.with_tensors({**net.tensors, "fc1.weight": torch.full((128, 256), float("inf"))})
    with pytest.raises(BadInput, match="NaN or infinite.*fc1.weight"):
        quantize_weights(bad, Linear(stage="linear"))


def test_per_layer_bits_override() -> None:
    quantized, _ = quantize_weights(make(), Linear(stage="linear", bits=8, per_layer={"fc2": 2}))
    assert quantized.form("fc2.weight").bits == 2
    assert quantized.form("fc1.weight").bits == 8
    check_form("fc2.weight", quantized.tensors["fc2.weight"], quantized.form("fc2.weight"))
