"""Which channels of which layers can only be removed together, read off the captured graph.

Labels travel through the operators (flow.py, rules.py). Where two tensors meet position by position
(residual sums, squeeze-excite products, a layer that is called twice) their labels become one. What is
left are sets of positions of tensors that go together; a set is fixed when something outside decides its
width: the inputs, the outputs, an operation that is not known.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn

from tersor.models.program import Tensor
from tersor.pipeline.structure.capture import Captured, capture
from tersor.pipeline.structure.flow import Flow
from tersor.pipeline.structure.walk import run

MOST_TRIALS = 12
"""Choices between ways to split channels that are tried, at most."""


@dataclass(frozen=True)
class Kind:
    """What a layer with a weight is: linear or a convolution, in how many groups, each of how many inputs."""

    linear: bool
    groups: int
    group_inputs: int

    @property
    def depthwise(self) -> bool:
        """Whether each output reads one channel: the layer has no channels of its own."""
        return self.groups > 1 and self.group_inputs == 1


@dataclass(frozen=True, eq=False)
class Coupling:
    """Channel sets of a network; a set is an integer from 0.

    outputs: layer -> the set of each of its output channels, int64 (out_channels,); all that have a weight,
    and
        the norms with a value per channel.
    inputs: layer with a weight -> the set of each of its input channels, int64 (in_channels,).
    fixed: set -> why it cannot be removed.
    tensors: tensor -> for each of its dimensions the set of every position, None where none can go.
    values: the same of every value of the program; a list of those where an operator gives several.
    kinds: of every layer with a weight.
    parts: sets of which one has to stay, each a dimension of some value.
    """

    outputs: Mapping[str, np.ndarray]
    inputs: Mapping[str, np.ndarray]
    fixed: Mapping[int, str]
    captured: Captured = field(repr=False)
    tensors: Mapping[str, list[np.ndarray | None]] = field(repr=False)
    values: Mapping[str, Any] = field(repr=False)
    kinds: Mapping[str, Kind] = field(repr=False)
    parts: Sequence[np.ndarray] = field(default=(), repr=False)

    def layers(self) -> list[str]:
        """Layers with a weight, in the order they are first called."""
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

    @cached_property
    def norms(self) -> frozenset[str]:
        """Of `outputs` those that hold one value a channel."""
        return frozenset(self.outputs) - frozenset(self.inputs)


def couple(module: nn.Module, example: torch.Tensor) -> Coupling:
    """Find the channel sets of a network.

    Args:
        module: the network, in eval mode; not changed.
        example: an input (2, C, H, W), float32.

    Raises:
        BadInput: the forward pass cannot be exported.
    """
    return couple_captured(capture(module, example))


def couple_captured(captured: Captured) -> Coupling:
    """Find the channel sets of a captured forward pass.

    Where a dimension is split into factors (heads of an attention, groups of a convolution) the channels
    of one of them can go; each kind of choice is tried both ways, and what frees more channels is taken.
    """
    decisions: dict[Any, int] = {}
    best = run(captured, decisions)
    most, trials = _freed(best), 0
    for kind, count in list(best.alternatives.items()):
        taken = decisions.get(kind)
        for way in range(count):
            if trials == MOST_TRIALS:
                break
            trials += 1
            other = run(captured, {**decisions, kind: way})
            if (freed := _freed(other)) > most:
                best, most, taken = other, freed, way
        if taken is not None:
            decisions[kind] = taken
    return _coupling(best)


def _freed(flow: Flow) -> int:
    """Channels of layers that could go."""
    fixed = {flow.labels.root(label) for label in flow.labels.reasons}
    count = 0
    for _, _, out in flow.layer_steps.values():
        if isinstance(out, np.ndarray):
            roots = flow.labels.roots(out)
            count += sum(r not in fixed for r in roots.tolist()) if len(np.unique(roots)) > 1 else 0
    return count


def _coupling(flow: Flow) -> Coupling:
    """The sets, numbered from 0 in the order of their first label."""
    layers: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    kinds: dict[str, Kind] = {}
    for weight, (step, inputs, outs) in flow.layer_steps.items():
        given, name = step.bound(), _layer_of(weight)
        linear, groups = step.operator == "linear.default", given.get("groups", 1)
        shape, read = flow.captured.shapes[step.name], flow.shape(given["input"])
        channel = -1 if linear else 1 - (len(read) < len(flow.shape(given["weight"])))
        layers[name] = flow.vector(inputs, read[channel]), flow.vector(outs, shape[channel])
        kinds[name] = Kind(linear, groups, read[channel] // groups)
    norms: dict[str, np.ndarray] = {}
    for step in flow.captured.program.steps:
        if step.operator.partition(".")[0] in NORMS or step.operator == "prelu.default":
            held = [
                v
                for k, v in step.bound().items()
                if k in ("weight", "running_mean") and isinstance(v, Tensor)
            ]
            for tensor in held[:1]:
                entry = flow.tensors[tensor.name][0]
                if isinstance(entry, np.ndarray):
                    norms[tensor.name.rpartition(".")[0] or tensor.name] = entry
    flow.parts.extend(e for e in (d for t in flow.tensors.values() for d in t) if isinstance(e, np.ndarray))
    roots = flow.labels.roots(np.arange(len(flow.labels.parent)))
    numbers = np.unique(roots, return_inverse=True)[1].astype(np.int64)
    fixed: dict[int, str] = {}
    for label, why in flow.labels.reasons.items():
        fixed.setdefault(int(numbers[label]), why)

    def sets(entry: Any) -> Any:
        """Labels as sets; None for what has none."""
        if isinstance(entry, list):
            return [sets(e) for e in entry]
        return numbers[entry] if isinstance(entry, np.ndarray) else None

    ordered = {name: sets(outs) for name, (_, outs) in layers.items()}
    return Coupling(
        ordered | {name: sets(entry) for name, entry in norms.items() if name not in ordered},
        {name: sets(ins) for name, (ins, _) in layers.items()},
        fixed,
        flow.captured,
        {name: sets(dims) for name, dims in flow.tensors.items()},
        {name: sets(dims) for name, dims in flow.of.items()},
        kinds,
        [sets(part) for part in flow.parts],
    )


NORMS = frozenset(
    {"batch_norm", "instance_norm", "_native_batch_norm_legit_no_training", "group_norm", "layer_norm"}
)


def _layer_of(weight: str) -> str:
    """The layer of a weight: its module, or the parameter itself where it has another name."""
    return weight.removesuffix(".weight")
