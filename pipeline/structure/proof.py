"""The proof that a rebuilt network is right.

The masked network (removed channels zero *after* BatchNorm) and the rebuilt one must give the same logits.
Both run in float64, so that the only differences left are mistakes.
"""

import copy
from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from tersor.errors import BadInput, TersorError
from tersor.models.network import Network
from tersor.pipeline.structure.coupling import Coupling
from tersor.pipeline.structure.rules import is_norm

PROOF_BOUND = 1e-5
"""Largest |masked - rebuilt| of any logit that is accepted."""


def prove(
    module: nn.Module, rebuilt: nn.Module, coupling: Coupling, removed: np.ndarray, images: torch.Tensor
) -> tuple[float, float]:
    """Compare masked and rebuilt network on images (N, C, H, W), in float64.

    Returns:
        (largest |masked - rebuilt| of a logit, largest |conv-only mask - rebuilt|).

    Raises:
        TersorError: the first exceeds PROOF_BOUND.
    """
    with torch.no_grad():
        images = images.double()
        small = copy.deepcopy(rebuilt).double()(images)
        difference = float((masked(module, coupling, removed).double()(images) - small).abs().max())
        conv_only = masked(module, coupling, removed, norms=False).double()(images)
        gap = float((conv_only - small).abs().max())
    if not difference <= PROOF_BOUND:
        raise TersorError(
            "the rebuilt network does not compute what the masked one does",
            got=f"a logit that differs by {difference:.3g}",
            wanted=f"at most {PROOF_BOUND:g}",
            where="stage `structure`, after the rebuild",
            todo="Exclude layers with `exclude` until it holds, and report the network",
        )
    return difference, gap


def masked(module: nn.Module, coupling: Coupling, removed: np.ndarray, *, norms: bool = True) -> nn.Module:
    """A copy of `module` in which the removed channels are zero.

    With `norms` they are zero after the BatchNorm that follows as well (its weight and bias are masked
    too); without, a removed channel still sends its BatchNorm constant on.
    """
    copied = copy.deepcopy(module).eval()
    for name in coupling.outputs:
        layer, zeroed = copied.get_submodule(name), torch.from_numpy(~coupling.keep(name, removed))
        if is_norm(layer) and not norms:
            continue
        tensors = [layer.weight, getattr(layer, "bias", None)]
        if is_norm(layer) and layer.weight is None:
            tensors = [layer.running_mean]  # not affine: a zero that is not shifted stays zero
        for tensor in tensors:
            if isinstance(tensor, torch.Tensor):
                tensor.data[zeroed] = 0
    return copied


def check_widths(rebuilt: Network, kept: Mapping[str, torch.Tensor]) -> None:
    """ModelSpeedup also drops channels that were constant on its random input; nobody asked for that."""
    for name, keep in kept.items():
        got, asked = rebuilt.tensors[f"{name}.weight"].shape[0], int(keep.sum())
        if got != asked:
            raise TersorError(
                f"NNI removed other channels of layer {name!r} than asked",
                got=f"{got} channels left",
                wanted=f"{asked}",
                where="stage `structure`",
                todo="Exclude the layer with `exclude`, or prune before weights are pruned to zero",
            )


def check_runs(rebuilt: nn.Module, example: torch.Tensor) -> None:
    """A number of features written into forward still stands there after the channels are gone."""
    entered = [""]
    for name, layer in rebuilt.named_modules():
        layer.register_forward_pre_hook(lambda *_, name=name: entered.append(name))
    try:
        with torch.no_grad():
            rebuilt(example)
    except Exception as error:
        raise BadInput(
            "channels cannot be pruned: the narrower network does not run",
            got=f"{type(error).__name__}: {error}",
            where=f"at or before layer {entered[-1]!r}",
            todo="A reshape with a number written in must become `torch.flatten(x, 1)` or take the number "
            "from x.shape; or list the layers before it under `exclude` of the structure stage",
        ) from error
