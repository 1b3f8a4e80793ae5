"""An example of a network of one's own: see bring-your-own.yaml."""

from torch import nn


def small_net(input_shape: tuple[int, int, int], classes: int, width: int = 32) -> nn.Module:
    """Three convolutions and a linear layer; images (N, C, H, W) to logits (N, classes)."""
    layers: list[nn.Module] = []
    channels = input_shape[0]
    for outputs in (width, 2 * width, 2 * width):
        layers += [nn.Conv2d(channels, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)]
        layers += [nn.ReLU(), nn.MaxPool2d(2)]
        channels = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))
