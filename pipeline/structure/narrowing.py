"""Narrowing: a network's tensors made smaller, without the channel sets that are removed.

Two forms of the result: tensors for the network's own definition, and a program whose written-in sizes
follow.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from tersor.models.program import Program, Step, Tensor, Value
from tersor.pipeline.structure.capture import BATCH
from tersor.pipeline.structure.coupling import Coupling
from tersor.pipeline.structure.rules import RULES


def narrowed(module: nn.Module, coupling: Coupling, removed: np.ndarray) -> dict[str, torch.Tensor]:
    """The state dict without the channels of the sets `removed`; names as before, shapes smaller.

    Args:
        module: the network; not changed.
        coupling: of this module.
        removed: sets, int64; none of them fixed.
    """
    aliases = coupling.captured.aliases
    return {
        name: cut_tensor(tensor.detach(), coupling.tensors.get(aliases.get(name, name), []), removed)
        for name, tensor in module.state_dict().items()
    }


def narrowed_program(
    coupling: Coupling, tensors: Mapping[str, torch.Tensor], removed: np.ndarray
) -> tuple[Program, dict[str, torch.Tensor]]:
    """The captured program and its tensors without the sets `removed`.

    Args:
        tensors: all that the program reads, at full width.
    """
    cut = Cutting(coupling, removed)
    changes = {step.name: cut.changes(step) for step in coupling.captured.program.steps}
    small = {name: cut_tensor(tensors[name], coupling.tensors[name], removed) for name in tensors}
    return coupling.captured.program.changed({k: v for k, v in changes.items() if v}), small


@dataclass(frozen=True)
class Counted:
    """What a program costs for one image: parameters; multiply-adds of convolutions and linear layers."""

    parameters: int
    macs: int


def cost_of(coupling: Coupling, removed: np.ndarray) -> Counted:
    """Parameters and multiply-adds of the captured program without the sets `removed`.

    Multiply-adds count layers however they are called; products of two activations are left out, as in the
    literature.
    """
    cut, captured = Cutting(coupling, removed), coupling.captured
    program = captured.program
    parameters = sum(cut.size(Tensor(n)) for n in program.tensors() if n not in program.buffers)
    return Counted(parameters, sum(_macs(step, cut) for step in program.steps) // BATCH)


def _macs(step: Step, cut: "Cutting") -> int:
    """Multiply-adds of a step: its weight's elements for every position of the output's other dimensions."""
    if not step.operator.startswith("conv") and step.operator != "linear.default":
        return 0
    given = step.bound()
    transposed = step.operator.startswith("conv_transpose")
    seen = given["input"] if transposed else Value(step.name)
    channel = cut.sizes(given["weight"])[0]
    return cut.size(seen) // channel * cut.size(given["weight"]) if channel else 0


def cut_tensor(tensor: torch.Tensor, sets: list[np.ndarray | None], removed: np.ndarray) -> torch.Tensor:
    """A copy of a tensor without the positions whose set is removed."""
    for dim, of_dim in enumerate(sets):
        if of_dim is not None and tensor.shape[dim] == len(of_dim):
            keep = ~np.isin(of_dim, removed)
            if not keep.all():
                tensor = tensor.index_select(dim, torch.from_numpy(np.flatnonzero(keep)))
    return tensor.clone(memory_format=torch.contiguous_format)


class Cutting:
    """Which positions of the values of a program stay; what the rules ask (`rules.Cut`)."""

    def __init__(self, coupling: Coupling, removed: np.ndarray) -> None:
        self.coupling, self.removed = coupling, removed
        self.step: Step | None = None

    def changes(self, step: Step) -> dict[str, Any]:
        """The arguments of a step that change."""
        rule = RULES.get(step.operator)
        if rule is None or rule.narrow is None:
            return {}
        self.step = step
        given = step.bound()
        return {k: v for k, v in rule.narrow(self, given).items() if v != given[k]}

    def kept_dims(self, ref: Any) -> list[np.ndarray | None]:
        """For each dimension bool, one a position; None where it has no channels."""
        if isinstance(ref, Value):
            sets = self.coupling.values[ref.name]
        else:
            sets = self.coupling.tensors[ref.name] if isinstance(ref, Tensor) else []
        return [None if s is None else ~np.isin(s, self.removed) for s in sets]

    def sizes(self, ref: Any) -> list[int]:
        """The shape of a value or tensor without the positions that go."""
        kept = self.kept_dims(ref) or [None] * len(self.shape(ref))
        return [n if k is None else int(k.sum()) for n, k in zip(self.shape(ref), kept, strict=True)]

    def size(self, ref: Any) -> int:
        """Elements of a value or tensor without the positions that go."""
        return math.prod(self.sizes(ref))

    def loses(self, ref: Any) -> bool:
        """Whether a value or tensor loses any position."""
        return any(keep is not None and not keep.all() for keep in self.kept_dims(ref))

    def kept(self, ref: Any, dim: int) -> np.ndarray | None:
        """See `rules.Cut`."""
        dims = self.kept_dims(ref)
        return dims[dim] if dims else None

    def kept_out(self, dim: int) -> np.ndarray | None:
        """See `rules.Cut`."""
        assert self.step is not None
        return self.kept_dims(Value(self.step.name))[dim]

    def shape(self, ref: Any) -> tuple[int, ...]:
        """See `rules.Cut`."""
        return tuple(self.coupling.captured.shapes[ref.name])

    def shape_out(self) -> tuple[int, ...]:
        """See `rules.Cut`."""
        assert self.step is not None
        return tuple(self.coupling.captured.shapes[self.step.name])
