"""Reusing what comes before a layer changes no number; levels and choices mean what they say."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from nets import blobs, make
from torch import Tensor

from tersor.errors import BadInput
from tersor.models.cost import cost
from tersor.models.layers import weight_layers
from tersor.models.network import Network
from tersor.models.preprocessing import Preprocessing
from tersor.pipeline.accuracy import one_layer_at_a_time
from tersor.pipeline.accuracy.evaluate import Images, evaluate
from tersor.pipeline.accuracy.forward_prefix import Prefix
from tersor.pipeline.recipe.recipe import Linear
from tersor.pipeline.weights.sensitivity import (
    ALL_LAYERS,
    R1_LEVELS,
    Point,
    auto_amounts,
    choose,
    compressed,
    global_sensitivity,
    sensitivity,
)

FACTORY = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, channels, classes, kind):
        super().__init__()
        self.kind = kind
        self.conv = nn.Conv2d(channels, 4, 3, padding=1)
        self.again = nn.Conv2d(4, 4, 3, padding=1)
        self.unused = nn.Linear(3, 3)
        self.act = nn.ReLU(inplace=True)
        self.fc = nn.Linear(4, classes)

    def forward(self, x):
        if self.kind == "branching" and x.sum() > 1e9:
            x = x + 1
        y = self.act(self.conv(x))
        if self.kind == "mutating":
            z = self.again(y)
            y.mul_(0.5)
        elif self.kind == "repeating":
            z = self.again(self.again(y))
        elif self.kind == "random":
            z = self.again(y) + torch.rand_like(y)
        else:
            z = self.act(self.again(y))
        a, b = torch.split(z + y, 2, dim=1)
        return self.fc(torch.cat([b, a], dim=1).mean((2, 3)))

def build(input_shape=(1, 8, 8), classes=3, kind="plain"):
    return Net(input_shape[0], classes, kind)
"""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Nets this small are faster on one thread, above all beside other work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def images_for(net: Network, count: int = 24, seed: int = 0) -> Images:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, *net.input_shape, generator=generator)
    return Images(inputs, torch.randint(0, len(net.classes), (count,), generator=generator))


def own(folder: Path, kind: str) -> Network:
    """A network from a user's file; `kind` is what its forward pass does."""
    from tersor.models import network

    file = folder / "own.py"
    file.write_text(FACTORY)
    torch.manual_seed(0)
    pre = Preprocessing(16.0, (0.3,), (0.4,))
    return network.create(f"{file}:build", {"kind": kind}, (1, 8, 8), ("a", "b", "c"), pre)


def point(layer: str, level: float, accuracy: float, method: Any = "sparsity") -> Point:
    return Point(method, layer, level, accuracy, 1.0, 0.5, 10, 100)


NETS: dict[str, dict[str, Any]] = {
    "mnist": {"name": "mnist", "batch_norm": True},
    "lenet": {"name": "lenet", "shape": (3, 32, 32), "kernels": (8, 9)},
    "resnet20 A": {"name": "resnet20", "shape": (3, 16, 16), "width": 8, "shortcut": "A"},
    "resnet20 B": {"name": "resnet20", "shape": (3, 16, 16), "width": 8, "shortcut": "B"},
}


@pytest.mark.parametrize("kind", NETS)
def test_reuse_gives_the_numbers_of_every_point_from_scratch(kind: str) -> None:
    net = make(**NETS[kind])
    images = images_for(net, 21)  # the last batch is a short one
    said: list[str] = []
    settings: dict[str, Any] = {"method": "sparsity", "levels": [0.3, 0.9], "batch_size": 8}
    fast = sensitivity(net, images, progress=lambda _, words: said.append(words), **settings)
    slow = sensitivity(net, images, reuse=False, **settings)
    assert fast == slow
    assert [p.layer for p in fast[::2]] == weight_layers(net)
    assert len({p.loss for p in fast}) > len(fast) / 2  # the points do differ
    assert not any("scratch" in words for words in said)


@pytest.mark.parametrize(("method", "levels"), [("bits", [2, 16]), ("sharing", [1, 8])])
def test_bits_and_sharing_reuse_too(method: Any, levels: list[float]) -> None:
    net = make()
    images = images_for(net)
    fast, slow = (sensitivity(net, images, method=method, levels=levels, reuse=r) for r in (True, False))
    assert fast == slow
    by_level = [[p for p in fast if p.level == level] for level in levels]
    untouched = evaluate(net.module(), images)
    assert all(p.loss == pytest.approx(untouched.loss, rel=1e-2) for p in by_level[1])
    assert any(p.loss != pytest.approx(untouched.loss, rel=1e-2) for p in by_level[0])


