"""What NNI 3.0 does, held here so that a change of NNI, torch or Python shows. See docs/nni.md.

Each fault below has a guard in pipeline/nni_room.py or pipeline/structure.py; when one of these tests
fails because NNI got better, the guard can go.
"""

import copy
import logging

import nni
import pytest
import torch
from nets import make
from nni.compression.pruning import L1NormPruner
from nni.compression.speedup import ModelSpeedup
from torch import fx, nn

from tersor.pipeline import nni_room

logging.disable(logging.WARNING)
nni.silence_stdout()


def l1_masks(module: nn.Module, layers: list[str], ratio: float) -> dict:
    pruner = L1NormPruner(copy.deepcopy(module), [{"op_names": layers, "sparse_ratio": ratio}])
    return pruner.compress()[1]


def speedup(module: nn.Module, example: torch.Tensor, masks: dict) -> nn.Module:
    return ModelSpeedup(module, example, masks, graph_module=fx.symbolic_trace(module)).speedup_model()


def test_own_tracer_is_broken_but_ours_works() -> None:
    module, example = make(batch_norm=True).module(), torch.rand(2, 1, 8, 8)
    masks = l1_masks(module, ["conv1.0"], 0.5)
    with pytest.raises(Exception):  # noqa: B017  (whatever it is: nni#5768)
        ModelSpeedup(copy.deepcopy(module), example, copy.deepcopy(masks))
    assert speedup(module, example, masks)(example).shape == (2, 10)


def test_replaced_layers_come_back_in_training_mode_and_the_room_forces_eval() -> None:
    module, example = make(batch_norm=True).module().eval(), torch.rand(2, 1, 8, 8)
    rebuilt = speedup(module, example, l1_masks(module, ["conv1.0"], 0.5))
    assert any(child.training for child in rebuilt.modules() if not list(child.children()))


def test_module_is_changed_in_place_and_the_room_copies() -> None:
    net = make(batch_norm=True)
    module, example = net.module(), torch.rand(2, 1, 8, 8)
    speedup(module, example, l1_masks(module, ["conv1.0"], 0.5))
    assert module.conv1[0].out_channels == 16
    module = net.module()
    kept = nni_room.channel_masks(module, example, "l1norm", {"conv1.0": 16})
    before = {k: v.clone() for k, v in kept.items()}
    nni_room.speed_up(module, example, kept)
    assert net.with_module(module).digest() == net.digest()
    assert all(torch.equal(v, before[k]) for k, v in kept.items())


def test_without_groups_a_residual_net_misses_its_ratio_and_the_room_sets_them() -> None:
    module = make("resnet20", (3, 16, 16), shortcut="B").module()
    example = torch.rand(2, 3, 16, 16)
    convs = [n for n, m in module.named_modules() if isinstance(m, nn.Conv2d)]
    widths = {n: nni_room.width_of(module, n) for n in convs}
    bare = speedup(copy.deepcopy(module), example, l1_masks(module, convs, 0.5))
    missed = [n for n in convs if bare.get_submodule(n).out_channels > widths[n] // 2]
    assert len(missed) > 0
    kept = nni_room.channel_masks(module, example, "l1norm", {n: w // 2 for n, w in widths.items()})
    tensors = nni_room.speed_up(module, example, kept)
    assert all(tensors[f"{n}.weight"].shape[0] == w // 2 for n, w in widths.items())


def test_groups_of_a_chain_are_free_and_of_a_residual_net_are_not() -> None:
    assert nni_room.dependency_groups(make().module(), torch.rand(2, 1, 8, 8)) == []
    module = make("resnet20", (3, 16, 16), shortcut="B").module()
    groups = nni_room.dependency_groups(module, torch.rand(2, 3, 16, 16))
    assert {"conv1", "layer1.0.conv2", "layer1.1.conv2", "layer1.2.conv2"} in groups


def test_batch_norm_constant_of_a_removed_channel_is_dropped() -> None:
    module, example = make(batch_norm=True).module(), torch.rand(64, 1, 8, 8)
    masks = l1_masks(module, ["conv1.0"], 0.5)
    masked = copy.deepcopy(module)
    masked.conv1[0].weight.data *= masks["conv1.0"]["weight"]
    rebuilt = speedup(copy.deepcopy(module), example, masks).eval()
    with torch.no_grad():
        assert float((masked(example) - rebuilt(example)).abs().max()) > 1e-2


def test_convolution_that_feeds_the_output_is_not_protected_by_nni() -> None:
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 10, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    example = torch.rand(2, 1, 8, 8)
    rebuilt = speedup(copy.deepcopy(net), example, l1_masks(net, ["0", "2"], 0.5))
    assert rebuilt(example).shape == (2, 5)


@pytest.mark.parametrize("pruner", list(nni_room.PRUNERS))
@pytest.mark.parametrize("count", [0, 1, 6, 16, 31])
def test_exactly_as_many_channels_go_as_asked(pruner: str, count: int) -> None:
    module = make().module()
    kept = nni_room.channel_masks(module, torch.rand(2, 1, 8, 8), pruner, {"conv1.0": count})
    assert int(kept["conv1.0"].sum()) == 32 - count


def test_l1norm_removes_the_smallest_filters() -> None:
    module = make().module()
    kept = nni_room.channel_masks(module, torch.rand(2, 1, 8, 8), "l1norm", {"conv1.0": 10})["conv1.0"]
    norms = module.conv1[0].weight.detach().abs().sum((1, 2, 3))
    assert norms[~kept].max() < norms[kept].min()


def test_fpgm_removes_the_filters_nearest_to_all_others() -> None:
    """FPGM: the smallest sum of distances to the other filters (He et al., arXiv:1811.00250)."""
    module = make().module()
    kept = nni_room.channel_masks(module, torch.rand(2, 1, 8, 8), "fpgm", {"conv1.0": 10})["conv1.0"]
    filters = module.conv1[0].weight.detach().flatten(1)
    distances = torch.cdist(filters, filters).sum(1)
    assert distances[~kept].max() < distances[kept].min()


def test_the_room_is_silent(capfd: pytest.CaptureFixture[str]) -> None:
    module, example = make(batch_norm=True).module(), torch.rand(2, 1, 8, 8)
    capfd.readouterr()
    kept = nni_room.channel_masks(module, example, "fpgm", {"conv1.0": 16, "conv2.0": 32})
    nni_room.speed_up(module, example, kept)
    assert capfd.readouterr() == ("", "")
