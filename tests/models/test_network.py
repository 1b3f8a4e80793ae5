"""Network: saved, loaded and compared by value; what its header says is held against its values."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor.errors import BadInput
from tersor.models import network
from tersor.models.network import Form, check_form
from tersor.models.preprocessing import Preprocessing


@pytest.fixture
def net() -> network.Network:
    torch.manual_seed(0)
    pre = Preprocessing(16.0, (0.3,), (0.4,))
    return network.create("mnist", {"batch_norm": True}, (1, 8, 8), tuple("0123456789"), pre)


def test_saved_network_comes_back_equal(net: network.Network, tmp_path: Path) -> None:
    zero = {**net.tensors, "fc1.weight": torch.zeros_like(net.tensors["fc1.weight"])}
    net = net.with_tensors(zero, {"fc1.weight": Form("shared", pruned=True, bits=2)})
    net.save(tmp_path / "n.safetensors")
    back = network.load(tmp_path / "n.safetensors")
    assert back.digest() == net.digest()
    assert back.forms == net.forms
    assert back.preprocessing == net.preprocessing
    assert [p.name for p in tmp_path.iterdir()] == ["n.safetensors"]


@pytest.mark.parametrize("change", ["tensor", "classes", "forms", "preprocessing"])
def test_digest_changes_with_every_part(net: network.Network, change: str) -> None:
    bias = net.tensors["fc2.bias"].clone()
    bias[0] += 1e-6
    changed = {
        "tensor": net.with_tensors({**net.tensors, "fc2.bias": bias}),
        "classes": replace(net, classes=("a", *net.classes[1:])),
        "forms": net.with_tensors(net.tensors, {"fc1.weight": Form(pruned=True)}),
        "preprocessing": replace(net, preprocessing=Preprocessing(255.0)),
    }[change]
    assert changed.digest() != net.digest()


def test_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"network file is missing.*nowhere\.safetensors"):
        network.load(tmp_path / "nowhere.safetensors")


def test_damaged_file_is_refused(net: network.Network, tmp_path: Path) -> None:
    path = tmp_path / "n.safetensors"
    net.save(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(BadInput, match="not a network that tersor saved, or it is damaged"):
        network.load(path)


def test_foreign_safetensors_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"w": torch.zeros(2)}, tmp_path / "w.safetensors")
    with pytest.raises(BadInput, match="use a `load` stage"):
        network.load(tmp_path / "w.safetensors")


def test_shared_form_with_too_many_values_is_refused() -> None:
    with pytest.raises(BadInput, match="Got 5 distinct values"):
        check_form("w", torch.arange(5.0), Form("shared", bits=2))


def test_zeros_of_a_pruned_shared_tensor_do_not_count() -> None:
    check_form("w", torch.tensor([0.0, 0.0, 1, 2, 3, 4]), Form("shared", pruned=True, bits=2))


@given(st.integers(1, 16), st.floats(1e-4, 10), st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_linear_form_accepts_its_own_grid_and_refuses_half_steps(bits: int, scale: float, seed: int) -> None:
    steps = torch.randint(-(2**bits), 2**bits, (64,), generator=torch.Generator().manual_seed(seed))
    form = Form("linear", bits=bits, scale=(scale,))
    grid = steps.float() * torch.tensor(scale)
    check_form("w", grid, form)
    with pytest.raises(BadInput, match="steps off the grid"):
        check_form("w", grid + scale / 2, form)


def test_with_module_copies(net: network.Network) -> None:
    module = net.module()
    copy = net.with_module(module)
    with torch.no_grad():
        module.fc2.bias.add_(1.0)
    assert copy.digest() == net.digest()


def test_a_network_cannot_be_changed_in_place(net: network.Network) -> None:
    before = net.digest()
    with pytest.raises(RuntimeError, match="[Ii]nplace update to inference tensor"):
        net.tensors["fc2.bias"].zero_()
    with pytest.raises(TypeError, match="does not support item assignment"):
        net.tensors["fc2.bias"] = torch.zeros(10)  # type: ignore[index]
    with pytest.raises(TypeError, match="does not support item assignment"):
        net.arguments["batch_norm"] = False  # type: ignore[index]
    assert net.digest() == before


def test_what_a_network_is_made_from_may_change_later(net: network.Network) -> None:
    module = net.module()
    copied = net.with_module(module)
    with torch.no_grad():
        module.fc2.bias.zero_()
    assert copied == net


def test_networks_compare_and_hash_by_digest(net: network.Network) -> None:
    same = net.with_tensors({name: tensor.clone() for name, tensor in net.tensors.items()})
    other = net.with_tensors({**net.tensors, "fc2.bias": net.tensors["fc2.bias"] + 1})
    assert (net == same, net == other, net == "net") == (True, False, False)
    assert len({net, same, other}) == 2


def test_a_network_trains_though_its_tensors_are_fixed(net: network.Network) -> None:
    module = net.module().train()
    module(torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))).sum().backward()
    assert module.fc2.weight.grad is not None


def test_a_live_module_serves_here_and_is_not_saved(net: network.Network, tmp_path: Path) -> None:
    live = network.Network.of_module(net.module(), net.input_shape, net.classes, net.preprocessing)
    images = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(live.module()(images), net.module()(images))
    with pytest.raises(BadInput, match="live module cannot be saved.*factory"):
        live.save(tmp_path / "n.safetensors")
    assert list(tmp_path.iterdir()) == []