def test_one_scale_a_layer_differs_from_one_a_channel() -> None:
    net = make()
    settings: dict[str, Any] = {"method": "bits", "levels": [3], "layers": ["fc1"]}
    grids = [Linear(stage="linear", per_channel=per_channel) for per_channel in (False, True)]
    one, many = (sensitivity(net, images_for(net), grid=grid, **settings) for grid in grids)
    assert one[0].loss != many[0].loss


def test_level_zero_is_the_baseline_and_one_zeroes_the_layer_alone() -> None:
    net = make()
    images = images_for(net)
    mildest, hardest = sensitivity(net, images, method="sparsity", levels=[0, 1.0], layers=["conv2.0"])
    assert mildest.loss == evaluate(net.module(), images).loss
    assert mildest.nonzero_weights == cost(net).nonzero_weights
    after = compressed(net, "sparsity", 1.0, ["conv2.0"])
    assert hardest.loss == evaluate(after.module(), images).loss
    for name, tensor in after.tensors.items():
        expected = torch.zeros_like(tensor) if name == "conv2.0.weight" else net.tensors[name]
        assert torch.equal(tensor, expected)


def test_counts_are_those_of_the_pruned_network() -> None:
    net = make("resnet20", (3, 16, 16), width=8)
    for p in sensitivity(
        net, images_for(net, 4), method="sparsity", levels=[0.35], layers=["layer2.*", "fc"]
    ):
        counted = cost(compressed(net, "sparsity", p.level, [p.layer]))
        assert (p.nonzero_weights, p.effective_macs) == (counted.nonzero_weights, counted.effective_macs)
        assert p.effective_macs < cost(net).effective_macs


def test_global_prunes_all_layers_at_once() -> None:
    net = make("lenet", (3, 32, 32), kernels=(8, 9))
    images = images_for(net)
    points = global_sensitivity(net, images, method="sparsity")
    assert [p.level for p in points] == list(R1_LEVELS)
    assert {p.layer for p in points} == {ALL_LAYERS}
    after = compressed(net, "sparsity", 0.4, weight_layers(net))
    assert points[3].loss == evaluate(after.module(), images).loss
    assert points[3].effective_macs == cost(after).effective_macs
    assert (points[-1].nonzero_weights, points[-1].effective_macs) == (0, 0)


@pytest.mark.parametrize(
    ("kind", "why"),
    [("branching", "cannot be traced"), ("mutating", "in place"), ("random", "something else")],
)
def test_a_network_that_cannot_be_split_falls_back_and_says_so(tmp_path: Path, kind: str, why: str) -> None:
    net = own(tmp_path, kind)
    said: list[str] = []
    settings: dict[str, Any] = {"method": "sparsity", "levels": [0.5]}
    points = sensitivity(net, images_for(net), progress=lambda _, words: said.append(words), **settings)
    assert "every point from scratch" in said[-1]
    assert why in said[-1]
    if kind != "random":
        assert points == sensitivity(net, images_for(net), reuse=False, **settings)


@pytest.mark.parametrize("kind", ["plain", "repeating"])
def test_in_place_activations_splits_repeated_and_unused_layers_reuse(tmp_path: Path, kind: str) -> None:
    net = own(tmp_path, kind)
    images, said = images_for(net), list[str]()
    settings: dict[str, Any] = {"method": "sparsity", "levels": [0.5, 1.0]}
    points = sensitivity(net, images, progress=lambda _, words: said.append(words), **settings)
    assert "scratch" not in said[-1]
    assert points == sensitivity(net, images, reuse=False, **settings)
    unused = [p.loss for p in points if p.layer == "unused"]
    assert unused == [evaluate(net.module(), images).loss] * 2


def test_images_made_in_inference_mode_and_the_network_stay_as_they_were() -> None:
    net = make()
    before = net.digest()
    with torch.inference_mode():
        images = images_for(net)
    kept = images.inputs.clone()
    sensitivity(net, images, method="sparsity", levels=[0.5])
    assert net.digest() == before
    assert torch.equal(images.inputs, kept)


