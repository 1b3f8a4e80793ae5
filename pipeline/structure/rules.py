"""What operations without channels of their own do to the channels that pass through them."""

import operator
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import fx, nn
from torch.nn import functional

from tersor.pipeline.structure.graph import shape_of

if TYPE_CHECKING:
    from tersor.pipeline.structure.labels import Labels

PASSING_LAYERS = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.Tanh,
    nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.LogSigmoid, nn.Softplus, nn.Identity, nn.Dropout,
    nn.Dropout2d, nn.AlphaDropout, nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d,
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Upsample, nn.ZeroPad2d,
)  # fmt: skip
PASSING_NAMES = frozenset(
    {"relu", "relu_", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "sigmoid",
     "sigmoid_",
     "tanh", "hardtanh", "hardswish", "hardsigmoid", "softplus", "dropout", "dropout2d", "max_pool1d",
     "max_pool2d", "avg_pool1d", "avg_pool2d", "adaptive_avg_pool1d", "adaptive_avg_pool2d",
     "adaptive_max_pool2d", "interpolate", "contiguous", "clone", "detach", "float", "abs", "neg", "clamp",
     "stochastic_depth"}
)  # fmt: skip
"""Functions and methods that treat every channel alike and keep their order."""
NONZERO_LAYERS = (nn.Sigmoid, nn.Hardsigmoid, nn.LogSigmoid, nn.Softplus)
NONZERO_NAMES = frozenset({"sigmoid", "sigmoid_", "hardsigmoid", "softplus"})
"""What passes channels but does not give 0 for 0."""
MEETING = frozenset(
    {"add", "iadd", "add_", "mul", "imul", "mul_", "sub", "isub", "sub_", "truediv", "div", "div_", "maximum",
     "minimum"}
)  # fmt: skip
CONCATENATIONS = frozenset({"cat", "concat", "concatenate"})
RESHAPES = frozenset({"flatten", "view", "reshape", "squeeze", "unsqueeze"})


def is_norm(layer: nn.Module) -> bool:
    """Whether a layer holds one value per channel and mixes none: BatchNorm, PReLU, affine InstanceNorm."""
    if isinstance(layer, nn.PReLU):
        return layer.num_parameters > 1
    return isinstance(layer, nn.modules.batchnorm._NormBase)


def gates_only(node: fx.Node) -> bool:
    """Whether all that reads a node multiplies it with another tensor, as squeeze-excite does."""
    return bool(node.users) and all(
        _name(user) in ("mul", "imul", "mul_") and len(set(user.all_input_nodes)) > 1 for user in node.users
    )


def flows(
    node: fx.Node, layer: nn.Module | None, of: Mapping[fx.Node, np.ndarray], labels: "Labels"
) -> np.ndarray | None:
    """The labels of a node's result, by the labels of what it reads; None where the rule is not known.

    Args:
        node: with its shape in `meta["tensor_meta"]`.
        layer: the module it calls, if it calls one.
        of: labels of the nodes before it; those that are no tensor (N, C, ...) are not in it.
        labels: where labels are joined or made.
    """
    name = _name(node)
    sources = [s for s in node.all_input_nodes if s in of]
    if (isinstance(layer, NONZERO_LAYERS) or name in NONZERO_NAMES) and not gates_only(node):
        return None  # a channel that is zero would go on as a constant: it cannot be left out
    if isinstance(layer, PASSING_LAYERS) or (isinstance(layer, nn.PReLU) and layer.num_parameters == 1):
        return of[sources[0]] if _same_width(node, sources) else None
    if isinstance(layer, nn.Flatten):
        return _reshaped(node, sources, of)
    if layer is not None or not sources:
        return None
    if name in PASSING_NAMES:
        return of[sources[0]] if _same_width(node, sources) else None
    if name in MEETING:
        return _meeting(node, sources, of, labels)
    if name in CONCATENATIONS:
        return _concatenated(node, of)
    if name in RESHAPES:
        return _reshaped(node, sources, of)
    if name == "mean":
        return of[sources[0]] if _same_width(node, sources) and not _reduces_channels(node) else None
    if name == "pad":
        return _padded(node, sources, of, labels)
    if node.target is operator.getitem:
        return of[sources[0]] if _keeps_channels(node, sources[0]) else None
    return None


