"""The network as a torch.fx trace, which NNI's ModelSpeedup works on."""

import torch
from torch import fx, nn

from tersor.errors import BadInput


def trace(module: nn.Module) -> fx.GraphModule:
    """Trace a module symbolically with torch.fx.

    Raises:
        BadInput: the forward pass depends on values or shapes (the remedy is named).
    """
    try:
        return fx.symbolic_trace(module)
    except Exception as error:
        raise BadInput(
            "channels cannot be pruned: the network's forward pass cannot be traced",
            got=f"{type(error).__name__}: {error}",
            wanted="a forward pass without `if` or loops over shapes or values",
            where=f"{type(module).__name__}.forward",
            todo="Move the condition into __init__, or leave out the structure stage",
        ) from error


def width_of(module: nn.Module, layer: str) -> int:
    """The number of output channels of a Conv or Linear layer."""
    weight = module.get_submodule(layer).weight
    assert isinstance(weight, torch.Tensor)
    return weight.shape[0]