def test_held_values_do_not_grow_with_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    net = make("resnet20", (3, 16, 16), width=8)
    held: list[int] = []

    class Watched(Prefix):
        def finish(self) -> Tensor:
            held.append(self.held_bytes)
            return super().finish()

    monkeypatch.setattr(one_layer_at_a_time, "Prefix", Watched)
    peaks = []
    for count in (8, 40):
        held.clear()
        sensitivity(net, images_for(net, count), method="sparsity", levels=[0.5], batch_size=8)
        peaks.append(max(held))
    assert peaks[0] == peaks[1]
    # at most the block's input beside the layer's own: 8 images x 8 channels x 16 x 16 x 4 bytes each
    assert peaks[0] <= 2 * 8 * 8 * 16 * 16 * 4


def test_choose_takes_the_hardest_level_before_the_first_that_costs_too_much() -> None:
    points = [point("a", 0.9, 0.89), point("a", 0.1, 0.90), point("a", 0.5, 0.88), point("a", 0.7, 0.80)]
    points += [point("b", 0.1, 0.5), point("b", 0.5, 0.9)]  # fails at the mildest
    assert choose(points, max_drop=0.02, baseline=0.90) == {"a": 0.5, "b": 0.0}
    assert choose(points, max_drop=0.5, baseline=0.90) == {"a": 0.9, "b": 0.5}


def test_choose_takes_the_fewest_bits() -> None:
    points = [point("a", b, acc, "bits") for b, acc in ((2, 0.5), (4, 0.89), (8, 0.9))]
    assert choose([*points, point("b", 8, 0.1, "bits")], max_drop=0.02, baseline=0.9) == {"a": 4, "b": 16}
    with pytest.raises(BadInput, match="several methods.*bits, sparsity"):
        choose([*points, point("a", 0.5, 0.9)], max_drop=0.02, baseline=0.9)
    with pytest.raises(BadInput, match="max_drop.*Got 2"):
        choose(points, max_drop=2, baseline=0.9)


def test_auto_amounts_reads_the_validation_split_alone() -> None:
    net, data = make(classes=3), blobs(40)
    data = type(data)(**{**vars(data), "train": None, "test": None})
    amounts, points = auto_amounts(net, data, method="sparsity", levels=[0.2, 0.8], max_drop=1.0)
    assert amounts == dict.fromkeys(weight_layers(net), 0.8)
    images = Images.of(data.validation, data.preprocessing)
    assert points == sensitivity(net, images, method="sparsity", levels=[0.2, 0.8])
    few = auto_amounts(net, data, method="bits", levels=[4], max_drop=1.0, limit_images=9)[1]
    assert all(round(9 * p.accuracy_fraction, 6).is_integer() for p in few)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"levels": [0.5], "layers": ["fc3"]}, "no layer matches 'fc3'.*Did you mean fc"),
        ({"levels": [0.5, 1.2]}, "out of range. Got 1.2. Wanted fractions, 0 to 1"),
        ({"levels": [30]}, "Did you mean 0.3"),
        ({"levels": [-0.1]}, "Got -0.1"),
        ({"levels": [float("nan")]}, "Got nan"),
        ({"levels": []}, "no levels"),
        ({"levels": [0], "method": "bits"}, "Got 0. Wanted whole numbers, 1 to 16"),
        ({"levels": [17], "method": "bits"}, "Got 17"),
        ({"levels": [2.5], "method": "bits"}, "Got 2.5"),
        ({"levels": [9], "method": "sharing"}, "whole numbers, 1 to 8"),
        ({"levels": [1], "method": "bit"}, "unknown method. Got 'bit'"),
        ({"levels": [0.5], "batch_size": 0}, "nothing to evaluate on"),
    ],
)
def test_bad_input_is_told(settings: dict[str, Any], message: str) -> None:
    net = make()
    with pytest.raises(BadInput, match=message):
        sensitivity(net, images_for(net), **{"method": "sparsity", **settings})


def test_bad_images_are_told() -> None:
    net = make()
    settings: dict[str, Any] = {"method": "sparsity", "levels": [0.5]}
    with pytest.raises(BadInput, match="0 images"):
        sensitivity(net, images_for(net, 0), **settings)
    with pytest.raises(BadInput, match=r"do not fit the network. Got \(3, 32, 32\)"):
        sensitivity(net, images_for(make("lenet", (3, 32, 32))), **settings)
