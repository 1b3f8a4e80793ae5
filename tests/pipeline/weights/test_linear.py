"""Uniform grids: few steps, small error, zeros stay zeros."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import make

from tersor.errors import BadInput
from tersor.models.network import check_form
from tersor.pipeline.recipe.read import read_recipe
from tersor.pipeline.recipe.recipe import Linear
from tersor.pipeline.weights.grid_scales import Rule
from tersor.pipeline.weights.linear import quantize_weights, round_to_grid

RULES = st.sampled_from(["max", "percentile", "mse"])


@given(st.integers(1, 16), st.booleans(), st.sampled_from([None, 0]), RULES, st.integers(0, 1000))
@settings(max_examples=120, deadline=None)
def test_grid_has_at_most_two_to_the_bits_steps_and_keeps_zero(
    bits: int, symmetric: bool, axis: int | None, rule: Rule, seed: int
) -> None:
    weight = torch.randn(6, 40, generator=torch.Generator().manual_seed(seed))
    weight[:, ::5] = 0
    rounded, scale = round_to_grid(weight, bits, symmetric=symmetric, axis=axis, rule=rule)
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


@pytest.mark.parametrize("bits", [0, 17, -3, 2.5])
def test_bits_out_of_range_are_told(bits: float) -> None:
    with pytest.raises(
        BadInput, match=rf"Got {bits} bits, 4 weights. Wanted a whole number of bits, 1 to 16"
    ):
        round_to_grid(torch.ones(2, 2), bits)  # type: ignore[arg-type]


@pytest.mark.parametrize("bits", [0, 17])
def test_bits_out_of_range_are_told_by_the_recipe(bits: int, tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"name: x\nmodel: mnist\nstages: [{{stage: train}}, {{stage: linear, bits: {bits}}}]")
    with pytest.raises(BadInput, match=rf"Got '?{bits}'?\. Wanted .*stages\.1\.bits"):
        read_recipe(recipe)
    recipe.write_text(
        f"name: x\nmodel: mnist\nstages: [{{stage: train}}, {{stage: linear, per_layer: {{fc1: {bits}}}}}]"
    )
    with pytest.raises(BadInput, match=rf"Got '?{bits}'?\. Wanted .*per_layer\.fc1"):
        read_recipe(recipe)


def test_nan_weight_is_told() -> None:
    net = make()
    weight = net.tensors["fc2.weight"].clone()
    weight[0, 0] = float("nan")
    with pytest.raises(BadInput, match=r"NaN or infinite. Where: stage `linear`, tensor 'fc2.weight'"):
        quantize_weights(net.with_tensors({**net.tensors, "fc2.weight": weight}), Linear(stage="linear"))


@given(st.floats(-(2.0**100), 2.0**100, width=32), st.integers(2, 16), st.booleans(), RULES)
@settings(max_examples=80, deadline=None)
def test_a_constant_tensor_stays_what_it_is(value: float, bits: int, symmetric: bool, rule: Rule) -> None:
    weight = torch.full((3, 50), value)
    rounded, scale = round_to_grid(weight, bits, symmetric=symmetric, axis=0, rule=rule)
    assert scale.gt(0).all()
    # below the smallest normal number float32 has no steps to divide it into
    expected = weight if abs(value) > 1e-33 else rounded.clamp(-1e-33, 1e-33)
    assert torch.allclose(rounded, expected, rtol=1e-5, atol=0)


@given(st.integers(2, 6), st.booleans(), st.booleans(), st.integers(0, 99), st.floats(1e-20, 1e20))
@settings(max_examples=40, deadline=None)
def test_least_error_is_that_of_an_exhaustive_search(
    bits: int, symmetric: bool, pruned: bool, seed: int, size: float
) -> None:
    weight = size * torch.randn(4, 60, generator=torch.Generator().manual_seed(seed)) ** 3
    if pruned:
        weight[:, ::2] = 0

    def error(rounded: torch.Tensor) -> torch.Tensor:
        return ((rounded - weight).double() / size).square().sum(1)

    found, _ = round_to_grid(weight, bits, symmetric=symmetric, axis=0, rule="mse")
    widest, scale = round_to_grid(weight, bits, symmetric=symmetric, axis=0)
    least = error(widest)
    assert (error(found) <= least * (1 + 1e-5)).all()
    first = (weight.amin(1, keepdim=True).clamp(max=0) / scale).round()
    last = first + 2**bits - 1
    if symmetric:
        first, last = torch.tensor(-(2.0 ** (bits - 1)) + 1), torch.tensor(2.0 ** (bits - 1) - 1)
    for ratio in torch.linspace(0.02, 1, 400):
        integers = torch.minimum(torch.maximum((weight / (scale * ratio)).round(), first), last)
        least = torch.minimum(least, error(integers * (scale * ratio)))
    assert (error(found) <= least * 1.25 + 1e-12).all()  # 1.11 was seen, on the cubes of Gaussians


def test_least_error_of_a_large_layer_beats_the_largest_weight_clearly() -> None:
    weight = torch.randn(16, 4608, generator=torch.Generator().manual_seed(0))
    by_max, by_error = (
        float((round_to_grid(weight, 3, axis=0, rule=rule)[0] - weight).square().mean())
        for rule in ("max", "mse")
    )
    # a Gaussian's best uniform grid of 7 values has an error of 0.044 (8 values: 0.037)
    assert by_error == pytest.approx(0.044, abs=0.003)
    assert by_error < by_max / 2


def test_percentile_clips_that_share_and_no_more() -> None:
    weight = torch.randn(5, 2000, generator=torch.Generator().manual_seed(0))
    weight[:, :1000] = 0  # pruned weights do not count
    rounded, scale = round_to_grid(weight, 8, axis=0, rule="percentile", percentile=98.0)
    clipped = (weight.abs() > scale * 127 * (1 + 1e-6)).sum(1)
    assert clipped.tolist() == [20] * 5
    assert rounded.abs().amax(1).tolist() == pytest.approx((scale * 127).flatten().tolist())


def test_two_bits_are_ternary_or_four_values() -> None:
    weight = torch.randn(3, 100, generator=torch.Generator().manual_seed(0))
    ternary, scale = round_to_grid(weight, 2, rule="mse")
    assert (ternary / scale).unique().tolist() == [-1, 0, 1]
    four, scale = round_to_grid(weight, 2, rule="mse", full_range=True)
    assert (four / scale).round().unique().tolist() == [-2, -1, 0, 1]
    asymmetric, scale = round_to_grid(weight, 2, symmetric=False)
    assert (asymmetric / scale).round().unique().numel() == 4


@given(st.integers(1, 16), st.booleans(), RULES)
@settings(max_examples=40, deadline=None)
def test_there_is_one_kind_of_zero(bits: int, symmetric: bool, rule: Rule) -> None:
    rounded, _ = round_to_grid(torch.linspace(-1, 1, 101), bits, symmetric=symmetric, rule=rule)
    assert not (rounded.eq(0) & rounded.signbit()).any()


def test_weights_too_small_for_a_step_become_zeros() -> None:
    rounded, scale = round_to_grid(torch.tensor([[1e-44, -1e-44]]), 8, axis=0)
    assert rounded.tolist() == [[0.0, 0.0]]
    assert scale.tolist() == [[1.0]]


def test_an_empty_tensor_is_told() -> None:
    with pytest.raises(BadInput, match="Got 4 bits, 0 weights"):
        round_to_grid(torch.zeros(0, 3), 4)


def test_full_range_of_an_asymmetric_grid_is_told() -> None:
    with pytest.raises(ValueError, match="full_range is for symmetric grids"):
        Linear(stage="linear", symmetric=False, full_range=True)
