"""BatchNorm folded into two vectors computes the same; vectors are rounded to the grid they promise."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import make, randomised

from tersor.errors import BadInput
from tersor.models import network
from tersor.models.preprocessing import Preprocessing
from tersor.pipeline.recipe.recipe import Recipe, Vectors
from tersor.pipeline.weights.vectors import round_vectors, to_grid


def chosen(**changes: object) -> Vectors:
    return Vectors(stage="vectors", **changes)  # type: ignore[arg-type]


def resnet() -> network.Network:
    torch.manual_seed(0)
    names = [str(i) for i in range(10)]
    return randomised(network.create("resnet20", {}, (3, 16, 16), names, Preprocessing()))


def difference(before: network.Network, after: network.Network) -> float:
    inputs = torch.randn(4, *before.input_shape, generator=torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        return float((before.module().double()(inputs) - after.module().double()(inputs)).abs().max())


@pytest.mark.parametrize("net", [make(batch_norm=True), resnet()], ids=["mnist", "resnet20"])
def test_folding_with_sixteen_bits_changes_next_to_nothing(net: network.Network) -> None:
    after, _ = round_vectors(net, chosen(bits=16))
    assert difference(net, after) < 0.01
    eight, _ = round_vectors(net, chosen(bits=8))
    assert difference(net, after) < 0.1 * difference(net, eight)


def test_statistics_become_constants_and_weights_stay() -> None:
    net = make(batch_norm=True)
    after, _ = round_vectors(net, chosen())
    for name, tensor in after.tensors.items():
        if name.endswith("running_mean"):
            assert not tensor.any()
        elif name.endswith("running_var"):
            assert bool((tensor == 1).all())
        elif tensor.dim() >= 2:
            assert torch.equal(tensor, net.tensors[name])
    assert after.forms == net.forms


@given(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=40).map(lambda v: np.array(v, np.float32)),
    st.integers(2, 16),
)
@settings(max_examples=300)
def test_a_grid_has_the_bits_it_promises(values: np.ndarray, bits: int) -> None:
    tensor = torch.from_numpy(values)
    if 0 < float(tensor.abs().max()) < 1e-30:
        return
    rounded, step = to_grid(tensor, bits)
    if not step:
        assert not tensor.any()
        return
    steps = (rounded.double() / step).numpy()
    assert np.array_equal(steps, np.round(steps))
    assert np.log2(step) == int(np.log2(step))
    assert steps.min() >= -(2 ** (bits - 1))
    assert steps.max() <= 2 ** (bits - 1) - 1
    assert np.abs(steps).max() >= (2 ** (bits - 1) - 1) / 2 - 1
    assert float((rounded - tensor).abs().max()) <= step / 2 * (1 + 1e-6)


def test_patterns_choose_and_errors_name_them() -> None:
    net = make(batch_norm=True)
    after, details = round_vectors(net, chosen(layers=["fc*"]))
    assert [row["tensor"] for row in details["tensors"]] == ["fc1.bias", "fc2.bias"]
    assert torch.equal(after.tensors["conv1.1.running_mean"], net.tensors["conv1.1.running_mean"])
    with pytest.raises(BadInput, match=r"no layer matches 'conv9'.*stage `vectors`"):
        round_vectors(net, chosen(layers=["conv9"]))
    with pytest.raises(BadInput, match="no biases and no BatchNorm vectors"):
        round_vectors(net, chosen(exclude=["*"]))


@pytest.mark.parametrize("late", [{"stage": "tune"}, {"stage": "structure"}])
def test_nothing_may_undo_the_rounding(late: dict[str, str]) -> None:
    stages = [{"stage": "train"}, {"stage": "vectors"}, late]
    with pytest.raises(ValueError, match="`vectors` comes after the last `tune` and `structure`"):
        Recipe(name="r", model="mnist", stages=stages)


def test_a_dead_channel_does_not_round_the_others_away() -> None:
    """Its variance goes to zero, so its scale over sqrt(eps) is hundreds of times the others'."""
    net = make(batch_norm=True)
    tensors = {name: tensor.clone() for name, tensor in net.tensors.items()}
    tensors["conv1.0.weight"][3] = 0.0
    norm = next(name.removesuffix(".running_var") for name in tensors if name.endswith("running_var"))
    tensors[f"{norm}.running_mean"][3] = tensors.get("conv1.0.bias", torch.zeros(32))[3]
    tensors[f"{norm}.running_var"][3] = 1e-14
    dead = net.with_tensors(tensors)
    after, _ = round_vectors(dead, chosen(bits=8))
    assert difference(dead, after) < 0.1
    assert after.tensors[f"{norm}.weight"][3] == 0
    assert int((after.tensors[f"{norm}.weight"] != 0).sum()) == 31
