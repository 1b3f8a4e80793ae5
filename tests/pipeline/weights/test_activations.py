"""Input grids: zero is exact, ranges are what their method says, bad calibration is told."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import make

from tersor.errors import BadInput
from tersor.models import network as networks
from tersor.models.network import Activation, Network
from tersor.pipeline.recipe.recipe import Activations, Recipe
from tersor.pipeline.training.learned_steps import InputGrid, simulated
from tersor.pipeline.weights.activations import calibrate, grid_between


def images(count: int = 40, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 1, 8, 8), np.float32)


def asked(**changes: object) -> Activations:
    return Activations.model_validate({"stage": "activations", **changes})


def inputs_of(network: Network, layer: str, batch: np.ndarray, module: torch.nn.Module) -> torch.Tensor:
    """What reaches a layer after its grid."""
    seen = []
    handle = module.get_submodule(layer).register_forward_hook(lambda _, given, out: seen.append(given[0]))
    with torch.no_grad():
        module(torch.from_numpy(batch))
    handle.remove()
    return seen[0]


@given(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3), st.integers(1, 16))
@settings(max_examples=100, deadline=None)
def test_zero_is_exact_and_every_value_is_within_a_step(one: float, other: float, bits: int) -> None:
    low, high = min(one, other, 0.0), max(one, other, 0.0)
    rounding = InputGrid(grid_between(low, high, bits), learn=False)
    values = torch.linspace(low, high, 101)
    rounded = rounding(values)
    assert rounding(torch.zeros(3)).tolist() == [0.0] * 3
    assert rounded.unique().numel() <= 2**bits
    assert ((rounded - values).abs() <= rounding.grid.scale * 1.001 + 1e-6).all()


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_simulated_inputs_have_at_most_two_to_the_bits_values(bits: int) -> None:
    network, details = calibrate(make(), asked(bits=bits, per_layer={"conv1.0": 8}), images())
    module = simulated(network)
    for row in details["layers"]:
        found = inputs_of(network, row["layer"], images(), module).unique().numel()
        assert found <= 2 ** (8 if row["layer"] == "conv1.0" else bits)
    assert [row["layer"] for row in details["layers"]] == ["conv1.0", "conv2.0", "fc1", "fc2"]


def test_sixteen_bits_change_next_to_nothing_and_fewer_bits_more() -> None:
    net, batch = make(), torch.from_numpy(images())
    exact = net.module()(batch).detach()
    errors = []
    for bits in (16, 8, 4, 2):
        network, _ = calibrate(net, asked(bits=bits, method="minmax"), images())
        errors.append(float((simulated(network)(batch).detach() - exact).abs().max()))
    assert errors == sorted(errors)
    assert errors[0] < 1e-3 * float(exact.abs().max())


def test_the_plain_module_computes_in_float() -> None:
    net = make()
    network, _ = calibrate(net, asked(bits=2), images())
    batch = torch.from_numpy(images())
    assert torch.equal(network.module()(batch), net.module()(batch))
    assert set(network.module().state_dict()) == set(net.tensors)


def test_minmax_covers_all_and_percentile_clips_its_share() -> None:
    _, whole = calibrate(make(), asked(method="minmax"), images(400))
    _, part = calibrate(make(), asked(method="percentile", percentile=99), images(400))
    assert all(row["clipped_fraction"] == 0 for row in whole["layers"])
    first = part["layers"][0]  # the images: both ends are clipped by at most 1 %
    assert 0.01 < first["clipped_fraction"] <= 0.02
    assert all(row["clipped_fraction"] <= 0.02 for row in part["layers"])


def test_entropy_gives_up_outliers_that_minmax_keeps() -> None:
    batch = images(400)
    batch[0, 0, 0, 0] = 1000.0
    wide = calibrate(make(), asked(method="minmax", layers=["conv1.0"], bits=4), batch)[1]["layers"][0]
    close = calibrate(make(), asked(method="entropy", layers=["conv1.0"], bits=4), batch)[1]["layers"][0]
    assert wide["scale"] > 60
    assert close["scale"] < 10


def test_grids_survive_saving_and_are_part_of_the_digest(tmp_path) -> None:
    net = make()
    network, _ = calibrate(net, asked(bits=5, layers=["fc1"]), images())
    network.save(tmp_path / "n.safetensors")
    again = networks.load(tmp_path / "n.safetensors")
    assert again.activations == network.activations
    assert set(again.activations) == {"fc1"}
    assert again.digest() == network.digest() != net.digest()


@pytest.mark.parametrize("grid", [Activation(0, 1.0), Activation(4, -1.0), Activation(4, 1.0, 16)])
def test_a_grid_that_makes_no_sense_is_refused_at_loading(grid: Activation, tmp_path) -> None:
    from dataclasses import replace

    replace(make(), activations={"fc1": grid}).save(tmp_path / "n.safetensors")
    with pytest.raises(BadInput, match="input grid of layer 'fc1' makes no sense"):
        networks.load(tmp_path / "n.safetensors")


def test_an_empty_calibration_set_is_told() -> None:
    with pytest.raises(
        BadInput, match="no calibration images. Wanted at least one. Where: stage `activations`"
    ):
        calibrate(make(), asked(), images(0))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_inputs_that_are_not_numbers_are_told_with_the_layer(value: float) -> None:
    batch = images()
    batch[3, 0, 2, 2] = value
    with pytest.raises(BadInput, match="NaN or infinite.*input of layer 'conv1.0'"):
        calibrate(make(), asked(), batch)


@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy"])
@pytest.mark.parametrize("value", [0.0, 0.7, -3.0])
def test_constant_images_get_a_grid_that_holds_them(method: str, value: float) -> None:
    batch = np.full((5, 1, 8, 8), value, np.float32)
    network, _ = calibrate(make(), asked(method=method, layers=["conv1.0"]), batch)
    rounded = InputGrid(network.activations["conv1.0"], learn=False)(torch.full((2, 3), value))
    assert torch.allclose(rounded, torch.full((2, 3), value), atol=0, rtol=1e-6)


def test_layers_the_forward_pass_does_not_use_get_no_grid(tmp_path) -> None:
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.used, self.idle, self.flat = nn.Linear(64, 3), nn.Linear(2, 2), nn.Flatten()\n"
        "    def forward(self, x):\n"
        "        return self.used(self.flat(x))\n"
        "def net(input_shape, classes):\n"
        "    return Net()\n"
    )
    net = make(f"{tmp_path / 'net.py'}:net", classes=3)
    assert set(calibrate(net, asked(), images())[0].activations) == {"used"}


def test_structure_after_activations_is_refused() -> None:
    stages = [{"stage": "train"}, {"stage": "activations"}, {"stage": "structure"}]
    with pytest.raises(ValueError, match="`activations` comes after the last `structure`"):
        Recipe.model_validate({"name": "x", "model": "mnist", "stages": stages})
