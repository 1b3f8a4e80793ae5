"""The right rebuild is proven and costs little; what gives inputs to the wrong neurons is caught."""

import pytest
import torch
from nets import blobs, make

from tersor.errors import BadInput
from tersor.models.network import Network
from tersor.pipeline.accuracy.evaluate import Images, evaluate
from tersor.pipeline.lessons.collapse import REBUILDS, _dense, collapse, collapse_markdown, rebuild
from tersor.pipeline.recipe.recipe import Train
from tersor.pipeline.structure.one_layer import remove_channels
from tersor.pipeline.training.fit import fit

DATA = blobs()
IMAGES = Images.of(DATA.validation, DATA.preprocessing)


@pytest.fixture(scope="module")
def network() -> Network:
    start = make("mnist", classes=3, widths=(4, 6), hidden=24)
    how = Train(stage="train", epochs=6, batch_size=20, learning_rate=0.05)
    return fit(start, how, DATA, seed=0)[0]


def test_only_the_right_rebuild_is_proven(network: Network) -> None:
    found = collapse(network, _dense(network, None), IMAGES)
    assert found.layer == "fc1"
    assert [r.name for r in found.rebuilds if r.proven] == ["right"]
    for way in found.rebuilds:
        assert len(way.accuracies) == 24


def test_one_neuron_less_costs_little_and_a_wrong_order_nearly_all(network: Network) -> None:
    found = {r.name: r for r in collapse(network, _dense(network, None), IMAGES).rebuilds}
    assert sum(found["right"].accuracies) / 24 > 0.9
    for wrong in ("by_influence", "transposed"):
        assert sum(found[wrong].accuracies) / 24 < 0.7


def test_the_right_way_is_the_exact_removal(network: Network) -> None:
    wired = _dense(network, "fc1")
    order = torch.arange(wired.width)
    ours, exact = rebuild(network, wired, REBUILDS["right"], 5, order), remove_channels(network, wired, (5,))
    assert all(torch.equal(ours.tensors[k], exact.tensors[k]) for k in exact.tensors)


@pytest.mark.parametrize("name", list(REBUILDS))
def test_accuracies_are_those_of_the_rebuilt_networks(network: Network, name: str) -> None:
    wired = _dense(network, None)
    found = collapse(network, wired, IMAGES)
    weight, bias = network.tensors["fc1.weight"], network.tensors["fc1.bias"]
    order = (weight.square().sum(1) + bias.square()).argsort(stable=True)
    (own,) = (r for r in found.rebuilds if r.name == name)
    for gone in (0, 11, 23):
        rebuilt = rebuild(network, wired, REBUILDS[name], gone, order)
        assert evaluate(rebuilt.module(), IMAGES).accuracy_fraction == own.accuracies[gone]


def test_dropping_the_last_column_is_right_for_the_last_neuron_alone(network: Network) -> None:
    wired = _dense(network, None)
    order = torch.arange(wired.width)
    for gone, same in ((23, True), (3, False)):
        exact = remove_channels(network, wired, (gone,)).tensors["fc2.weight"]
        wrong = rebuild(network, wired, REBUILDS["last_column"], gone, order).tensors["fc2.weight"]
        assert torch.equal(exact, wrong) is same


@pytest.mark.parametrize("layer", ["conv1.0", "fc2", "fc9"])
def test_a_layer_that_no_linear_layer_reads_is_told(network: Network, layer: str) -> None:
    with pytest.raises(BadInput, match=f"no such linear layer. Got {layer}. Wanted fc1. Where: collapse"):
        _dense(network, layer)


def test_the_table_names_every_way_and_r3s_figures(network: Network) -> None:
    text = collapse_markdown(collapse(network, _dense(network, None), IMAGES))
    assert text.count("| NO |") == 6
    assert "10.06, 8.79, 12.89" in text
