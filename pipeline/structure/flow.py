"""How labels of channels travel through a captured forward pass, operator by operator.

Every dimension of every value carries either a label for each of its positions or the reason why none of them
can go. A rule (rules.py) says for one operator which positions of what it reads and of what it gives are one.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tersor.models.program import Step, Tensor, Value, leaves
from tersor.pipeline.structure.capture import Captured
from tersor.pipeline.structure.labels import Entry, Labels

Dims = list[Entry]
"""The entries of a tensor's dimensions, in order."""
PLAIN = ""
"""A dimension of images, pixels or tokens: it has no channels."""


class Flow:
    """The labels of all values and tensors so far, and what rules may do with them.

    decisions: kind of choice -> which of its alternatives to take (rules ask with `choose`).
    """

    def __init__(self, captured: Captured, decisions: Mapping[Any, int]) -> None:
        self.captured, self.decisions = captured, decisions
        self.labels = Labels()
        self.of: dict[str, Any] = {}
        self.tensors: dict[str, list[Entry | None]] = {
            name: [PLAIN if size == 1 else None for size in tensor.shape]
            for name, tensor in captured.tensors.items()
        }
        self.alternatives: dict[Any, int] = {}
        self.layer_steps: dict[str, tuple[Step, Entry, Entry]] = {}
        self.parts: list[np.ndarray] = []
        self.step: Step | None = None
        self._users: dict[str, list[str]] = {}
        self._operators = {step.name: step.operator for step in captured.program.steps}
        for reader in captured.program.steps:
            for leaf in leaves(reader.arguments):
                if isinstance(leaf, Value):
                    self._users.setdefault(leaf.name, []).append(reader.name)

    def shape(self, ref: Any) -> tuple[int, ...]:
        """The shape of a Value or Tensor, () for numbers."""
        return tuple(self.captured.shapes[ref.name]) if isinstance(ref, Value | Tensor) else ()

    def out_shape(self) -> tuple[int, ...]:
        """The shape of the present step's result."""
        assert self.step is not None
        return tuple(self.captured.shapes[self.step.name])

    def dims(self, ref: Any) -> Dims:
        """The entries of what a step reads; those of a parameter that nothing met yet get fresh labels."""
        if isinstance(ref, Value):
            return list(self.of[ref.name])
        if not isinstance(ref, Tensor):
            return []
        for at, entry in enumerate(self.tensors[ref.name]):
            if entry is None:
                self.tensors[ref.name][at] = self.labels.fresh(self.shape(ref)[at])
        return list(self.tensors[ref.name])  # type: ignore[arg-type]

    def meet(self, ref: Any, dim: int, entry: Entry) -> Entry:
        """Dimension `dim` of a tensor is the same channels as `entry`; returns what it is then."""
        if isinstance(ref, Tensor) and self.tensors[ref.name][dim] is None:
            if isinstance(entry, np.ndarray) and len(entry) != self.shape(ref)[dim]:
                entry = self.fixed(entry, self.here("reads another number of channels"))
            self.tensors[ref.name][dim] = entry
            return entry
        return self.join(self.dims(ref)[dim], entry)

    def join(self, one: Entry, other: Entry, why: str = "") -> Entry:
        """Two dimensions meet position by position; what is fixed in one is in the other."""
        if isinstance(one, np.ndarray) and isinstance(other, np.ndarray) and len(one) == len(other):
            self.labels.join(one, other)
            return one
        reason = next((e for e in (one, other) if isinstance(e, str) and e), "") or why
        reason = reason or self.here("meets a dimension without channels")
        fixed = [self.fixed(e, reason) for e in (one, other) if isinstance(e, np.ndarray)]
        return fixed[0] if fixed else (one or other)

    def fixed(self, entry: Entry, why: str) -> str:
        """No position of it can go any more."""
        if isinstance(entry, np.ndarray):
            self.labels.fix(entry, why)
            return why
        return entry or why

    def plain(self, entry: Entry, why: str = "") -> str:
        """A dimension that the operator mixes or cuts: channels in it cannot go."""
        if isinstance(entry, np.ndarray):
            return self.fixed(entry, why or self.here())
        return PLAIN

    def tie(self, table: np.ndarray, keep: int) -> np.ndarray:
        """Labels (any shape) that go together along every axis but `keep`; returns those along it."""
        moved = np.moveaxis(table, keep, 0).reshape(table.shape[keep], -1)
        for column in range(1, moved.shape[1]):
            self.labels.join(moved[:, 0], moved[:, column])
        return moved[:, 0]

    def vector(self, entry: Entry, size: int) -> np.ndarray:
        """The labels of an entry; fixed ones where it has none."""
        if isinstance(entry, np.ndarray):
            return entry
        labels = self.labels.fresh(size)
        self.labels.fix(labels, entry or self.here("has no channels there"))
        return labels

    def choose(self, kind: Any, count: int, default: int) -> int:
        """Which of `count` alternatives to take for choices of this kind."""
        self.alternatives[kind] = max(count, self.alternatives.get(kind, 0))
        return min(self.decisions.get(kind, default), count - 1)

    def here(self, what: str = "") -> str:
        """The operator at work and the module it stands in, in words."""
        assert self.step is not None
        place = self.captured.places.get(self.step.name, "")
        name = self.step.operator.removesuffix(".default")
        return f"operator {name!r}{f' in {place!r}' if place else ''}{f' {what}' if what else ''}"

    def next_operators(self, name: str, depth: int = 2) -> tuple[str, ...]:
        """Operators of the first reader of a value, and of that one's first reader."""
        found = []
        while depth and (readers := self._users.get(name)):
            name, depth = readers[0], depth - 1
            found.append(self._operators[name])
        return tuple(found)

    def weighted(self, weight: Any, inputs: Entry, outputs: Entry) -> None:
        """Note a layer with a weight: what it reads and gives."""
        name = self.origin(weight)
        if name is None or name in self.layer_steps:
            return
        assert self.step is not None
        self.layer_steps[name] = self.step, inputs, outputs

    def origin(self, ref: Any) -> str | None:
        """The parameter that a weight is or is made of."""
        if isinstance(ref, Tensor):
            return ref.name
        steps = {s.name: s for s in self.captured.program.steps}
        seen: list[Any] = [ref]
        while seen:
            one = seen.pop(0)
            if isinstance(one, Tensor):
                return one.name
            if isinstance(one, Value) and one.name in steps:
                seen += [r for r in leaves(steps[one.name].arguments) if isinstance(r, Value | Tensor)]
        return None


def groups_of(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Dimensions of two shapes of equal size, in the smallest groups with equal products.

    Dimensions of size 1 are in no group.
    """
    ins = [i for i, size in enumerate(before) if size != 1]
    outs = [i for i, size in enumerate(after) if size != 1]
    groups = []
    while ins or outs:
        left, right = [ins.pop(0)], [outs.pop(0)]
        while (a := int(np.prod([before[i] for i in left]))) != (
            b := int(np.prod([after[i] for i in right]))
        ):
            if a < b:
                left.append(ins.pop(0))
            else:
                right.append(outs.pop(0))
        groups.append((left, right))
    return groups
