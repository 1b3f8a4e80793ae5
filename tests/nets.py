"""Small networks and data for tests; weights and BatchNorm statistics are far from fresh ones."""

import numpy as np
import torch

from tersor.models import network
from tersor.models.network import Network
from tersor.models.preprocessing import Preprocessing
from tersor.pipeline.data.load import Data, Split


def randomised(net: Network, seed: int = 0) -> Network:
    """Random BatchNorm statistics and affine parameters: fresh ones hide what a rebuild drops."""
    generator = torch.Generator().manual_seed(seed)
    tensors = dict(net.tensors)
    for name, tensor in net.tensors.items():
        if name.endswith("running_var"):
            tensors[name] = 0.5 + torch.rand(tensor.shape, generator=generator)
        elif name.endswith("running_mean") or (name.endswith(".bias") and tensor.dim() == 1):
            tensors[name] = torch.randn(tensor.shape, generator=generator)
        elif tensor.dim() == 1 and tensor.is_floating_point():
            tensors[name] = 0.5 + torch.rand(tensor.shape, generator=generator)
    return net.with_tensors(tensors)


def make(
    name: str = "mnist", shape: tuple[int, int, int] = (1, 8, 8), classes: int = 10, **arguments: object
) -> Network:
    """A network of the zoo with random weights and random BatchNorm statistics."""
    torch.manual_seed(0)
    labels = tuple(str(i) for i in range(classes))
    return randomised(network.create(name, arguments, shape, labels, Preprocessing(16.0, (0.3,), (0.4,))))


def blobs(count: int = 200, classes: int = 3, seed: int = 0) -> Data:
    """Images (N, 1, 8, 8) in which a bright row tells the class: learnt in an epoch or two."""
    rng = np.random.default_rng(seed)

    def split(n: int) -> Split:
        labels = rng.integers(0, classes, n)
        images = rng.integers(0, 6, (n, 1, 8, 8))
        images[np.arange(n), 0, labels * 2, :] += 9
        return Split(images.astype(np.uint8), labels.astype(np.int64))

    names = tuple(str(i) for i in range(classes))
    return Data("blobs", names, Preprocessing(16.0, (0.2,), (0.2,)), split(count), split(60), split(60))
