"""Remove output channels of one layer exactly: its own rows, and the inputs of the layers that read them.

What a channel touches is read off the traced graph. Between a layer and its readers BatchNorm, depthwise
convolutions, activations, pooling and flattening hand channels on; a sum, a concatenation or the network's
output ties them to something else, and such layers are left alone here (the stage `structure` knows groups).
"""

import math
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from tersor.models.errors import BadInput
from tersor.models.network import Network
from tersor.pipeline.nni_room import propagated

CHANNELS = (nn.Conv2d, nn.Linear)


@dataclass(frozen=True)
class Reader:
    """A layer whose inputs are the channels of another.

    per_channel: how many consecutive inputs one channel feeds; 1, or height x width behind a flatten.
    """

    name: str
    per_channel: int


@dataclass(frozen=True)
class Wiring:
    """What one layer's output channels touch.

    layer: a Conv2d or Linear layer of `width` output channels.
    rows: the layers with one row a channel: itself, the BatchNorms and depthwise convolutions after it.
    readers: the layers that read the channels, at least one.
    """

    layer: str
    width: int
    rows: tuple[str, ...]
    readers: tuple[Reader, ...]


class _Tied(Exception):
    """The channels cannot be removed alone; the text is the reason, for people."""


def wirings(network: Network) -> tuple[dict[str, Wiring], dict[str, str]]:
    """What each Conv2d and Linear layer's channels touch, in the order of the definition.

    Returns:
        layer -> wiring, for the layers whose channels can be removed alone; layer -> reason, for the others.

    Raises:
        BadInput: the network cannot be traced.
    """
    traced = propagated(network.module(), torch.zeros(2, *network.input_shape))
    calls: dict[str, list[fx.Node]] = {}
    for node in traced.graph.nodes:
        if node.op == "call_module":
            calls.setdefault(str(node.target), []).append(node)
    found: dict[str, Wiring] = {}
    tied: dict[str, str] = {}
    for name, layer in traced.named_modules():
        if isinstance(layer, CHANNELS) and not _depthwise(layer):
            try:
                found[name] = _follow(traced, name, calls)
            except _Tied as reason:
                tied[name] = str(reason)
    return found, tied


def _follow(traced: fx.GraphModule, name: str, calls: dict[str, list[fx.Node]]) -> Wiring:
    """Walk from a layer to its readers."""
    layer = traced.get_submodule(name)
    if len(calls.get(name, ())) != 1:
        raise _Tied(f"it is called {len(calls.get(name, ()))} times")
    if getattr(layer, "groups", 1) != 1:
        raise _Tied("it is a grouped convolution")
    rows, readers = [name], list[Reader]()
    todo = [(calls[name][0], 1)]
    while todo:
        node, per_channel = todo.pop(0)
        for user in node.users:
            target = traced.get_submodule(str(user.target)) if user.op == "call_module" else None
            if isinstance(target, CHANNELS) and not _depthwise(target):
                _check_reader(node, user, target, calls)
                readers.append(Reader(str(user.target), per_channel))
                continue
            if target is not None and any(True for _ in target.parameters()):
                _check_rows(user, target, per_channel)
                rows.append(str(user.target))
            todo.append((user, per_channel * _handed_on(node, user)))
    weight = layer.weight
    assert isinstance(weight, Tensor)
    if not readers or _shape(calls[name][0])[1:2] != (weight.shape[0],):
        raise _Tied("no layer reads its channels")
    return Wiring(name, weight.shape[0], tuple(rows), tuple(readers))


def _check_reader(node: fx.Node, user: fx.Node, target: nn.Module, calls: dict[str, list[fx.Node]]) -> None:
    if getattr(target, "groups", 1) != 1:
        raise _Tied(f"the grouped convolution {user.target!r} reads its channels")
    if len(calls[str(user.target)]) != 1:
        raise _Tied(f"layer {user.target!r}, which reads its channels, is called more than once")
    if isinstance(target, nn.Linear) and len(_shape(node)) != 2:
        raise _Tied(f"the linear layer {user.target!r} reads along another axis")


def _check_rows(user: fx.Node, target: nn.Module, per_channel: int) -> None:
    """A layer on the way must have exactly one row a channel."""
    if not isinstance(target, nn.modules.batchnorm._BatchNorm | nn.Conv2d) or per_channel != 1:
        raise _Tied(f"{type(target).__name__} {user.target!r} reads its channels")


def _handed_on(node: fx.Node, user: fx.Node) -> int:
    """How many values of `user` along axis 1 come of one of `node`: 1, or more behind a flatten."""
    if user.op == "output":
        raise _Tied("its channels are the network's outputs")
    if len(user.all_input_nodes) != 1:
        raise _Tied(f"its channels meet those of other layers in {user.name!r}")
    before, after = _shape(node), _shape(user)
    if len(before) >= 2 and len(after) >= 2:
        if len(after) == len(before) and before[1] == after[1]:
            return 1
        if len(after) == 2 and after[1] == math.prod(before[1:]):
            return math.prod(before[2:])
    raise _Tied(f"{user.name!r} does not hand its channels on one to one")


def _shape(node: fx.Node) -> tuple[int, ...]:
    return tuple(getattr(node.meta.get("tensor_meta"), "shape", ()))


def _depthwise(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels == layer.out_channels > 1


def remove_channels(network: Network, wired: Wiring, channels: Collection[int]) -> Network:
    """The network without some channels of one layer; everything else keeps its values.

    Args:
        network: the one `wired` was read off; its weights are taken as dense.
        channels: numbers of the output channels that go, 0 to width - 1.

    Raises:
        BadInput: a number is out of range, or none would be left.
    """
    check_channels(wired, channels)
    keep = torch.tensor([c for c in range(wired.width) if c not in set(channels)])
    tensors = dict(network.tensors)
    for name in wired.rows:
        for key in ("weight", "bias", "running_mean", "running_var"):
            if (tensor := tensors.get(f"{name}.{key}")) is not None:
                tensors[f"{name}.{key}"] = tensor[keep].clone()
    for reader in wired.readers:
        weight = tensors[f"{reader.name}.weight"]
        tensors[f"{reader.name}.weight"] = weight[:, inputs_of(keep, reader)].clone()
    return network.with_tensors(tensors, forms={})


def inputs_of(channels: Tensor, reader: Reader) -> Tensor:
    """The reader's inputs, int64, that `channels` (int64, (n,)) feed, in their order."""
    return (channels[:, None] * reader.per_channel + torch.arange(reader.per_channel)).flatten()


def check_channels(wired: Wiring, channels: Collection[int]) -> None:
    """Check that `channels` can go.

    Raises:
        BadInput: a number is out of range, or none would be left.
    """
    wrong = [c for c in channels if not 0 <= c < wired.width]
    if wrong or len(set(channels)) >= wired.width:
        raise BadInput(
            f"these channels cannot be removed from layer {wired.layer!r}",
            got=f"channel {wrong[0]}" if wrong else f"{len(set(channels))} channels, all that there are",
            wanted=f"numbers from 0 to {wired.width - 1}, at most {wired.width - 1} of them",
        )