def _name(node: fx.Node) -> str:
    if node.op == "call_method":
        return str(node.target)
    # max_pool2d and its like are wrapped twice; torchvision's functions keep their name
    for name in ("max_pool1d", "max_pool2d", "adaptive_max_pool2d"):
        if node.target in (getattr(functional, name), getattr(torch, name, None)):
            return name
    return getattr(node.target, "__name__", "")


def _same_width(node: fx.Node, sources: list[fx.Node]) -> bool:
    before, after = shape_of(sources[0]) if sources else (), shape_of(node)
    return len(sources) == 1 and len(before) > 1 and len(after) > 1 and before[1] == after[1]


def _meeting(
    node: fx.Node, sources: list[fx.Node], of: Mapping[fx.Node, np.ndarray], labels: "Labels"
) -> np.ndarray | None:
    """Two tensors channel by channel, or one and a number; anything else is not known."""
    if [s for s in node.all_input_nodes if s not in of]:
        return None  # a parameter, or a number computed from a shape
    shapes = [shape_of(s) for s in sources]
    if any(len(s) != len(shape_of(node)) or s[1] != shape_of(node)[1] for s in shapes):
        return None
    for other in sources[1:]:
        labels.join(of[sources[0]], of[other])
    return of[sources[0]]


def _concatenated(node: fx.Node, of: Mapping[fx.Node, np.ndarray]) -> np.ndarray | None:
    parts = node.args[0]
    dim = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
    if dim not in (1, 1 - len(shape_of(node))) or not isinstance(parts, list | tuple):
        return None
    labels = [of[part] for part in parts if isinstance(part, fx.Node) and part in of]
    return np.concatenate(labels) if len(labels) == len(parts) else None


def _reshaped(node: fx.Node, sources: list[fx.Node], of: Mapping[fx.Node, np.ndarray]) -> np.ndarray | None:
    """(N, C, H, W) to (N, C x H x W): each channel stands for H x W features, in order."""
    before, after = shape_of(sources[0]), shape_of(node)
    if len(before) < 2 or len(after) < 2 or before[0] != after[0]:
        return None
    if before[1] == after[1]:
        return of[sources[0]]
    pixels = int(np.prod(before[2:]))
    return np.repeat(of[sources[0]], pixels) if len(after) == 2 and after[1] == before[1] * pixels else None


def _padded(
    node: fx.Node, sources: list[fx.Node], of: Mapping[fx.Node, np.ndarray], labels: "Labels"
) -> np.ndarray | None:
    """Padding of pixels hands channels on; padding of channels adds some that must stay."""
    pads = node.kwargs.get("pad", node.args[1] if len(node.args) > 1 else ())
    rank = len(shape_of(node))
    if not isinstance(pads, list | tuple) or not all(isinstance(p, int) and p >= 0 for p in pads):
        return None
    at = 2 * (rank - 2)  # pads are given from the last dimension on
    before, after = (*pads, *[0] * 2 * rank)[at : at + 2]
    mode, value = node.kwargs.get("mode", "constant"), node.kwargs.get("value", None)
    if (before or after) and (len(node.args) > 2 or mode != "constant" or value):
        return None
    added = [labels.fresh(count) for count in (before, after)]
    for new in added:
        labels.fix(new, f"the zeros that {node.name!r} adds")
    return np.concatenate([added[0], of[sources[0]], added[1]])


def _reduces_channels(node: fx.Node) -> bool:
    dims = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
    dims = dims if isinstance(dims, list | tuple) else [dims]
    rank = len(shape_of(node.all_input_nodes[0]))
    return any(not isinstance(d, int) or d % rank < 2 for d in dims)


def _keeps_channels(node: fx.Node, source: fx.Node) -> bool:
    """x[:, :, ::2, ::2] and its like: the first two dimensions are taken whole."""
    index = node.args[1]
    whole = slice(None, None, None)
    same = len(shape_of(node)) == len(shape_of(source)) > 1
    return same and isinstance(index, tuple) and len(index) >= 2 and index[0] == whole and index[1] == whole
