"""Rebuild: any network comes back from the shapes of its tensors."""

import pytest
import torch
from torch import nn

from tersor.errors import BadInput
from tersor.models import definition
from tersor.models.rebuild import rebuild


def narrow(tensors: dict[str, torch.Tensor], widths: dict[str, int]) -> dict[str, torch.Tensor]:
    """Keep the first channels: `widths` maps a tensor name to (rows) or name@1 to columns."""
    out = dict(tensors)
    for name, width in widths.items():
        plain, _, axis = name.partition("@")
        out[plain] = out[plain].narrow(int(axis or 0), 0, width).clone()
    return out


def test_narrower_tensors_give_a_narrower_network() -> None:
    full = definition.build("mnist", (1, 8, 8), 10, {"batch_norm": True})
    widths = {f"conv1.{k}": 5 for k in ("0.weight", "1.weight", "1.bias", "1.running_mean", "1.running_var")}
    tensors = narrow(full.state_dict(), widths | {"conv2.0.weight@1": 5})
    small = rebuild(definition.build("mnist", (1, 8, 8), 10, {"batch_norm": True}), tensors)
    assert small.conv1[0].out_channels == 5
    assert small.conv1[1].num_features == 5
    assert small.conv2[0].in_channels == 5
    assert small(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    assert not small.training


def test_values_are_the_given_ones() -> None:
    net = definition.build("lenet", (3, 32, 32), 10, {})
    tensors = {k: torch.randn_like(v) for k, v in net.state_dict().items()}
    again = rebuild(definition.build("lenet", (3, 32, 32), 10, {}), tensors)
    assert all(torch.equal(v, tensors[k]) for k, v in again.state_dict().items())


def test_depthwise_convolution_keeps_one_group_per_channel() -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 4, 1))

    widths = {"0.weight": 5, "0.bias": 5, "1.weight": 5, "1.bias": 5, "2.weight@1": 5}
    small = rebuild(build(), narrow(build().state_dict(), widths))
    assert small[1].groups == 5
    assert small(torch.zeros(1, 3, 6, 6)).shape == (1, 4, 4, 4)


def test_other_names_are_refused_with_examples() -> None:
    net = definition.build("lenet", (3, 32, 32), 10, {})
    tensors = {f"module.{k}": v for k, v in net.state_dict().items()}
    with pytest.raises(BadInput, match=r"do not belong to this network.*module\.conv1\.bias"):
        rebuild(net, tensors)


def test_other_kernel_is_refused_with_the_layer() -> None:
    five = definition.build("lenet", (3, 32, 32), 10, {"kernels": (5, 5)})
    three = definition.build("lenet", (3, 32, 32), 10, {"kernels": (3, 5)})
    with pytest.raises(BadInput, match="kernel of layer 'conv1' differs"):
        rebuild(three, five.state_dict())


def test_shapes_that_do_not_meet_are_refused() -> None:
    net = definition.build("lenet", (3, 32, 32), 10, {})
    tensors = narrow(net.state_dict(), {"fc1.bias": 7})
    module = rebuild(definition.build("lenet", (3, 32, 32), 10, {}), tensors)
    with pytest.raises(RuntimeError):
        module(torch.zeros(1, 3, 32, 32))
