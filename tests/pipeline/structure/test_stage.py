"""Structural pruning: rebuilt equals masked, widths are what was asked, wrong rebuilds are caught."""

from pathlib import Path

import numpy as np
import pytest
import torch
from nets import make
from torch import nn

from tersor.errors import BadInput, TersorError
from tersor.models.network import Network
from tersor.models.program import build
from tersor.pipeline.accuracy.evaluate import Images
from tersor.pipeline.recipe.recipe import Structure
from tersor.pipeline.structure import graph, narrowing, nni_room
from tersor.pipeline.structure import stage as structure
from tersor.pipeline.structure.coupling import couple
from tersor.pipeline.structure.narrowing import narrowed
from tersor.pipeline.structure.proof import prove, rows_masked, tensors_of
from tersor.pipeline.structure.stage import prune_channels
from tersor.pipeline.structure.widths import kept_width, spaces_to_prune


def pruned(net: Network, **settings: object) -> tuple[Network, dict[str, object]]:
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((70, *net.input_shape)).astype(np.float32)
    images = Images(torch.from_numpy(inputs), torch.from_numpy(rng.integers(0, len(net.classes), 70)))
    chosen = Structure(stage="structure", **settings)  # type: ignore[arg-type]
    return prune_channels(net, chosen, images, lambda *_: None)


@pytest.mark.parametrize("pruner", ["fpgm", "l1norm", "l2norm"])
@pytest.mark.parametrize(
    ("name", "shape", "arguments"),
    [
        ("mnist", (1, 8, 8), {"batch_norm": True}),
        ("mnist", (1, 8, 8), {"batch_norm": False}),
        ("lenet", (3, 32, 32), {}),
        ("resnet20", (3, 16, 16), {"shortcut": "B"}),
    ],
)
def test_rebuilt_equals_masked(name: str, shape: tuple[int, int, int], arguments: dict, pruner: str) -> None:
    _, details = pruned(make(name, shape, **arguments), pruner=pruner, sparsity=0.4)
    assert details["masked_max_abs_diff"] <= 1e-5
    assert details["achieved_sparsity_fraction"] == pytest.approx(0.4, abs=0.05)


def test_dropped_batch_norm_constant_is_reported() -> None:
    _, with_norm = pruned(make(batch_norm=True), sparsity=0.5)
    _, without = pruned(make(batch_norm=False), sparsity=0.5)
    assert with_norm["conv_mask_max_abs_diff"] > 1e-3
    assert without["conv_mask_max_abs_diff"] <= 1e-9


def test_layers_that_lost_less_than_asked_are_named_and_rounding_is_not() -> None:
    _, details = pruned(make("resnet20", (3, 16, 16), shortcut="A"), pruner="l1norm", sparsity=0.5)
    assert details["not_pruned"]["layer2.0.conv2"].startswith(
        "lost 8 of 32: the channels that operator 'pad'"
    )
    assert details["macs"][1] < details["macs"][0]  # type: ignore[index]
    _, details = pruned(make(batch_norm=True), pruner="l1norm", sparsity=0.3)
    assert details["not_pruned"] == {}


def test_widths_are_in_the_tensors_and_the_report() -> None:
    net, details = pruned(make(batch_norm=True), sparsity=0.2)
    assert net.tensors["conv1.0.weight"].shape == (26, 1, 3, 3)
    assert net.tensors["conv2.0.weight"].shape == (52, 26, 3, 3)
    assert net.tensors["fc1.weight"].shape == (128, 52 * 4)
    assert details["widths"] == {"conv1.0": [32, 26], "conv2.0": [64, 52]}
    assert details["asked_sparsity_fraction"] == 0.2


def test_aligned_widths_are_multiples_of_the_block() -> None:
    net, _ = pruned(make(batch_norm=True), sparsity=0.4, align=16)
    assert net.tensors["conv1.0.weight"].shape[0] == 16
    assert net.tensors["conv2.0.weight"].shape[0] == 32


