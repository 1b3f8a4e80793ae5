"""Networks that do not give the same for the same image are told so, with the cause and the place."""

from pathlib import Path

import pytest
import torch

from tersor.errors import BadInput
from tersor.models import network as networks
from tersor.models.network import Network
from tersor.models.preprocessing import Preprocessing
from tersor.models.repeatable import check_repeatable

HEAD = """
import torch
from torch import nn
from torch.nn import functional as F

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3)
        self.norm, self.fc = {norm}, nn.Linear(8, 3)
        {build}

    def forward(self, x):
        x = self.norm(self.first(x))
        {middle}
        return self.fc(self.second(x).mean((2, 3)))

def net():
    return Net()
"""


GATE = """
class Gate(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.rand(1, 8, 1, 1))

    def forward(self):
        return self.scale

"""


def brought(
    folder: Path, *, middle: str = "pass", build: str = "pass", norm: str = "nn.BatchNorm2d(8)"
) -> Network:
    path = folder / "net.py"
    path.write_text(HEAD.format(middle=middle, build=build, norm=norm))
    torch.manual_seed(0)
    classes = ("a", "b", "c")
    return networks.create(f"{path}:net", {}, (1, 8, 8), classes, Preprocessing(1.0, (0.0,), (1.0,)))


def test_an_ordinary_network_with_dropout_passes(tmp_path: Path) -> None:
    check_repeatable(brought(tmp_path, middle="x = F.dropout(x, 0.5, self.training)"))


@pytest.mark.parametrize("middle", ["x = F.dropout(x, 0.5)", "x = x + torch.randn_like(x)"])
def test_random_numbers_in_evaluation_are_told_with_the_first_layer_after(
    tmp_path: Path, middle: str
) -> None:
    with pytest.raises(BadInput, match="another output each time.*after layer 'second'"):
        check_repeatable(brought(tmp_path, middle=middle))


@pytest.mark.parametrize(
    "build",
    [
        "self.noise = torch.rand(8, 1, 1)",
        "self.register_buffer('noise', torch.rand(8, 1, 1), persistent=False)",
    ],
)
def test_tensors_that_no_state_dict_holds_are_named(tmp_path: Path, build: str) -> None:
    with pytest.raises(BadInput, match="no part of its weights.*'noise' differ"):
        check_repeatable(brought(tmp_path, build=build, middle="x = x * self.noise"))


@pytest.mark.parametrize(
    ("changes", "layer"),
    [
        ({"norm": "nn.BatchNorm2d(8, track_running_stats=False)"}, "norm"),
        ({"middle": "x = x - x.mean(0, keepdim=True)"}, "second"),
    ],
)
def test_images_that_depend_on_each_other_are_told(tmp_path: Path, changes: dict, layer: str) -> None:
    with pytest.raises(BadInput, match=f"depends on the other images.*after layer '{layer}'"):
        check_repeatable(brought(tmp_path, **changes))


def test_a_last_layer_of_zeros_hides_nothing(tmp_path: Path) -> None:
    build = "nn.init.zeros_(self.fc.weight); nn.init.zeros_(self.fc.bias)"
    with pytest.raises(BadInput, match="another output each time"):
        check_repeatable(brought(tmp_path, build=build, middle="x = F.dropout(x, 0.5)"))


def test_a_module_that_gives_one_tensor_for_all_images_confuses_nothing(tmp_path: Path) -> None:
    net = HEAD.replace("class Net", GATE + "class Net")
    path = tmp_path / "net.py"
    path.write_text(
        net.format(
            norm="nn.BatchNorm2d(8)", build="self.gate = Gate()", middle="x = x * self.gate() * self.gate()"
        )
    )
    plain = Preprocessing(1.0, (0.0,), (1.0,))
    check_repeatable(networks.create(f"{path}:net", {}, (1, 8, 8), ("a", "b", "c"), plain))
