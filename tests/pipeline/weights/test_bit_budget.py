"""Bits under a budget: never above it, never worse than an exhaustive choice, told when impossible."""

import itertools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import blobs, make

from tersor.errors import BadInput
from tersor.pipeline.recipe.recipe import Linear, Recipe
from tersor.pipeline.stages.table import STAGES, Context
from tersor.pipeline.weights.bit_budget import bits_within
from tersor.pipeline.weights.sensitivity import Point


def point(layer: str, bits: int, loss: float) -> Point:
    return Point("bits", layer, bits, 0.5, 0.9, loss, 1, 1)


LOSSES = st.lists(st.floats(0, 10), min_size=4, max_size=4)


@given(
    st.lists(LOSSES, min_size=1, max_size=4),
    st.lists(st.integers(1, 5000), min_size=4, max_size=4),
    st.floats(1, 5),
)
@settings(max_examples=80, deadline=None)
def test_the_choice_is_within_the_budget_and_as_good_as_any(
    losses: list[list[float]], counts: list[int], budget: float
) -> None:
    layers = [f"l{i}" for i in range(len(losses))]
    sizes = dict(zip(layers, counts))
    falling = {layer: sorted(own, reverse=True) for layer, own in zip(layers, losses)}  # more bits, less loss
    points = [point(layer, b + 1, loss) for layer, own in falling.items() for b, loss in enumerate(own)]
    limit = budget * sum(sizes.values())
    chosen = bits_within(points, sizes, limit)
    assert sum(sizes[layer] * bits for layer, bits in chosen.items()) <= limit + 1e-6

    def cost(bits: tuple[int, ...]) -> float:
        return sum(falling[layer][b - 1] for layer, b in zip(layers, bits))

    # sizes are rounded up to a 20,000th of the room, so compare with a budget smaller by that much
    room = limit - len(layers) * max(1.0, limit / 20_000)
    every = itertools.product(range(1, 5), repeat=len(layers))
    within = [cost(b) for b in every if sum(sizes[x] * n for x, n in zip(layers, b)) <= room]
    assert cost(tuple(chosen[layer] for layer in layers)) <= min(within, default=1e9) + 1e-9


def test_noise_buys_nothing() -> None:
    points = [point("a", 4, 0.5), point("a", 3, 0.2), point("b", 4, 0.3), point("b", 3, 0.6)]
    # `a` at 3 bits seems better than at 4: it counts as equal, so the bit goes to `b`
    assert bits_within(points, {"a": 100, "b": 100}, 700) == {"a": 3, "b": 4}


def test_a_budget_below_the_fewest_bits_is_told() -> None:
    with pytest.raises(
        BadInput, match=r"budget is too small. Got 0.5 bits a weight for a. Wanted at least 2"
    ):
        bits_within([point("a", 2, 0.1), point("a", 4, 0.0)], {"a": 10}, 5)


def context() -> Context:
    raw = {"name": "x", "model": "mnist", "stages": [{"stage": "train"}]}
    return Context(Recipe.model_validate(raw), blobs(), 0, Path("none"), Path("none"), lambda *_: None)


def test_the_stage_stays_within_its_budget_and_keeps_fixed_layers() -> None:
    net = make(classes=3)
    linear = Linear(stage="linear", bits=6, budget=3.5, per_layer={"fc2": 8}, scale="mse")
    quantized, details = STAGES["linear"].run(net, linear, context())
    bits = {name.removesuffix(".weight"): form.bits for name, form in quantized.forms.items()}
    assert bits == details["amounts"]
    assert bits["fc2"] == 8
    sizes = {layer: net.tensors[f"{layer}.weight"].numel() for layer in bits}
    mean = sum(sizes[k] * (b or 0) for k, b in bits.items()) / sum(sizes.values())
    assert details["bits_per_weight"] == pytest.approx(mean)
    assert 2.5 < mean <= 3.5
    assert max(bits[k] or 0 for k in ("conv1.0", "conv2.0", "fc1")) <= 6


def test_budget_and_sensitivity_together_are_refused() -> None:
    with pytest.raises(ValueError, match="give one of them"):
        Linear(stage="linear", budget=4, sensitivity="auto")
