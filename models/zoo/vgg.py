"""R2's VGG16-half: VGG16 with half the channels and three small linear layers."""

from torch import Tensor, nn

from tersor.errors import BadInput

WIDTHS = ((32, 32), (64, 64), (128, 128, 128), (256, 256, 256), (256, 256, 256))
"""Channels of the convolutions, block by block; a max-pool follows each block."""


class VggHalf(nn.Module):
    """3x3 padded convolutions in five blocks, then linear 256, 256, classes.

    No biases, BatchNorm after each layer but the last, whose outputs have a bias neither.
    3,811,680 weights at 3x32x32 and 10 classes.
    """

    def __init__(self, input_shape: tuple[int, int, int], classes: int, dropout: float) -> None:
        super().__init__()
        channels, height, width = input_shape
        if height % 32 or width % 32:
            raise BadInput(
                "the image is too small for this network",
                got=f"{height}x{width} pixels",
                wanted="multiples of 32",
                where="network `vgg16_half`",
            )
        layers: list[nn.Module] = []
        for block in WIDTHS:
            for outputs in block:
                conv = nn.Conv2d(channels, outputs, 3, padding=1, bias=False)
                layers += [conv, nn.BatchNorm2d(outputs), nn.ReLU()]
                channels = outputs
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.flatten = nn.Flatten()
        self.classifier = nn.Sequential(
            *self._dense(channels * (height // 32) * (width // 32), 256, dropout),
            *self._dense(256, 256, dropout),
            nn.Linear(256, classes, bias=False),
        )

    @staticmethod
    def _dense(inputs: int, outputs: int, dropout: float) -> list[nn.Module]:
        linear = nn.Linear(inputs, outputs, bias=False)
        return [linear, nn.BatchNorm1d(outputs), nn.ReLU(), nn.Dropout(dropout)]

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) to logits (N, classes)."""
        return self.classifier(self.flatten(self.features(x)))


def vgg16_half(
    input_shape: tuple[int, int, int] = (3, 32, 32), classes: int = 10, dropout: float = 0.0
) -> nn.Module:
    """R2's VGG16-half; `dropout` follows the first two linear layers."""
    return VggHalf(input_shape, classes, dropout)