@pytest.mark.parametrize(
    ("width", "sparsity", "align", "kept"),
    [
        (32, 0.2, None, 26),
        (64, 0.7, None, 20),
        (10, 0.99, None, 1),
        (64, 0.2, 16, 48),
        (64, 0.9, 16, 16),
        (8, 0.5, 16, 4),
        (64, 0.0, 16, 64),
        (6, 0.3, None, 5),
    ],
)
def test_kept_width(width: int, sparsity: float, align: int | None, kept: int) -> None:
    assert kept_width(width, sparsity, align) == kept


def test_residual_sums_keep_one_width() -> None:
    net, details = pruned(make("resnet20", (3, 16, 16), shortcut="B"), sparsity=0.3)
    stream = {details["widths"][n][1] for n in ("conv1", "layer1.0.conv2", "layer1.2.conv2")}  # type: ignore[index]
    assert len(stream) == 1
    assert net.module()(torch.zeros(1, 3, 16, 16)).shape == (1, 10)


def test_linear_neurons_can_go_but_never_the_outputs() -> None:
    net, _ = pruned(make(batch_norm=True), sparsity=0.5, linear=True)
    assert net.tensors["fc1.weight"].shape == (64, 32 * 4)
    assert net.tensors["fc2.weight"].shape == (10, 64)


def test_excluded_layers_keep_their_width() -> None:
    net, details = pruned(make(), sparsity=0.5, exclude=["conv1*"])
    assert net.tensors["conv1.0.weight"].shape[0] == 32
    assert list(details["widths"]) == ["conv2.0"]  # type: ignore[call-overload]


def test_wrong_pattern_is_told_with_a_suggestion() -> None:
    with pytest.raises(BadInput, match=r"no layer matches 'conv3.0'.*Did you mean conv"):
        pruned(make(), exclude=["conv3.0"])


def test_nothing_to_prune_is_told() -> None:
    with pytest.raises(BadInput, match="no layer whose channels could be pruned"):
        pruned(make(), exclude=["*"])


def test_proof_catches_a_rebuild_that_kept_other_channels() -> None:
    net = make(batch_norm=True)
    module, example = net.module(), torch.zeros(2, 1, 8, 8)
    coupling = couple(module, example)
    sets = coupling.free("conv1.0")
    rebuilt = net.with_tensors(narrowed(module, coupling, sets[:16])).module()
    with pytest.raises(TersorError, match="does not compute what the masked one does"):
        prove(module, rebuilt, coupling, sets[16:], torch.randn(4, 1, 8, 8))


def test_proof_catches_inputs_of_the_next_layer_in_the_wrong_order() -> None:
    """Report R3's bug: neurons go, but the next layer loses other columns."""
    net = make(batch_norm=True)
    module, example = net.module(), torch.zeros(2, 1, 8, 8)
    coupling = couple(module, example)
    removed = coupling.free("conv2.0")[:8]
    tensors = narrowed(module, coupling, removed)
    tensors["fc1.weight"] = module.fc1.weight.detach()[:, : tensors["fc1.weight"].shape[1]].flip(1)
    with pytest.raises(TersorError, match="does not compute"):
        prove(module, net.with_tensors(tensors).module(), coupling, removed, torch.randn(4, 1, 8, 8))


def test_proof_catches_a_dropped_batch_norm_constant() -> None:
    """What NNI's own masked model computes is another function: the proof tells the two apart."""
    module, example = make(batch_norm=True).module(), torch.zeros(2, 1, 8, 8)
    coupling = couple(module, example)
    removed = coupling.free("conv1.0")[:16]
    conv_only = build(coupling.captured.program, rows_masked(coupling, tensors_of(module, coupling), removed))
    with pytest.raises(TersorError, match="does not compute"):
        prove(module, conv_only, coupling, removed, torch.randn(4, 1, 8, 8))


def greedy_speed_up(module: nn.Module, example: torch.Tensor, kept: dict[str, torch.Tensor]) -> dict:
    fewer = {k: v.clone() for k, v in kept.items()}
    fewer["conv1.0"][fewer["conv1.0"].nonzero()[0]] = False
    return REAL_SPEED_UP(module, example, fewer)


