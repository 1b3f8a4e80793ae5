"""R1's LeNet with free kernel sizes."""

from torch import Tensor, nn

from tersor.models.zoo.plumbing import size_after, square_side


class LeNet(nn.Module):
    """conv k1 (6), pool, conv k2 (16), pool, linear 120, linear 84, linear; ReLU between.

    At 3x32x32 with kernels (8, 9) and 100 classes the weights without biases are 1,152, 7,776,
    7,680, 10,080 and 8,400: 35,088.
    """

    def __init__(self, input_shape: tuple[int, int, int], classes: int, kernels: tuple[int, int]) -> None:
        super().__init__()
        side = square_side(input_shape, "network `lenet`")
        side = size_after(side, kernels[0], pool=2, where="conv1")
        side = size_after(side, kernels[1], pool=2, where="conv2")
        self.conv1 = nn.Conv2d(input_shape[0], 6, kernels[0])
        self.conv2 = nn.Conv2d(6, 16, kernels[1])
        self.pool, self.relu, self.flatten = nn.MaxPool2d(2), nn.ReLU(), nn.Flatten()
        self.fc1 = nn.Linear(16 * side * side, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) to logits (N, classes)."""
        x = self.pool(self.relu(self.conv1(x)))
        x = self.flatten(self.pool(self.relu(self.conv2(x))))
        return self.fc3(self.relu(self.fc2(self.relu(self.fc1(x)))))


def lenet(
    input_shape: tuple[int, int, int] = (3, 32, 32), classes: int = 10, kernels: tuple[int, int] = (5, 5)
) -> nn.Module:
    """R1's LeNet; `kernels` are the sides of the two convolution kernels, in pixels."""
    return LeNet(input_shape, classes, kernels)
