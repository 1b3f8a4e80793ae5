"""A forward pass in two parts gives the bits of an undivided one, or says that it cannot."""

import pytest
import torch
from nets import make
from torch import nn

from tersor.models.layers import weight_layers
from tersor.pipeline.accuracy.forward_prefix import CannotSplit, Prefix

NETS = [
    ("mnist", (1, 8, 8), {"batch_norm": True}),
    ("lenet", (3, 32, 32), {"kernels": (8, 9)}),
    ("resnet20", (3, 16, 16), {"width": 8, "shortcut": "A"}),
    ("resnet20", (3, 16, 16), {"width": 8, "shortcut": "B"}),
]


@pytest.mark.parametrize(("name", "shape", "arguments"), NETS)
def test_logits_are_the_same_bits_at_every_layer(
    name: str, shape: tuple[int, int, int], arguments: dict[str, object]
) -> None:
    net = make(name, shape, **arguments)
    inputs = torch.randn(5, *shape)
    prefix = Prefix(net.module(), inputs)
    prefix.start(inputs)
    for layer in sorted(weight_layers(net), key=prefix.place_of):
        prefix.advance(prefix.place_of(layer))
        weight = net.tensors[f"{layer}.weight"] * 0.5
        touched = net.with_tensors({**net.tensors, f"{layer}.weight": weight})
        with prefix.weight(layer, weight), torch.no_grad():
            assert torch.equal(prefix.finish(), touched.module()(inputs))
        with torch.no_grad():
            assert torch.equal(prefix.finish(), net.module()(inputs))


def test_only_values_that_are_read_later_are_held() -> None:
    module = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    prefix = Prefix(module, torch.zeros(3, 4))
    assert [prefix.place_of(layer) for layer in ("0", "2")] == [1, 3]
    prefix.start(torch.zeros(3, 4))
    prefix.advance(prefix.place_of("2"))
    assert prefix.held_bytes == 3 * 8 * 4
    with pytest.raises(ValueError, match="place 1 lies before 3"):
        prefix.advance(1)


def test_a_tensor_shared_between_layers_is_not_split() -> None:
    tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).eval()
    tied[1].weight = tied[0].weight
    with pytest.raises(CannotSplit, match="share one tensor"):
        Prefix(tied, torch.zeros(2, 4))
