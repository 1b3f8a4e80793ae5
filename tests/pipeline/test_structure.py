"""Structural pruning: rebuilt equals masked, widths are what was asked, wrong rebuilds are caught."""

import numpy as np
import pytest
import torch
from nets import make
from torch import nn

from tersor.models.errors import BadInput, TersorError
from tersor.models.network import Network
from tersor.pipeline import nni_room, structure
from tersor.pipeline.channels import frozen_layers
from tersor.pipeline.recipe import Structure
from tersor.pipeline.structure import kept_width, masked, prove, prune_channels

RNG = np.random.default_rng(0)


def pruned(net: Network, **settings: object) -> tuple[Network, dict[str, object]]:
    images = RNG.standard_normal((70, *net.input_shape)).astype(np.float32)
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
    [(32, 0.2, None, 26), (64, 0.7, None, 20), (10, 0.99, None, 1), (64, 0.2, 16, 48), (64, 0.9, 16, 16),
     (8, 0.5, 16, 4), (64, 0.0, 16, 64), (6, 0.3, None, 5)],
)  # fmt: skip
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
    kept = nni_room.channel_masks(module, example, "l1norm", {"conv1.0": 16})
    wrong = {"conv1.0": ~kept["conv1.0"]}
    rebuilt = net.with_tensors(nni_room.speed_up(module, example, wrong)).module()
    with pytest.raises(TersorError, match="does not compute what the masked one does"):
        prove(module, rebuilt, kept, torch.randn(4, 1, 8, 8))


def test_proof_catches_a_dropped_batch_norm_constant() -> None:
    """What NNI's own masked model computes is another function: the proof tells the two apart."""
    net = make(batch_norm=True)
    module, example = net.module(), torch.zeros(2, 1, 8, 8)
    kept = nni_room.channel_masks(module, example, "l1norm", {"conv1.0": 16})
    conv_only = masked(module, kept, batch_norm=False)
    with pytest.raises(TersorError, match="does not compute"):
        prove(module, conv_only, kept, torch.randn(4, 1, 8, 8))


def test_unasked_removal_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    real = nni_room.speed_up

    def greedy(module: nn.Module, example: torch.Tensor, kept: dict[str, torch.Tensor]) -> dict:
        fewer = {k: v.clone() for k, v in kept.items()}
        fewer["conv1.0"][fewer["conv1.0"].nonzero()[0]] = False
        return real(module, example, fewer)

    monkeypatch.setattr(structure.nni_room, "speed_up", greedy)
    with pytest.raises(TersorError, match="NNI removed other channels of layer 'conv1.0' than asked"):
        pruned(make(), sparsity=0.5)


class _Looks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """A forward pass that looks at a value."""
        return self.conv(x) if x.sum() > 0 else self.conv(-x)


def test_forward_with_an_if_is_told() -> None:
    with pytest.raises(BadInput, match=r"cannot be traced.*_Looks\.forward.*Move the condition"):
        nni_room.trace(_Looks())


def test_option_a_keeps_its_residual_stream_and_narrows_the_blocks() -> None:
    net, details = pruned(make("resnet20", (3, 16, 16), shortcut="A"), sparsity=0.5)
    assert details["masked_max_abs_diff"] <= 1e-5
    inner = [f"layer{g}.{b}.conv1" for g in (1, 2, 3) for b in range(3)]
    assert list(details["widths"]) == inner  # type: ignore[call-overload]
    assert net.tensors["layer3.0.conv1.weight"].shape[0] == 32


def test_convolution_that_feeds_the_output_is_frozen() -> None:
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    assert frozen_layers(net, torch.zeros(2, 1, 8, 8)) == {"2"}


def test_stream_into_a_zero_padding_shortcut_is_frozen() -> None:
    net = make("resnet20", (3, 16, 16), shortcut="A").module()
    frozen = frozen_layers(net, torch.zeros(2, 3, 16, 16))
    assert {"conv1", "layer1.0.conv2", "layer2.2.conv2", "layer3.0.conv2", "fc"} <= frozen
    assert not [name for name in frozen if name.endswith(".conv1")]
