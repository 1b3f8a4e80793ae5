"""What compression put into the weights survives fine-tuning, and nothing else is held."""

import pytest
import torch
from nets import make
from torch import nn
from torch.nn.utils import parametrize

from tersor.models.network import Form, Network, check_form
from tersor.pipeline.training.constraints import KeepShared, bake, constrain
from tersor.pipeline.weights.linear import round_to_grid


def trained(net: Network) -> Network:
    """A few noisy steps under the constraints."""
    torch.manual_seed(1)
    module = net.module().train()
    constrain(module, net)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
    for _ in range(5):
        loss = module(torch.randn(8, *net.input_shape)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    bake(module)
    return net.with_module(module)


def with_weight(net: Network, name: str, weight: torch.Tensor, form: Form) -> Network:
    return net.with_tensors({**net.tensors, name: weight}, {name: form})


def test_pruned_zeros_stay_and_the_rest_trains() -> None:
    net = make(batch_norm=True)
    weight = net.tensors["fc1.weight"].clone()
    weight[:, ::2] = 0
    after = trained(with_weight(net, "fc1.weight", weight, Form(pruned=True))).tensors["fc1.weight"]
    assert not after[:, ::2].any()
    assert (after[:, 1::2] != weight[:, 1::2]).any()


def test_zeros_of_a_dense_tensor_are_free() -> None:
    net = make()
    after = trained(with_weight(net, "fc2.weight", torch.zeros(10, 128), Form())).tensors["fc2.weight"]
    assert after.any()


def test_biases_and_batch_norm_are_never_held() -> None:
    net = make(batch_norm=True)
    forms = {name: Form(pruned=True) for name in net.tensors}
    assert set(constrain(net.module(), net.with_tensors(net.tensors, forms))) == {
        "conv1.0.weight",
        "conv2.0.weight",
        "fc1.weight",
        "fc2.weight",
    }


def test_shared_values_stay_shared_and_zero_stays_zero() -> None:
    net = make()
    values = torch.tensor([0.0, -0.2, 0.1, 0.3])
    index = torch.randint(0, 4, (10, 128), generator=torch.Generator().manual_seed(0))
    form = Form("shared", pruned=True, bits=2)
    after = trained(with_weight(net, "fc2.weight", values[index], form)).tensors["fc2.weight"]
    check_form("fc2.weight", after, form)
    assert torch.equal(after == 0, index == 0)
    for k in (1, 2, 3):
        assert after[index == k].unique().numel() == 1
    assert (after != values[index]).any()


def test_zero_is_a_value_like_others_when_not_pruned() -> None:
    weight = torch.tensor([0.0, 0.0, 1.0])
    keeper = KeepShared(weight, pruned=False)
    codebook = torch.tensor([5.0, 7.0])
    assert keeper(codebook).tolist() == [5.0, 5.0, 7.0]


def test_gradient_of_a_centroid_is_the_sum_over_its_members() -> None:
    layer = nn.Linear(3, 1, bias=False)
    layer.weight.data = torch.tensor([[1.0, 1.0, 2.0]])
    parametrize.register_parametrization(layer, "weight", KeepShared(layer.weight, pruned=False))
    layer(torch.tensor([[10.0, 100.0, 1000.0]])).sum().backward()
    assert layer.parametrizations.weight.original.grad.tolist() == [110.0, 1000.0]


@pytest.mark.parametrize("axis", [None, 0])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_linear_values_stay_exactly_on_the_grid(bits: int, axis: int | None) -> None:
    net = make()
    rounded, scale = round_to_grid(net.tensors["fc1.weight"], bits, axis=axis)
    form = Form("linear", bits=bits, axis=axis, scale=tuple(scale.flatten().tolist()))
    after = trained(with_weight(net, "fc1.weight", rounded, form)).tensors["fc1.weight"]
    check_form("fc1.weight", after, form)
    rows = [after] if axis is None else list(after)
    assert max(row.unique().numel() for row in rows) <= 2**bits
    assert (after != rounded).any()


def test_baking_leaves_plain_parameters() -> None:
    net = make()
    held = net.with_tensors(net.tensors, {"fc1.weight": Form(pruned=True)})
    module = held.module()
    constrain(module, held)
    assert parametrize.is_parametrized(module.fc1)
    bake(module)
    assert not parametrize.is_parametrized(module.fc1)
    assert isinstance(module.fc1.weight, nn.Parameter)
    assert list(module.state_dict()) != []
    assert net.with_module(module).digest() == net.digest()
