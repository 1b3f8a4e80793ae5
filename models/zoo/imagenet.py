"""torchvision's ImageNet networks, with random weights: no download."""

from collections.abc import Callable
from typing import Any

from torch import nn

from tersor.errors import BadInput

SMALLEST = 32
"""Pixels: five halvings leave one."""


def _network(name: str) -> Callable[..., nn.Module]:
    """A factory of torchvision's network `name`."""

    def factory(
        input_shape: tuple[int, int, int] = (3, 224, 224), classes: int = 1000, **arguments: Any
    ) -> nn.Module:
        """Images (N, 3, H, W) to logits (N, classes); arguments go to torchvision."""
        from torchvision import models

        channels, height, width = input_shape
        if channels != 3 or min(height, width) < SMALLEST:
            raise BadInput(
                "the network does not take these images",
                got=f"{channels} channels, {height}x{width} pixels",
                wanted=f"3 channels, at least {SMALLEST}x{SMALLEST} pixels",
                where=f"network `{name}`",
                todo="Set `data.channels: 3` and `data.image_size`",
            )
        if name == "googlenet":  # two more outputs that only training uses
            arguments = {"aux_logits": False, "init_weights": False, **arguments}
        return getattr(models, name)(weights=None, num_classes=classes, **arguments)

    return factory


resnet18 = _network("resnet18")
resnet50 = _network("resnet50")
mobilenet_v2 = _network("mobilenet_v2")
mobilenet_v3_small = _network("mobilenet_v3_small")
efficientnet_b0 = _network("efficientnet_b0")
densenet121 = _network("densenet121")
googlenet = _network("googlenet")
regnet_y_400mf = _network("regnet_y_400mf")
resnext50_32x4d = _network("resnext50_32x4d")
