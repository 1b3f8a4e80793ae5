"""R5's network: two 3x3 convolutions, one max-pool, two linear layers."""

from torch import Tensor, nn

from tersor.models.zoo.plumbing import conv_norm, size_after, square_side


class MnistNet(nn.Module):
    """conv 3x3, conv 3x3, max-pool 2, linear, linear; ReLU between; no padding.

    At 1x28x28 with widths (32, 64) and 128 hidden units it has 1,199,882 parameters without
    BatchNorm; the first linear layer takes 64 x 12 x 12 = 9,216 inputs.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        classes: int,
        widths: tuple[int, int],
        hidden: int,
        batch_norm: bool,
        dropout: tuple[float, float],
    ) -> None:
        super().__init__()
        side = square_side(input_shape, "network `mnist`")
        side = size_after(size_after(side, 3, where="conv1"), 3, pool=2, where="conv2")
        self.conv1 = conv_norm(input_shape[0], widths[0], batch_norm=batch_norm)
        self.conv2 = conv_norm(widths[0], widths[1], batch_norm=batch_norm)
        self.pool = nn.MaxPool2d(2)
        self.relu = nn.ReLU()
        self.dropout1, self.dropout2 = nn.Dropout(dropout[0]), nn.Dropout(dropout[1])
        self.flatten = nn.Flatten()
        self.fc1 = nn.Linear(widths[1] * side * side, hidden)
        self.fc2 = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) to logits (N, classes)."""
        x = self.relu(self.conv1(x))
        x = self.relu(self.conv2(x))
        x = self.flatten(self.dropout1(self.pool(x)))
        return self.fc2(self.dropout2(self.relu(self.fc1(x))))


def mnist_net(
    input_shape: tuple[int, int, int] = (1, 28, 28),
    classes: int = 10,
    widths: tuple[int, int] = (32, 64),
    hidden: int = 128,
    batch_norm: bool = False,
    dropout: tuple[float, float] = (0.25, 0.5),
) -> nn.Module:
    """R5's MNIST network; `batch_norm` puts one after each convolution."""
    return MnistNet(input_shape, classes, widths, hidden, batch_norm, dropout)
