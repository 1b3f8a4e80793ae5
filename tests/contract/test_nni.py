"""What NNI 3.0 does, held here so that a change of NNI, torch or Python shows. See docs/nni.md.

Each fault below has a guard in nni_room.py or stage.py of pipeline/structure; when one of these tests
fails because NNI got better, the guard can go.
"""

import copy
import itertools
import logging

import nni
import nni.compression.pruning as pruning
import pytest
import torch
from nets import make
from nni.compression.pruning import L1NormPruner
from nni.compression.speedup import ModelSpeedup
from nni.compression.speedup.dependency import auto_set_denpendency_group_ids
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from tersor.pipeline.recipe.recipe import Structure
from tersor.pipeline.structure import graph, nni_room
from tersor.pipeline.structure.coupling import couple
from tersor.pipeline.structure.widths import choose, removals, spaces_to_prune

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
    kept = {"conv1.0": torch.arange(32) % 2 == 0}
    before = {k: v.clone() for k, v in kept.items()}
    nni_room.speed_up(module, example, kept)
    assert net.with_module(module).digest() == net.digest()
    assert all(torch.equal(v, before[k]) for k, v in kept.items())


def test_without_groups_a_residual_net_misses_its_ratio() -> None:
    module = make("resnet20", (3, 16, 16), shortcut="B").module()
    example = torch.rand(2, 3, 16, 16)
    convs = [n for n, m in module.named_modules() if isinstance(m, nn.Conv2d)]
    widths = {n: graph.width_of(module, n) for n in convs}
    bare = speedup(copy.deepcopy(module), example, l1_masks(module, convs, 0.5))
    missed = [n for n in convs if bare.get_submodule(n).out_channels > widths[n] // 2]
    assert len(missed) > 0


@pytest.mark.parametrize("pruner", ["L1NormPruner", "L2NormPruner", "FPGMPruner"])
@pytest.mark.parametrize("ratio", [0.2, 0.5])
def test_our_choice_is_nnis_own_where_it_sets_dependency_groups(pruner: str, ratio: float) -> None:
    """Channels are chosen by tersor from NNI's scores; with NNI's groups NNI masks the same ones."""
    net = make("resnet20", (3, 16, 16), shortcut="B")
    module, example = net.module(), torch.rand(2, 3, 16, 16)
    name = {v: k for k, v in nni_room.PRUNERS.items()}[pruner]
    settings = Structure(stage="structure", pruner=name, sparsity=ratio)  # type: ignore[arg-type]
    coupling = couple(module, example)
    spaces = spaces_to_prune(module, coupling, settings)
    layers = [layer for space in spaces for layer in space.layers]
    scores = nni_room.scores(module, name, layers)
    removed = choose(spaces, removals(spaces, scores, coupling, settings), scores, coupling)
    traced = graph.trace(copy.deepcopy(module))
    ShapeProp(traced).propagate(example)
    config = [{"op_names": layers, "sparse_ratio": ratio + 1e-4}]
    chooser = getattr(pruning, pruner)(copy.deepcopy(module), auto_set_denpendency_group_ids(traced, config))
    masks = chooser.compress()[1]
    for layer in layers:
        kept = masks[layer]["weight"].flatten(1).ne(0).any(1).numpy()
        assert (kept == coupling.keep(layer, removed)).all(), layer


def test_taylor_is_the_sum_of_squared_gradient_times_weight_and_leaves_the_network() -> None:
    module = make().module()
    images, labels = torch.rand(8, 1, 8, 8), torch.arange(8)
    got = nni_room.scores(module, "taylor", ["conv1.0"], [(images, labels)])["conv1.0"]
    twin = copy.deepcopy(module)
    nn.functional.cross_entropy(twin(images), labels).backward()
    weight = twin.conv1[0].weight
    wanted = (weight.detach() * weight.grad).pow(2).flatten(1).sum(1).numpy()
    assert got == pytest.approx(wanted, rel=1e-5)
    assert all(
        torch.equal(a, b) for a, b in zip(module.parameters(), make().module().parameters(), strict=True)
    )


@pytest.mark.parametrize("schedule", list(nni_room.SCHEDULES))
def test_growing_masks_end_at_what_was_asked_and_train(schedule: str) -> None:
    module = make(batch_norm=True).module()
    stream = itertools.cycle([(torch.rand(16, 1, 8, 8), torch.arange(16) % 10)])
    trained, kept = nni_room.trained_masks(
        module, "l1norm", {"conv1.0": (12, "a"), "conv2.0": (40, "b")}, lambda: stream, schedule, 4, 12, 0.01
    )
    assert {k: int(v.sum()) for k, v in kept.items()} == {"conv1.0": 20, "conv2.0": 24}
    assert not torch.equal(trained.fc1.weight, module.fc1.weight)
    assert not trained.training


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


def test_l1norm_scores_are_the_filters_norms() -> None:
    module = make().module()
    wanted = module.conv1[0].weight.detach().abs().sum((1, 2, 3)).numpy()
    assert nni_room.scores(module, "l1norm", ["conv1.0"])["conv1.0"] == pytest.approx(wanted, rel=1e-5)


def test_fpgm_scores_are_the_distances_to_all_other_filters() -> None:
    """FPGM: the sum of distances to the other filters (He et al., arXiv:1811.00250)."""
    module = make().module()
    filters = module.conv1[0].weight.detach().flatten(1)
    wanted = torch.cdist(filters, filters).sum(1).numpy()
    assert nni_room.scores(module, "fpgm", ["conv1.0"])["conv1.0"] == pytest.approx(wanted, rel=1e-4)


def test_the_room_is_silent(capfd: pytest.CaptureFixture[str]) -> None:
    module, example = make(batch_norm=True).module(), torch.rand(2, 1, 8, 8)
    capfd.readouterr()
    nni_room.scores(module, "fpgm", ["conv1.0", "conv2.0"])
    nni_room.scores(module, "taylor", ["conv1.0"], [(torch.rand(4, 1, 8, 8), torch.arange(4))])
    nni_room.speed_up(module, example, {"conv1.0": torch.arange(32) < 16})
    assert capfd.readouterr() == ("", "")
