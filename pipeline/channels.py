"""Which layers' output channels may not be removed, read off the traced graph.

Nodes between which channels pass one to one share a "channel space": a convolution opens a new one;
BatchNorm, ReLU, pooling, sums and products hand it on. A space is frozen when something outside fixes its
width: the network's inputs and outputs, and operations that change the number of channels by a number
written into them (the zero padding of option A shortcuts).
"""

import torch
from torch import fx, nn

from tersor.pipeline.nni_room import propagated

CONCATENATIONS = (torch.cat, torch.concat, torch.stack)


def frozen_layers(module: nn.Module, example: torch.Tensor) -> set[str]:
    """Names of Conv and Linear layers whose width something outside fixes.

    Args:
        module: the network, in eval mode; not changed.
        example: an input (N, C, H, W), float32.

    Raises:
        BadInput: the network cannot be traced.
    """
    traced = propagated(module, example)
    spaces = _Spaces()
    frozen: list[fx.Node] = []
    layers: dict[str, fx.Node] = {}
    for node in traced.graph.nodes:
        layer = traced.get_submodule(str(node.target)) if node.op == "call_module" else None
        if node.op in ("placeholder", "output"):
            frozen += [node, *node.all_input_nodes]
        elif isinstance(layer, nn.Conv2d | nn.Linear) and getattr(layer, "groups", 1) == 1:
            layers[str(node.target)] = node
        elif node.target not in CONCATENATIONS:
            frozen += _hand_on(node, spaces)
    fixed = {spaces.of(node) for node in frozen}
    return {name for name, node in layers.items() if spaces.of(node) in fixed}


def _hand_on(node: fx.Node, spaces: "_Spaces") -> list[fx.Node]:
    """Join a node with its inputs where the channels are the same; else return all of them as frozen."""
    changed: list[fx.Node] = []
    for source in node.all_input_nodes:
        before, after = _shape(source), _shape(node)
        if len(before) < 2 or len(after) < 2:
            continue
        flattened = len(after) < len(before)
        if before[1] == after[1] or flattened:
            spaces.join(source, node)
        else:
            changed += [source, node]
    return changed


def _shape(node: fx.Node) -> tuple[int, ...]:
    shape = getattr(node.meta.get("tensor_meta"), "shape", ())
    return tuple(shape)


class _Spaces:
    """Disjoint sets of nodes (union-find)."""

    def __init__(self) -> None:
        self.parent: dict[fx.Node, fx.Node] = {}

    def of(self, node: fx.Node) -> fx.Node:
        """The representative of a node's set."""
        while (parent := self.parent.get(node, node)) is not node:
            node = parent
        return node

    def join(self, one: fx.Node, other: fx.Node) -> None:
        """Make two nodes' sets one."""
        self.parent[self.of(one)] = self.of(other)
