"""Weights that are computed from others: folded when asked, else told with the layer and the remedy."""

from pathlib import Path

import pytest
import torch

from tersor.errors import BadInput
from tersor.models import network as networks
from tersor.models.computed_weights import check_no_hooks, check_plain
from tersor.models.network import Network
from tersor.models.preprocessing import Preprocessing
from tersor.pipeline.accuracy.evaluate import Images
from tersor.pipeline.recipe.recipe import Structure
from tersor.pipeline.structure.stage import prune_channels

TEXT = """
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = {layer}
        self.b, self.fc = nn.Conv2d(16, 16, 3, padding=1), nn.Linear(16, 3)

    def forward(self, x):
        return self.fc(torch.relu(self.b(torch.relu(self.a(x)))).mean((2, 3)))

def net():
    return Net()
"""
CONV = "nn.Conv2d(1, 16, 3, padding=1)"


def brought(folder: Path, layer: str) -> Network:
    path = folder / "net.py"
    path.write_text(TEXT.format(layer=layer))
    torch.manual_seed(0)
    return networks.create(f"{path}:net", {}, (1, 8, 8), ("a", "b", "c"), Preprocessing(1.0, (0.0,), (1.0,)))


@pytest.mark.parametrize(
    ("layer", "remedy"),
    [
        (f"spectral_norm({CONV})", "remove_spectral_norm"),
        (f"prune.l1_unstructured({CONV}, 'weight', 0.5)", "prune.remove"),
    ],
)
def test_weights_that_a_hook_computes_are_refused_with_the_remedy(
    tmp_path: Path, layer: str, remedy: str
) -> None:
    with pytest.raises(BadInput, match=f"layer 'a' computes its weight anew.*{remedy}"):
        check_no_hooks(brought(tmp_path, layer))


@pytest.mark.parametrize("norm", ["weight_norm", "spectral_norm"])
def test_parametrized_weights_are_refused_by_stages_that_change_weights(tmp_path: Path, norm: str) -> None:
    net = brought(tmp_path, f"parametrizations.{norm}({CONV})")
    check_no_hooks(net)
    with pytest.raises(BadInput, match="layer 'a' computes its weight from other.*stage `sharing`"):
        check_plain(net, "sharing")


@pytest.mark.parametrize("norm", ["weight_norm", "spectral_norm"])
def test_folded_they_are_plain_tensors_of_a_pruned_graph(tmp_path: Path, norm: str) -> None:
    net = brought(tmp_path, f"parametrizations.{norm}({CONV})")
    images = Images(torch.randn(8, 1, 8, 8), torch.zeros(8, dtype=torch.int64))
    settings = Structure(stage="structure", sparsity=0.5, pruner="l1norm", fold_parametrizations=True)
    small, details = prune_channels(net, settings, images, lambda *_: None)
    assert small.tensors["a.weight"].shape == (8, 1, 3, 3)
    assert not [name for name in small.tensors if "parametrizations" in name]
    assert details["masked_max_rel_diff"] <= 1e-12
    check_plain(small, "sharing")
