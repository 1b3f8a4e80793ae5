"""R3's Fashion-MNIST network: two convolutions without pooling, two linear layers."""

from collections.abc import Callable

from torch import Tensor, nn

from tersor.errors import BadInput
from tersor.models.zoo.plumbing import size_after, square_side

INITS: dict[str, Callable[[Tensor], Tensor]] = {
    "xavier_uniform": nn.init.xavier_uniform_,
    "xavier_normal": nn.init.xavier_normal_,
    "kaiming_uniform": nn.init.kaiming_uniform_,
}


class FashionNet(nn.Module):
    """conv, conv, linear, linear with ReLU between; no padding, no pooling."""

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        classes: int,
        widths: tuple[int, int],
        kernels: tuple[int, int],
        hidden: int,
    ) -> None:
        super().__init__()
        side = square_side(input_shape, "network `fashion`")
        side = size_after(size_after(side, kernels[0], where="conv1"), kernels[1], where="conv2")
        self.conv1 = nn.Conv2d(input_shape[0], widths[0], kernels[0])
        self.conv2 = nn.Conv2d(widths[0], widths[1], kernels[1])
        self.relu, self.flatten = nn.ReLU(), nn.Flatten()
        self.fc1 = nn.Linear(widths[1] * side * side, hidden)
        self.fc2 = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) to logits (N, classes)."""
        x = self.relu(self.conv2(self.relu(self.conv1(x))))
        return self.fc2(self.relu(self.fc1(self.flatten(x))))


def fashion_net(
    input_shape: tuple[int, int, int] = (1, 28, 28),
    classes: int = 10,
    widths: tuple[int, int] = (16, 16),
    kernels: tuple[int, int] = (3, 3),
    hidden: int = 100,
    init: str = "xavier_uniform",
) -> nn.Module:
    """R3's network. `init` is one of xavier_uniform, xavier_normal, kaiming_uniform; biases start at 0."""
    if init not in INITS:
        raise BadInput("unknown initialisation", got=init, wanted=", ".join(INITS), where="network `fashion`")
    net = FashionNet(input_shape, classes, widths, kernels, hidden)
    for layer in (net.conv1, net.conv2, net.fc1, net.fc2):
        INITS[init](layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    return net
