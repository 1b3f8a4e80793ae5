"""Which channels of which layers can only be removed together, read off the traced graph.

Every output channel of a convolution or linear layer gets a label of its own. Labels travel through the
graph with the channels: BatchNorm, activations and pooling hand them on, a concatenation puts them one
after another, `flatten` repeats each for its pixels, a zero padding of channels adds fixed ones. Where two
tensors meet channel by channel (residual sums, squeeze-excite products, a layer that is called twice)
their labels become one. What is left are sets of channels that go together; a set is fixed when something
outside decides its width: the inputs, the outputs, an operation not known here.

Grouped convolutions lose whole groups, with the channels they read: a depthwise one is the case of one
channel a group.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import fx, nn

from tersor.pipeline.structure.graph import propagated, shape_of
from tersor.pipeline.structure.labels import Labels
from tersor.pipeline.structure.rules import flows, is_norm


@dataclass(frozen=True)
class Coupling:
    """Channel sets of a network; a set is an integer from 0.

    outputs: layer -> the set of each of its output channels, int64 (out_channels,); Conv, Linear and
        the norms with a value per channel.
    inputs: Conv and Linear layer -> the set of each of its input channels, int64 (in_channels,).
    fixed: set -> why it cannot be removed.
    """

    outputs: Mapping[str, np.ndarray]
    inputs: Mapping[str, np.ndarray]
    fixed: Mapping[int, str]

    def layers(self) -> list[str]:
        """Conv and Linear layers, in the order they are first called."""
        return list(self.inputs)

    def free(self, layer: str) -> np.ndarray:
        """The sets of a layer's output channels that could be removed, each once, in channel order."""
        sets = self.outputs[layer]
        sets = sets[np.sort(np.unique(sets, return_index=True)[1])]
        return sets[[s not in self.fixed for s in sets.tolist()]]

    def spaces(self, layers: Sequence[str]) -> list[list[str]]:
        """Lists of layers whose channels hang together; layers without a free set are left out."""
        spaces: list[tuple[set[int], list[str]]] = []
        for layer in layers:
            free_sets = set(self.free(layer).tolist())
            if not free_sets:
                continue
            near = [entry for entry in spaces if entry[0] & free_sets]
            for entry in near:
                spaces.remove(entry)
            sets = free_sets.union(*(entry[0] for entry in near))
            spaces.append((sets, [name for entry in near for name in entry[1]] + [layer]))
        order = {layer: at for at, layer in enumerate(layers)}
        return sorted(
            (sorted(names, key=order.__getitem__) for _, names in spaces), key=lambda n: order[n[0]]
        )

    def keep(self, layer: str, removed: np.ndarray) -> np.ndarray:
        """bool (out_channels,): which output channels of a layer stay when the sets `removed` go."""
        return ~np.isin(self.outputs[layer], removed)

    def keep_inputs(self, layer: str, removed: np.ndarray) -> np.ndarray:
        """bool (in_channels,): which input channels of a layer stay when the sets `removed` go."""
        return ~np.isin(self.inputs[layer], removed)


def couple(module: nn.Module, example: torch.Tensor) -> Coupling:
    """Find the channel sets of a network.

    Args:
        module: the network, in eval mode; not changed.
        example: an input (N, C, H, W), float32.

    Raises:
        BadInput: the network cannot be traced.
    """
    traced = propagated(module, example)
    walk = _Walk()
    for node in traced.graph.nodes:
        walk.visit(node, traced.get_submodule(str(node.target)) if node.op == "call_module" else None)
    return walk.result()


class _Walk:
    """Goes through the graph node by node, in order."""

    def __init__(self) -> None:
        self.labels = Labels()
        self.of: dict[fx.Node, np.ndarray] = {}
        self.outputs: dict[str, np.ndarray] = {}
        self.inputs: dict[str, np.ndarray] = {}

    def visit(self, node: fx.Node, layer: nn.Module | None) -> None:
        """Give the node's result its labels."""
        if node.op == "placeholder":
            self.of[node] = self._fixed(node, "the network's inputs")
        elif node.op == "output":
            self._fix_all(node, "the network's outputs")
        elif "tensor_meta" not in node.meta:
            return  # a size, a flag: whoever computes with a number of channels is not known below
        elif isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d) and not layer.transposed:
            self._weighted(node, layer.out_channels, layer.groups)
        elif isinstance(layer, nn.Linear) and len(shape_of(node)) == 2:
            self._weighted(node, layer.out_features, 1)
        elif layer is not None and is_norm(layer):
            self._norm(node)
        elif (labels := flows(node, layer, self.of, self.labels)) is not None:
            self.of[node] = labels
        else:
            self._unknown(node)

    def result(self) -> Coupling:
        """The sets, numbered from 0 in the order of their first label."""
        roots = np.array([self.labels.root(label) for label in range(len(self.labels.parent))], np.int64)
        number = {root: at for at, root in enumerate(np.unique(roots).tolist())}
        fixed: dict[int, str] = {}
        for label, why in self.labels.reasons.items():
            fixed.setdefault(number[int(roots[label])], why)

        def sets(table: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            """Labels replaced by the numbers of their sets."""
            return {k: np.array([number[r] for r in roots[v].tolist()], np.int64) for k, v in table.items()}

        return Coupling(sets(self.outputs), sets(self.inputs), fixed)

    def _weighted(self, node: fx.Node, width: int, groups: int) -> None:
        name, read = str(node.target), self._source(node)
        if name in self.outputs:  # called again: the same channels in both places
            self.labels.join(self.inputs[name], read)
        else:
            self.outputs[name], self.inputs[name] = self.labels.fresh(width), read
        self.of[node] = self.outputs[name]
        if groups > 1:
            for ins, outs in zip(read.reshape(groups, -1), self.of[node].reshape(groups, -1), strict=True):
                together = np.concatenate([ins, outs])
                self.labels.join(together[:-1], together[1:])

    def _norm(self, node: fx.Node) -> None:
        name, read = str(node.target), self._source(node)
        if name in self.outputs:
            self.labels.join(self.outputs[name], read)
        self.outputs[name] = self.of[node] = read

    def _source(self, node: fx.Node) -> np.ndarray:
        """The labels of what a layer reads."""
        (source,) = node.all_input_nodes
        if source not in self.of:
            self.of[source] = self._fixed(source, f"operation {source.name!r}")
        return self.of[source]

    def _unknown(self, node: fx.Node) -> None:
        """What it does to channels is not known, so nothing before or after it may change."""
        why = f"{'layer' if node.op == 'call_module' else 'operation'} {str(node.target)!r}"
        self._fix_all(node, why)
        if len(shape_of(node)) >= 2:
            self.of[node] = self._fixed(node, why)

    def _fix_all(self, node: fx.Node, why: str) -> None:
        for source in node.all_input_nodes:
            if source in self.of:
                self.labels.fix(self.of[source], why)

    def _fixed(self, node: fx.Node, why: str) -> np.ndarray:
        shape = shape_of(node)
        labels = self.labels.fresh(shape[1] if len(shape) > 1 else 1)
        self.labels.fix(labels, why)
        return labels
