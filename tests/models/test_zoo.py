"""The networks of the reports have the reports' numbers."""

import pytest
import torch
from torch import nn

from tersor.errors import BadInput
from tersor.models import definition

SHAPES = {"mnist": (1, 28, 28), "fashion": (1, 28, 28)}


def weights(module: nn.Module) -> list[int]:
    return [m.weight.numel() for m in module.modules() if isinstance(m, nn.Conv2d | nn.Linear)]


@pytest.mark.parametrize("name", ["mnist", "lenet", "fashion", "vgg16_half", "resnet20", "resnet56"])
def test_every_network_gives_one_logit_a_class(name: str) -> None:
    shape = SHAPES.get(name, (3, 32, 32))
    net = definition.build(name, shape, 7, {}).eval()
    assert net(torch.zeros(2, *shape)).shape == (2, 7)


def test_lenet_has_r1s_weights() -> None:
    net = definition.build("lenet", (3, 32, 32), 100, {"kernels": (8, 9)})
    assert weights(net) == [1152, 7776, 7680, 10080, 8400]


def test_vgg16_half_has_r2s_weights_and_no_biases() -> None:
    net = definition.build("vgg16_half", (3, 32, 32), 10, {})
    assert sum(weights(net)) == 3_811_680
    assert not [n for n, _ in net.named_parameters() if n.startswith("classifier.8.bias")]
    assert sum(isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) for m in net.modules()) == 15


def test_fashion_net_has_r3s_9216_inputs() -> None:
    net = definition.build("fashion", (1, 28, 28), 10, {})
    assert net.fc1.in_features == 16 * 24 * 24 == 9216
    assert not net.conv1.bias.detach().any()


def test_fashion_net_refuses_an_unknown_init() -> None:
    with pytest.raises(BadInput, match="unknown initialisation"):
        definition.build("fashion", (1, 28, 28), 10, {"init": "magic"})


def test_mnist_net_has_r5s_parameters() -> None:
    net = definition.build("mnist", (1, 28, 28), 10, {})
    assert sum(p.numel() for p in net.parameters()) == 1_199_882


def test_resnet20_shortcuts() -> None:
    nets = {s: definition.build("resnet20", (3, 32, 32), 10, {"shortcut": s}) for s in "AB"}
    counts = {s: sum(p.numel() for p in net.parameters()) for s, net in nets.items()}
    assert counts["A"] == 269_722
    assert counts["B"] == 269_722 + 16 * 32 + 32 * 64 + 2 * (32 + 64)


def test_option_a_pads_with_zeros_and_strides() -> None:
    from tersor.models.zoo.resnet_cifar import ZeroPadShortcut

    x = torch.arange(2 * 4 * 4.0).reshape(1, 2, 4, 4) + 1
    y = ZeroPadShortcut(2, 2)(x)
    assert torch.equal(y[:, 1:3], x[:, :, ::2, ::2])
    assert float(y[:, [0, 3]].abs().sum()) == 0.0


def test_too_small_image_says_what_to_do() -> None:
    with pytest.raises(BadInput, match="image is too small.*smaller kernel or larger images"):
        definition.build("lenet", (3, 8, 8), 10, {})


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "googlenet"])
def test_torchvision_networks_give_one_tensor_of_logits(name: str) -> None:
    net = definition.build(name, (3, 64, 64), 7, {}).eval()
    assert net(torch.zeros(2, 3, 64, 64)).shape == (2, 7)


@pytest.mark.parametrize("shape", [(1, 64, 64), (3, 16, 64)])
def test_torchvision_networks_refuse_grey_and_tiny_images(shape: tuple[int, int, int]) -> None:
    with pytest.raises(BadInput, match=r"does not take these images.*Wanted 3 channels, at least 32x32"):
        definition.build("mobilenet_v2", shape, 7, {})