REAL_SPEED_UP = nni_room.speed_up


def test_unasked_removal_by_nni_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(structure.nni_room, "speed_up", greedy_speed_up)
    with pytest.raises(TersorError, match="NNI removed other channels of layer 'conv1.0' than asked"):
        pruned(make(), sparsity=0.5, rebuild="nni")


def test_where_nni_is_wrong_our_own_rebuild_takes_over_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(structure.nni_room, "speed_up", greedy_speed_up)
    net, details = pruned(make(), sparsity=0.5)
    assert details["rebuilt_by"] == "tersor"
    assert "NNI removed other channels" in str(details["not_by_nni"])
    assert net.tensors["conv1.0.weight"].shape[0] == 16


def test_nni_and_our_own_rebuild_give_the_same_tensors() -> None:
    net = make("resnet20", (3, 16, 16), shortcut="B")
    by_nni, told = pruned(net, sparsity=0.4, rebuild="nni", reestimate_batch_norm=False)
    by_us, _ = pruned(net, sparsity=0.4, rebuild="own", reestimate_batch_norm=False)
    assert told["rebuilt_by"] == "nni"
    assert all(torch.equal(tensor, by_us.tensors[name]) for name, tensor in by_nni.tensors.items())


class _Looks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """A forward pass that looks at a value."""
        return self.conv(x) if x.sum() > 0 else self.conv(-x)


def test_forward_with_an_if_is_told() -> None:
    with pytest.raises(BadInput, match=r"cannot be traced.*_Looks\.forward.*Move the condition"):
        graph.trace(_Looks())


def test_option_a_is_narrowed_stream_and_blocks() -> None:
    net, details = pruned(make("resnet20", (3, 16, 16), shortcut="A"), sparsity=0.5)
    assert details["masked_max_abs_diff"] <= 1e-5
    assert net.tensors["layer3.0.conv1.weight"].shape[0] == 32
    # half of the first 16 channels go everywhere; the zeros that shortcuts add stay
    assert net.tensors["conv1.weight"].shape[0] == 8
    assert net.tensors["layer3.2.conv2.weight"].shape[0] == 64 - 8
    assert net.module()(torch.zeros(1, 3, 16, 16)).shape == (1, 10)


def test_layers_have_their_own_sparsity() -> None:
    _, details = pruned(make(), sparsity=0.5, per_layer={"conv1*": 0.25})
    assert details["widths"] == {"conv1.0": [32, 24], "conv2.0": [64, 32]}


def test_two_sparsities_for_layers_that_go_together_are_refused() -> None:
    net = make("resnet20", (3, 16, 16), shortcut="B")
    with pytest.raises(BadInput, match="layers whose channels go together were given different sparsities"):
        pruned(net, per_layer={"conv1": 0.25, "layer1.0.conv2": 0.5})


def test_sparsity_of_an_unknown_layer_is_refused_with_a_suggestion() -> None:
    with pytest.raises(BadInput, match=r"no layer matches 'conv9.0'"):
        pruned(make(), per_layer={"conv9.0": 0.25})


def test_global_scope_takes_more_where_channels_are_less_important() -> None:
    net = make()
    tensors = dict(net.tensors)
    tensors["conv2.0.weight"] = tensors["conv2.0.weight"].clone()
    tensors["conv2.0.weight"][:40] *= 1e-3
    _, details = pruned(net.with_tensors(tensors), sparsity=0.4, scope="global", pruner="l1norm")
    assert details["widths"] == {"conv1.0": [32, 32], "conv2.0": [64, 64 - int(0.4 * 96)]}
    assert details["achieved_sparsity_fraction"] == pytest.approx(0.4, abs=0.02)


