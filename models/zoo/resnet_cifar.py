"""The CIFAR ResNets of He et al. 2015 (arXiv:1512.03385, section 4.2), with both shortcut types."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from tersor.errors import BadInput


class ZeroPadShortcut(nn.Module):
    """Shortcut "option A": every second pixel, missing channels filled with zeros."""

    def __init__(self, stride: int, extra: int) -> None:
        super().__init__()
        self.stride, self.extra = stride, extra

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C + extra, H / stride, W / stride)."""
        before = self.extra // 2
        pads = [0, 0, 0, 0, before, self.extra - before]
        return functional.pad(x[:, :, :: self.stride, :: self.stride], pads)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm around a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = (
                ZeroPadShortcut(stride, outputs - inputs)
                if shortcut == "A"
                else nn.Sequential(
                    nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
                )
            )

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, outputs, H / stride, W / stride)."""
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class CifarResNet(nn.Module):
    """conv 16, then three groups of n blocks with 16, 32, 64 channels, mean over pixels, linear.

    6 n + 2 layers. With n = 3 and shortcut A: 269,722 parameters (10 classes).
    """

    def __init__(
        self, input_shape: tuple[int, int, int], classes: int, blocks: int, shortcut: str, width: int
    ) -> None:
        super().__init__()
        if shortcut not in ("A", "B"):
            raise BadInput("unknown shortcut", got=shortcut, wanted="A (zero padding) or B (projection)")
        self.conv1 = nn.Conv2d(input_shape[0], width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        stages, inputs = [], width
        for factor, stride in ((1, 1), (2, 2), (4, 2)):
            outputs = width * factor
            first = BasicBlock(inputs, outputs, stride, shortcut)
            rest = [BasicBlock(outputs, outputs, 1, shortcut) for _ in range(blocks - 1)]
            stages.append(nn.Sequential(first, *rest))
            inputs = outputs
        self.layer1, self.layer2, self.layer3 = stages
        self.pool, self.flatten = nn.AdaptiveAvgPool2d(1), nn.Flatten()
        self.fc = nn.Linear(inputs, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) to logits (N, classes)."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(torch.flatten(self.pool(x), 1))


def resnet20(
    input_shape: tuple[int, int, int] = (3, 32, 32), classes: int = 10, shortcut: str = "A", width: int = 16
) -> nn.Module:
    """ResNet-20; `shortcut` is A (zero padding, the paper's) or B (1x1 projection)."""
    return CifarResNet(input_shape, classes, 3, shortcut, width)


def resnet56(
    input_shape: tuple[int, int, int] = (3, 32, 32), classes: int = 10, shortcut: str = "A", width: int = 16
) -> nn.Module:
    """ResNet-56; `shortcut` as for `resnet20`."""
    return CifarResNet(input_shape, classes, 9, shortcut, width)
