"""Narrowing: a network's tensors made smaller, without the channel sets that are removed.

What ModelSpeedup does, for every coupling we can read.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from tersor.pipeline.structure.coupling import Coupling


def narrowed(module: nn.Module, coupling: Coupling, removed: np.ndarray) -> dict[str, torch.Tensor]:
    """The state dict without the channels of the sets `removed`; names as before, shapes smaller.

    Args:
        module: the network; not changed.
        coupling: of this module.
        removed: sets, int64; none of them fixed.
    """
    tensors = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
    for layer in coupling.outputs:
        keep = torch.from_numpy(coupling.keep(layer, removed))
        for name in _tensors_of(layer, tensors):
            if tensors[name].dim() > 0:  # not num_batches_tracked
                tensors[name] = tensors[name][keep]
    for layer in coupling.inputs:
        weight = tensors[f"{layer}.weight"]
        if weight.shape[1] == len(coupling.inputs[layer]):  # else grouped: a group keeps all it reads
            tensors[f"{layer}.weight"] = weight[:, torch.from_numpy(coupling.keep_inputs(layer, removed))]
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def _tensors_of(layer: str, tensors: Mapping[str, torch.Tensor]) -> list[str]:
    return [name for name in tensors if name.rpartition(".")[0] == layer]
