"""Predictions are the formulas they name; the measurement is the rebuilt network's accuracy."""

import numpy as np
import pytest
import torch
from nets import blobs, make
from torch.nn import functional

from tersor.errors import BadInput
from tersor.models.network import Network
from tersor.pipeline.accuracy.evaluate import Images, evaluate
from tersor.pipeline.lessons.influence import (
    METHODS,
    _zeroed_everywhere,
    gate_gradients,
    influence,
    measured,
    predicted,
)
from tersor.pipeline.recipe.recipe import Train
from tersor.pipeline.structure.one_layer import remove_channels, wirings
from tersor.pipeline.training.fit import fit


@pytest.fixture(scope="module")
def trained() -> tuple[Network, Images, Images]:
    data = blobs()
    start = make("mnist", classes=3, widths=(4, 6), hidden=8, batch_norm=True)
    how = Train(stage="train", epochs=3, batch_size=20, learning_rate=0.05)
    network = fit(start, how, data, seed=0)[0]
    return network, Images.of(data.train, data.preprocessing), Images.of(data.validation, data.preprocessing)


def test_squares_are_r3s_formula_bias_included() -> None:
    network = make("fashion", (1, 12, 12), widths=(3, 4))
    one = torch.zeros(1, 1, 12, 12), torch.zeros(1, dtype=torch.int64)
    found = predicted(network, ["conv2"], Images(*one))["conv2"]
    weight, bias = network.tensors["conv2.weight"].numpy(), network.tensors["conv2.bias"].numpy()
    for channel in range(4):
        squares = float(np.square(weight[channel]).sum())
        assert float(found["squares"][channel]) == pytest.approx(squares + bias[channel] ** 2, rel=1e-5)
        assert float(found["l2"][channel]) == pytest.approx(squares**0.5, rel=1e-5)
        assert float(found["l1"][channel]) == pytest.approx(float(np.abs(weight[channel]).sum()), rel=1e-5)


def test_taylor_is_what_the_loss_changes_by_when_a_channel_is_scaled(
    trained: tuple[Network, Images, Images],
) -> None:
    """An image's gate gradient against a finite difference, in float64."""
    network, train, _ = trained
    image, label, step = train.inputs[:1].double(), train.labels[:1], 1e-6
    plain = network.module().double()

    def loss(factor: float) -> float:
        module = network.module().double()
        module.get_submodule("fc1").weight.data[2] *= factor  # type: ignore[operator]
        module.get_submodule("fc1").bias.data[2] *= factor  # type: ignore[operator]
        return float(functional.cross_entropy(module(image), label).detach())

    slope = (loss(1 + step) - loss(1 - step)) / (2 * step)
    found = gate_gradients(plain, ["fc1"], Images(image, label))["fc1"]
    assert abs(slope) > 1e-6
    assert float(found[2]) == pytest.approx(slope**2, rel=1e-4)


def test_taylor_averages_over_images_whatever_the_batch(trained: tuple[Network, Images, Images]) -> None:
    network, train, _ = trained
    few = Images(train.inputs[:10], train.labels[:10])
    whole = gate_gradients(network.module(), ["conv1.0"], few)["conv1.0"]
    pieces = gate_gradients(network.module(), ["conv1.0"], few, batch_size=3)["conv1.0"]
    assert torch.allclose(whole, pieces, rtol=1e-4)


def test_the_measurement_is_the_rebuilt_networks(trained: tuple[Network, Images, Images]) -> None:
    network, train, validation = trained
    found = influence(network, train, validation)
    assert [len(channels) for channels in found.layers().values()] == [4, 6, 8]
    for layer, channels in found.layers().items():
        for c in channels:
            rebuilt = remove_channels(network, wirings(network)[0][layer], (c.channel,))
            after = evaluate(rebuilt.module(), validation)
            drop = found.baseline.accuracy_fraction - after.accuracy_fraction
            assert c.accuracy_drop_fraction == pytest.approx(drop, abs=1e-12)
            assert c.loss_increase == pytest.approx(after.loss - found.baseline.loss, abs=1e-5)
    assert max(found.proof_max_abs_diff.values()) < 1e-9


def test_both_ways_of_measuring_agree(trained: tuple[Network, Images, Images]) -> None:
    network, _, validation = trained
    one = wirings(network)[0]["conv2.0"]
    fast = measured(network, one, validation, lambda *_: None)
    slow = _zeroed_everywhere(network, one, validation, lambda *_: None)
    assert [a.accuracy_fraction for a in fast] == [b.accuracy_fraction for b in slow]


def test_a_channel_nobody_reads_costs_nothing(trained: tuple[Network, Images, Images]) -> None:
    network, train, validation = trained
    tensors = {k: v.clone() for k, v in network.tensors.items()}
    tensors["conv2.0.weight"][:, 1] = 0.0
    found = influence(network.with_tensors(tensors), train, validation, layers=["conv1.0"])
    (channel,) = (c for c in found.channels if c.channel == 1)
    assert (channel.accuracy_drop_fraction, channel.loss_increase) == (0.0, pytest.approx(0.0, abs=1e-7))


def test_agreements_tell_the_first_choice(trained: tuple[Network, Images, Images]) -> None:
    network, train, validation = trained
    found = influence(network, train, validation, layers=["fc1"])
    assert [a.method for a in found.agreements()] == list(METHODS)
    for a in found.agreements():
        first = min(found.channels, key=lambda c: c.predicted[a.method])  # noqa: B023
        assert a.first_choice_drop_fraction == first.accuracy_drop_fraction


def test_a_layer_that_is_not_there_is_told(trained: tuple[Network, Images, Images]) -> None:
    with pytest.raises(BadInput, match="no layer matches 'fc9'.*Did you mean"):
        influence(*trained, layers=["fc9"])


def test_a_network_without_removable_channels_is_told(tmp_path) -> None:  # type: ignore[no-untyped-def]
    source = tmp_path / "net.py"
    source.write_text(
        "from torch import nn\n"
        "def net(input_shape, classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))\n"
    )
    network = make(f"{source}:net", classes=3)
    data = blobs()
    images = Images.of(data.validation, data.preprocessing)
    with pytest.raises(
        BadInput, match="no layer whose channels could be removed.*fixed by the network's outputs"
    ):
        influence(network, images, images)
