"""Small networks of the zoo as a training leaves them: real BatchNorm statistics, few-valued weights."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from tersor.export.forms.to_onnx import export_onnx
from tersor.models import network as networks
from tersor.models.network import Network
from tersor.models.preprocessing import Preprocessing

CLASSES = tuple("0123456789")
DIGITS = ("mnist", {"batch_norm": True, "widths": [16, 32]}, (1, 8, 8))


def make(
    name: str = DIGITS[0],
    arguments: dict | None = None,
    shape: tuple[int, int, int] = DIGITS[2],
    *,
    bits: int | None = None,
    seed: int = 0,
) -> Network:
    """A network of the zoo with non-trivial vectors; weights of 2^bits values a tensor if asked."""
    torch.manual_seed(seed)
    arguments = dict(DIGITS[1]) if arguments is None else arguments
    fresh = networks.create(name, arguments, shape, CLASSES, Preprocessing(16.0, (0.3,), (0.4,)))
    tensors = {}
    for key, tensor in fresh.tensors.items():
        if key.endswith("running_var"):
            tensor = torch.rand(tensor.shape) + 0.5
        elif tensor.dim() == 1:
            tensor = 0.3 * torch.randn(tensor.shape) + (1.0 if key.endswith("weight") else 0.0)
        elif bits is not None and tensor.dim() > 1:
            levels = torch.linspace(float(tensor.min()), float(tensor.max()), 2**bits)
            nearest = torch.bucketize(tensor, (levels[1:] + levels[:-1]) / 2)
            tensor = levels[nearest]
        tensors[key] = tensor
    return fresh.with_tensors(tensors)


def images(shape: tuple[int, int, int] = DIGITS[2], count: int = 40) -> np.ndarray:
    return np.random.default_rng(7).standard_normal((count, *shape), np.float32)


def torch_logits(network: Network, inputs: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return network.module()(torch.from_numpy(inputs)).numpy()


def without_weights(path: Path) -> bytes:
    """The bytes of an ONNX file less its tensors' values, in which any byte may turn up."""
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        tensor.raw_data = b""
    return model.SerializeToString()


@pytest.fixture(scope="session")
def skeleton_of() -> Callable[[Path], bytes]:
    return without_weights


@pytest.fixture(scope="session")
def make_network() -> Callable[..., Network]:
    return make


@pytest.fixture(scope="session")
def make_images() -> Callable[..., np.ndarray]:
    return images


@pytest.fixture(scope="session")
def logits_of() -> Callable[..., np.ndarray]:
    return torch_logits


@pytest.fixture(scope="session")
def digits() -> Network:
    """The digits network, weights of 16 values a tensor."""
    return make(bits=4)


@pytest.fixture(scope="session")
def plain_onnx(tmp_path_factory: pytest.TempPathFactory, digits: Network) -> Path:
    """`digits` exported, BatchNorm unfolded. Not to be changed."""
    path = tmp_path_factory.mktemp("plain") / "model.onnx"
    export_onnx(digits, path)
    return path


@pytest.fixture(scope="session")
def folded_onnx(tmp_path_factory: pytest.TempPathFactory, digits: Network) -> Path:
    """`digits` exported, BatchNorm folded. Not to be changed."""
    path = tmp_path_factory.mktemp("folded") / "folded.onnx"
    export_onnx(digits, path, fold_batch_norm=True)
    return path
