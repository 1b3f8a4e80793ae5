"""Narrowing: a network's tensors made smaller, without the channel sets that are removed.

Two forms of the result: tensors for the network's own definition, and a program whose written-in sizes
follow.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from tersor.models.program import Program, Step, Tensor, Value
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