def test_taylor_keeps_the_channels_that_the_loss_feels() -> None:
    net = make(batch_norm=False)
    tensors = dict(net.tensors)
    tensors["fc1.weight"] = tensors["fc1.weight"].clone()
    tensors["fc1.weight"][:, : 16 * 4] = 0  # nothing reads the first 16 channels of conv2
    _, details = pruned(
        net.with_tensors(tensors), sparsity=0.25, pruner="taylor", layers=["conv2*"], taylor_batches=2
    )
    assert details["conv_mask_max_abs_diff"] <= 1e-9


@pytest.mark.parametrize("kind", ["agp", "linear"])
def test_schedule_trains_with_growing_masks_and_is_proven(kind: str) -> None:
    net = make(batch_norm=True)
    schedule = {"kind": kind, "rounds": 3, "epochs": 3, "batch_size": 16}
    small, details = pruned(net, sparsity=0.5, pruner="l1norm", schedule=schedule)
    assert details["widths"] == {"conv1.0": [32, 16], "conv2.0": [64, 32]}
    assert details["masked_max_abs_diff"] <= 1e-5
    assert not torch.equal(small.tensors["fc2.weight"], net.tensors["fc2.weight"])


def test_schedule_needs_equal_widths_in_a_space() -> None:
    with pytest.raises(BadInput, match="cannot be masked while training: layers that go together differ"):
        pruned(make("resnet20", (3, 16, 16), shortcut="A"), schedule={"epochs": 0.1})


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "regnet_y_400mf", "googlenet"])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_torchvision_networks_are_narrowed_and_proven(name: str, scope: str) -> None:
    net, details = pruned(
        make(name, (3, 32, 32)),
        sparsity=0.3,
        scope=scope,
        pruner="l2norm",
        rebuild="own",
        reestimate_batch_norm=False,
    )
    assert details["masked_max_abs_diff"] <= 1e-5
    assert details["achieved_sparsity_fraction"] == pytest.approx(0.3, abs=0.1)
    assert net.module()(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


def test_schedule_refuses_groups_that_go_whole() -> None:
    net = make("resnext50_32x4d", (3, 32, 32))
    with pytest.raises(BadInput, match=r"where a convolution's groups go whole. Got 4 channels a group"):
        pruned(net, pruner="l1norm", schedule={"epochs": 0.1}, rebuild="own")


def test_the_rehearsal_sees_a_mistake_behind_a_factor_of_zero(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    net = make(batch_norm=True)
    net = net.with_tensors({k: v * (0.0 if k.startswith("conv2.") else 1.0) for k, v in net.tensors.items()})
    real = narrowing.cut_tensor

    def wrong(tensor: torch.Tensor, *args: object) -> torch.Tensor:
        """Channels of the second convolution are mistaken for others."""
        cut = real(tensor, *args)  # type: ignore[arg-type]
        return cut.roll(1, 0) if tensor.shape == (64, 32, 3, 3) else cut

    monkeypatch.setattr(narrowing, "cut_tensor", wrong)
    settings = Structure(stage="structure", sparsity=0.5, rebuild="own")
    with pytest.raises(TersorError, match="does not compute what the masked one does"):
        structure.try_structure(net, settings, tmp_path)


class UsesAWeightByHand(nn.Module):
    """A linear layer that is never called: its weight is (as in Swin's attention)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.hidden, self.out = nn.Conv2d(1, 8, 3), nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images to logits."""
        x = torch.relu(self.conv(x)).mean((2, 3))
        return self.out(torch.relu(nn.functional.linear(x, self.hidden.weight, self.hidden.bias)))


def test_taylor_scores_a_layer_whose_weight_is_used_without_calling_it() -> None:
    module = UsesAWeightByHand().eval()
    images = Images(torch.randn(64, 1, 8, 8), torch.randint(0, 3, (64,)))
    coupling = couple(module, images.inputs[:2])
    settings = Structure(stage="structure", pruner="taylor", linear=True, taylor_batches=1)
    spaces = spaces_to_prune(module, coupling, settings)
    scores = structure.channel_scores(module, coupling, spaces, settings, images, 0)
    assert sorted(scores) == ["conv", "hidden"]
    assert (scores["hidden"] >= 0).all()
    assert scores["hidden"].max() > 0
