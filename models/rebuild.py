"""Give a freshly built module the shapes of given tensors.

A pruned network is its definition plus narrower tensors; no width table is kept.
"""

from collections import OrderedDict
from collections.abc import Mapping

import torch
from torch import nn

from tersor.errors import BadInput


def rebuild(module: nn.Module, tensors: Mapping[str, torch.Tensor]) -> nn.Module:
    """Shape every Conv, Linear and BatchNorm of `module` after `tensors`, then load them.

    Args:
        module: a freshly built network of any width; changed in place and returned in eval mode.
        tensors: a state dict; names as in `module.state_dict()`, shapes may be smaller.

    A grouped convolution has lost whole groups where each still reads as many channels as before (so
    a depthwise one has one group per channel); where each reads fewer, their number is as before.

    Raises:
        BadInput: names differ, or a tensor's shape fits no layer (the layer is named).
    """
    _check_names(module, tensors)
    for name, child in module.named_modules():
        weight = tensors.get(f"{name}.weight" if name else "weight")
        if weight is not None:
            _shape_layer(name, child, tuple(weight.shape))
    current = dict(module.named_parameters(remove_duplicate=False)) | dict(
        module.named_buffers(remove_duplicate=False)
    )
    replaced: dict[int, torch.Tensor] = {}  # one tensor under two names stays one
    for name, tensor in tensors.items():
        old = current.get(name)
        if old is not None and old.shape != tensor.shape:
            replaced[id(old)] = _replace(module, name, replaced.get(id(old), tensor))
    state = OrderedDict(tensors)
    state._metadata = module.state_dict()._metadata  # type: ignore[attr-defined]  # versions, that some layers ask for
    try:
        module.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise BadInput("the tensors do not fit the network's definition", got=str(error)) from error
    return module.eval()


def _check_names(module: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    defined, loaded = set(module.state_dict()), set(tensors)
    if defined == loaded:
        return
    missing, extra = sorted(defined - loaded)[:3], sorted(loaded - defined)[:3]
    raise BadInput(
        "the tensors do not belong to this network",
        got=f"{len(loaded)} tensors, of which unknown here: {', '.join(extra) or 'none'}",
        wanted=f"{len(defined)} tensors, of which missing there: {', '.join(missing) or 'none'}",
        todo="Check `model` and its arguments against the checkpoint",
    )


def _shape_layer(name: str, layer: nn.Module, shape: tuple[int, ...]) -> None:
    """Set the attributes by which a layer knows its own width."""
    if isinstance(layer, nn.modules.conv._ConvTransposeNd):
        if layer.groups > 1:
            layer.groups = shape[0] // (layer.in_channels // layer.groups)
        layer.in_channels, layer.out_channels = shape[0], shape[1] * layer.groups
    elif isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        if len(shape) != layer.weight.dim() or shape[2:] != tuple(layer.kernel_size):
            raise BadInput(
                f"the kernel of layer {name!r} differs",
                got=f"a weight of shape {shape}",
                wanted=f"kernel {tuple(layer.kernel_size)} as in the definition",
            )
        if layer.groups > 1 and shape[1] == layer.in_channels // layer.groups:
            layer.groups = shape[0] // (layer.out_channels // layer.groups)  # whole groups are gone
        layer.out_channels, layer.in_channels = shape[0], shape[1] * layer.groups
    elif isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = shape[0], shape[1]
    elif isinstance(layer, nn.modules.batchnorm._NormBase):  # InstanceNorm too
        layer.num_features = shape[0]
    elif isinstance(layer, nn.GroupNorm):
        whole = layer.num_channels // layer.num_groups  # channels a group: whole groups go
        layer.num_groups = max(1, shape[0] // whole) if layer.num_groups > 1 else 1
        layer.num_channels = shape[0]
    elif isinstance(layer, nn.LayerNorm | nn.RMSNorm):
        layer.normalized_shape = shape


def _replace(module: nn.Module, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Put an empty tensor of the right shape, or one that was put elsewhere, under a name; returns it."""
    parent_name, _, leaf = name.rpartition(".")
    parent = module.get_submodule(parent_name)
    if leaf in parent._buffers:
        parent._buffers[leaf] = torch.empty_like(tensor)
        return tensor
    if not isinstance(tensor, nn.Parameter):
        old = parent._parameters[leaf]
        tensor = nn.Parameter(torch.empty_like(tensor), requires_grad=old is None or old.requires_grad)
    parent._parameters[leaf] = tensor
    return tensor
