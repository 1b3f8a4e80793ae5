"""A removal is exact wherever it is allowed, and refused with a reason where it is not."""

from pathlib import Path

import pytest
import torch
from nets import make

from tersor.errors import BadInput
from tersor.models.network import Form, Network
from tersor.pipeline.structure.one_layer import proof, remove_channels, wirings

SOURCE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.a = nn.Conv2d(1, 6, 3, padding=1)
        self.depth = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.bn = nn.BatchNorm2d(6)
        self.b = nn.Conv2d(6, 4, 3)
        self.grouped = nn.Conv2d(4, 4, 1, groups=2)
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        x = self.b(torch.relu(self.bn(self.depth(torch.relu(self.a(x))))))
        x = self.grouped(torch.relu(x))
        return self.fc(x.mean((2, 3)))

def net(input_shape, classes, kind=0):
    return Net(kind)
"""


def custom(folder: Path) -> Network:
    source = folder / "net.py"
    source.write_text(SOURCE)
    return make(f"{source}:net", (1, 8, 8), 3)


def images(network: Network) -> torch.Tensor:
    return torch.randn(16, *network.input_shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", ["fashion", "mnist", "lenet", "vgg16_half", "resnet20"])
def test_what_is_removed_computes_what_masking_does(name: str) -> None:
    shape = {"fashion": (1, 12, 12), "mnist": (1, 12, 12)}.get(name, (3, 32, 32))
    network = make(name, shape)
    wired, _ = wirings(network)
    assert wired
    for one in list(wired.values())[:6]:
        channels = sorted({0, one.width // 2, one.width - 1} - {1})[: one.width - 1]
        assert proof(network, one, channels, images(network)) < 1e-9
        narrow = remove_channels(network, one, channels)
        assert narrow.tensors[f"{one.layer}.weight"].shape[0] == one.width - len(channels)


def test_a_flatten_gives_each_channel_height_times_width_inputs() -> None:
    wired, tied = wirings(make("fashion", (1, 12, 12), widths=(3, 5)))
    assert (wired["conv2"].readers, wired["fc1"].readers) == (("fc1",), ("fc2",))
    assert wired["conv2"].inputs("fc1", 3).nonzero().flatten().tolist() == list(range(3 * 64, 4 * 64))
    assert tied == {"fc2": "its width is fixed by the network's outputs"}


def test_batch_norm_and_depthwise_convolutions_lose_their_rows(tmp_path: Path) -> None:
    network = custom(tmp_path)
    one = wirings(network)[0]["a"]
    assert one.rows == ("a", "depth", "bn")
    narrow = remove_channels(network, one, (2, 5))
    assert narrow.tensors["depth.weight"].shape == (4, 1, 3, 3)
    assert narrow.tensors["bn.running_mean"].shape == (4,)
    kept = [0, 1, 3, 4]
    assert torch.equal(narrow.tensors["bn.running_var"], network.tensors["bn.running_var"][kept])
    assert torch.equal(narrow.tensors["b.weight"], network.tensors["b.weight"][:, kept])


def test_grouped_convolutions_are_left_alone(tmp_path: Path) -> None:
    tied = wirings(custom(tmp_path))[1]
    assert tied["b"] == tied["grouped"] == "its channels go in groups"


def test_layers_of_a_residual_sum_are_tied() -> None:
    wired, tied = wirings(make("resnet20", (3, 32, 32)))
    assert len(wired) == 9  # the first convolution of every block
    assert any("go together with those of" in why for why in tied.values())
    assert set(wired) & set(tied) == set()


def test_the_network_itself_is_not_changed() -> None:
    network = make("fashion", (1, 12, 12))
    before = network.digest()
    remove_channels(network, wirings(network)[0]["conv1"], (0, 3))
    assert network.digest() == before


def test_forms_go_for_fewer_channels_may_have_fewer_values() -> None:
    network = make("fashion", (1, 12, 12))
    network = network.with_tensors(network.tensors, {"fc1.weight": Form(pruned=True)})
    assert remove_channels(network, wirings(network)[0]["fc1"], (0,)).forms == {}


@pytest.mark.parametrize(
    ("channels", "got"), [((8,), "channel 8"), ((-1,), "channel -1"), (tuple(range(8)), "8 channels, all")]
)
def test_channels_that_cannot_go_are_told(channels: tuple[int, ...], got: str) -> None:
    network = make("fashion", (1, 12, 12), widths=(8, 8))
    with pytest.raises(BadInput, match=rf"from layer 'conv1'. Got {got}.*Wanted numbers from 0 to 7"):
        remove_channels(network, wirings(network)[0]["conv1"], channels)
