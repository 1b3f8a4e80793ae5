"""PyTorch on the network of a run or a bundle, eager and compiled, beside ONNX Runtime on its file."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tersor.errors import BadInput, Unavailable
from tersor.export.timing.peers import Peer
from tersor.models.network import Network
from tersor.pipeline.training.optimization import forget_compiled

EAGER, COMPILED = "torch", "torch-compile"


@contextlib.contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """So many threads for PyTorch, nothing compiled before; as many threads as there were afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    forget_compiled()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def eager_peer(network: Network, inputs: Mapping[str, np.ndarray]) -> Peer:
    """The network as PyTorch runs it, operation by operation.

    Args:
        network: it runs in evaluation mode, without gradients.
        inputs: one array float32 (N, C, H, W).

    Raises:
        BadInput: other inputs than a network takes.
    """
    module, images = network.module().eval(), _images(inputs)
    return Peer(EAGER, "PyTorch CPU", _runs(module, images), _placement(module))


def compiled_peer(network: Network, inputs: Mapping[str, np.ndarray]) -> Peer:
    """The network by torch.compile (inductor), for this shape of inputs.

    The proof counts what Dynamo did: one graph, no break in it. After eight shapes or networks it goes on
    without compiling, which is refused; `torch_threads` begins anew.

    Raises:
        BadInput: other inputs than a network takes.
        Unavailable: no C++ compiler, or a network that is not compiled as one graph.
    """
    from torch._dynamo.utils import counters

    module, images = network.module().eval(), _images(inputs)
    counters.clear()
    run = _runs(torch.compile(module, dynamic=False), images)
    try:
        run()
    except torch._dynamo.exc.TorchDynamoException as error:
        told = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise Unavailable("torch.compile does not take the network", got=told) from error
    proof = {
        **_placement(module),
        "graphs": counters["stats"]["unique_graphs"],
        "graph_breaks": sum(counters["graph_break"].values()),
        "operations": counters["stats"]["calls_captured"],
    }
    if (proof["graphs"], proof["graph_breaks"]) != (1, 0):
        raise Unavailable(
            "torch.compile does not run the network as one graph",
            got=f"{proof['graphs']} graphs, {proof['graph_breaks']} breaks",
            wanted="1 graph, 0 breaks",
        )
    return Peer(COMPILED, "PyTorch CPU, inductor", run, proof)


PEERS: dict[str, Callable[[Network, Mapping[str, np.ndarray]], Peer]] = {
    EAGER: eager_peer,
    COMPILED: compiled_peer,
}


def _runs(function: Callable[[Tensor], Tensor], images: Tensor) -> Callable[[], Sequence[np.ndarray]]:
    def run() -> Sequence[np.ndarray]:
        """One run; the arrays share memory with the tensors."""
        with torch.inference_mode():
            return [function(images).numpy()]

    return run


def _images(inputs: Mapping[str, np.ndarray]) -> Tensor:
    arrays = list(inputs.values())
    if len(arrays) != 1 or arrays[0].dtype != np.float32:
        raise BadInput("a network takes one float32 array", got=f"{len(arrays)} of other types or number")
    return torch.from_numpy(arrays[0])


def _placement(module: nn.Module) -> dict[str, Any]:
    parameters = list(module.parameters())
    return {
        "devices": sorted({parameter.device.type for parameter in parameters}),
        "types": sorted({str(parameter.dtype).removeprefix("torch.") for parameter in parameters}),
        "threads": torch.get_num_threads(),
    }
