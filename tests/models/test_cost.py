"""Counts are true: they agree with torch's own counter, and with the reports where those are right."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tersor.models.cost import Cost, cost
from tersor.models.network import Network, create
from tersor.models.preprocessing import Preprocessing


def network(name: str, shape: tuple[int, int, int], classes: int = 10, **arguments: Any) -> Network:
    names = tuple(str(i) for i in range(classes))
    return create(name, arguments, shape, names, Preprocessing())


@pytest.fixture(scope="module")
def lenet() -> Cost:
    """R1's network: kernels 8 and 9, CIFAR-100, batch 128."""
    return cost(network("lenet", (3, 32, 32), 100, kernels=(8, 9)), batch=128)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("lenet", (3, 32, 32)),
        ("vgg16_half", (3, 32, 32)),
        ("resnet20", (3, 32, 32)),
        ("fashion", (1, 28, 28)),
        ("mnist", (1, 28, 28)),
    ],
)
def test_macs_are_half_the_flops_torch_counts(name: str, shape: tuple[int, int, int]) -> None:
    net = network(name, shape)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net.module()(torch.zeros(1, *shape))
    assert 2 * cost(net).macs == counter.get_total_flops()


def test_r1_weights_and_their_bytes(lenet: Cost) -> None:
    assert [r.weights for r in lenet.layers] == [1152, 7776, 7680, 10080, 8400]
    assert lenet.weights == 35_088
    assert lenet.weight_bytes == 140_352
    net = network("lenet", (3, 32, 32), 100, kernels=(8, 9))
    assert [cost(net, bits=b).weight_bytes for b in (2, 4, 8)] == [8_772, 17_544, 35_088]


def test_r1_macs_differ_from_the_true_ones_by_a_pool_and_a_convolution(lenet: Cost) -> None:
    """R1 counts its first pool (at 13x13, 4 operations each) and conv2 at the pooled 2x2 of 4x4."""
    macs = {r.name: r.macs for r in lenet.layers}
    pool, conv2_pooled = 6 * 13 * 13 * 4, 7776 * 2 * 2
    assert macs["conv2"] == 4 * conv2_pooled == 124_416
    assert lenet.macs - macs["conv2"] + conv2_pooled + pool == 781_320
    assert lenet.macs == 870_576


def test_r1_training_memory_takes_outputs_for_biases(lenet: Cost) -> None:
    """R1 counts a bias per output element, and conv2's outputs at 2x2: 4,118 of each."""
    outputs = {r.name: r.activations for r in lenet.layers}
    theirs = sum(outputs.values()) - outputs["conv2"] + 16 * 2 * 2
    assert theirs == 4_118
    assert 3 * (lenet.weights + theirs) + 2 * 128 * theirs == 1_171_826
    assert (lenet.biases, lenet.activations) == (326, 4_310)
    assert lenet.training_memory_elements == 3 * (35_088 + 326) + 2 * 128 * 4_310 == 1_209_602
    assert lenet.training_memory_bytes == 4 * 1_209_602


def test_vgg16_half_has_the_published_weights_and_macs() -> None:
    """The 78.7 million are the convolutions'; the linear layers add 0.13."""
    counted = cost(network("vgg16_half", (3, 32, 32)))
    convolutions = sum(r.macs for r in counted.layers if r.type == "Conv2d")
    assert counted.weights == 3_811_680
    assert round(convolutions / 1e6, 1) == 78.7
    assert counted.macs == 78_875_136 == convolutions + 256 * 256 * 2 + 256 * 10
    assert counted.uncounted == ()


def test_flops_follow_r3s_formulas_and_see_the_activation() -> None:
    rows = {r.name: r for r in cost(network("fashion", (1, 28, 28), widths=(1, 2), hidden=98)).layers}
    assert rows["conv1"].flops == (2 * 1 * 9 - 1 + 1) * 1 * 26 * 26
    assert rows["conv2"].flops == (2 * 1 * 9 - 1 + 1) * 2 * 24 * 24
    assert rows["fc1"].flops == 98 * (2 * 1152 - 1 + 1)
    assert rows["fc2"].flops == 10 * (2 * 98 - 1)


def test_batch_norm_does_not_hide_the_activation_and_is_no_weight() -> None:
    rows = {r.name: r for r in cost(network("mnist", (1, 8, 8), batch_norm=True)).layers}
    assert rows["conv1.0"].flops == 2 * 9 * 32 * 6 * 6
    assert (rows["conv1.1"].weights, rows["conv1.1"].other_parameters, rows["conv1.1"].macs) == (0, 64, 0)


def test_zeros_show_in_sparsity_and_effective_macs() -> None:
    net = network("mnist", (1, 8, 8))
    tensors = {k: v.clone() for k, v in net.tensors.items()}
    tensors["conv2.0.weight"][:16] = 0
    before, after = cost(net), cost(net.with_tensors(tensors))
    row = next(r for r in after.layers if r.name == "conv2.0")
    assert row.sparsity_fraction == 0.25
    assert row.effective_macs == row.macs * 3 // 4
    assert after.macs == before.macs
    assert after.macs - after.effective_macs == row.macs // 4


def test_removed_channels_show_in_macs() -> None:
    wide, narrow = (cost(network("mnist", (1, 28, 28), widths=w)) for w in ((32, 64), (16, 32)))
    assert wide.parameters == 1_199_882
    # The report of the staircase: 0.28 of the MACs at half the channels.
    assert narrow.macs / wide.macs == pytest.approx(0.28, abs=0.01)


def test_inference_memory_is_parameters_and_the_largest_pair() -> None:
    counted = cost(network("mnist", (1, 28, 28)), batch=2)
    pair = 32 * 26 * 26 + 64 * 24 * 24
    assert counted.peak_pair == pair
    assert counted.inference_memory_bytes == 4 * (1_199_882 + 2 * pair)


def test_parameters_outside_known_layers_are_named(tmp_path: Path) -> None:
    source = tmp_path / "net.py"
    source.write_text(
        "import torch\nfrom torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.up = nn.ConvTranspose2d(1, 2, 2)\n"
        "        self.fc = nn.Linear(2, 2)\n"
        "    def forward(self, x):\n"
        "        return self.fc(self.up(x).mean((2, 3)))\n"
        "def net(input_shape, classes):\n"
        "    return Net()\n"
    )
    counted = cost(network(f"{source}:net", (1, 4, 4), 2))
    assert counted.uncounted == ("up.weight", "up.bias")
    assert counted.macs == 4


def test_the_dictionary_is_plain_json_with_totals_and_layers(lenet: Cost) -> None:
    dictionary = json.loads(json.dumps(lenet.to_dict()))
    assert dictionary["macs"] == 870_576
    assert [r["name"] for r in dictionary["layers"]] == ["conv1", "conv2", "fc1", "fc2", "fc3"]


@pytest.mark.parametrize("arguments", [{"batch": 0}, {"bits": 0}, {"bits": 33}])
def test_impossible_batch_and_bits_are_refused(arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="has to be at least 1, bits .* 1 to 32"):
        cost(network("mnist", (1, 8, 8)), **arguments)
