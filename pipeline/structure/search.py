"""Choose widths by measured latency: keep as much importance as a budget allows.

As HALP (Shen et al., arXiv:2110.10811) does for NVIDIA GPUs: importance from the pruner, latency of every
layer at every pair of widths from measurement. The best widths for a price of a millisecond are found exactly
by a dynamic programme over the spaces of channels (elimination.py), the price by bisection; then the real
network is built, exported and timed, and the prediction corrected by what was seen.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from tersor.errors import BadInput
from tersor.export.timing.layer_timing import LayerShape
from tersor.pipeline.structure.coupling import Coupling
from tersor.pipeline.structure.elimination import Table, minimise, total
from tersor.pipeline.structure.staircase import layer_shapes, with_widths
from tersor.pipeline.structure.widths import Pruning, Space, importances

Prices = Callable[[set[LayerShape]], Mapping[LayerShape, float]]
"""What a layer of each shape costs: milliseconds, multiply-adds or parameters."""
LARGEST_JOINT_TABLE = 100_000
"""Combinations; a layer that reads more spaces than this allows is taken as a sum over them."""
PRICES = (1e-6, 1e6)
"""Of the whole network's cost, in its importance: bounds of the bisection."""
BISECTIONS = 50


@dataclass(frozen=True)
class Problem:
    """Widths to choose.

    kept: space -> how many sets each choice keeps, ascending; the last keeps all.
    values: space -> the importance kept by each choice, as a fraction of the network's.
    costs: tables over the choices, in the price's unit.
    activations: space -> output elements of one image that each choice adds, as a fraction of all.
    """

    kept: list[np.ndarray]
    values: list[np.ndarray]
    costs: list[Table]
    activations: list[np.ndarray]

    def full(self) -> list[int]:
        """The choice of every space that keeps everything."""
        return [len(sizes) - 1 for sizes in self.kept]

    def value(self, choice: Sequence[int]) -> float:
        """Importance kept, 0 to 1."""
        return float(sum(values[at] for values, at in zip(self.values, choice, strict=True)))


def pose(pruning: Pruning, prices: Prices) -> Problem:
    """Set up the choice: widths that are multiples of `search.step`, what they keep and what they cost."""
    settings, coupling, spaces = pruning.settings, pruning.coupling, pruning.spaces
    assert settings.search is not None
    sizes = [_sizes(space, settings.search.step, settings.max_cut) for space in spaces]
    values = _values(pruning, sizes)
    shapes = layer_shapes(pruning.module, pruning.network.input_shape)
    layers = [_layer(name, shapes[name], coupling, spaces) for name in coupling.inputs if name in shapes]
    plans = [(layer, scope) for layer in layers for scope in layer.scopes([len(k) for k in sizes])]
    asked: set[LayerShape] = set()
    for layer, scope in plans:
        asked |= {layer.at(scope, c, sizes) for c in product(*(range(len(sizes[v])) for v in scope))}
    price = prices(asked)
    costs: list[Table] = []
    for layer, scope in plans:
        table = np.empty([len(sizes[v]) for v in scope])
        for choice in np.ndindex(table.shape):
            table[choice] = (
                price[layer.at(scope, choice, sizes)] * layer.calls * layer.part(scope, choice, sizes)
            )
        costs.append((scope, table))
    return Problem(sizes, values, costs, _activations(layers, shapes, sizes))


def solve(problem: Problem, budget: float, extra: Sequence[Table] = ()) -> list[int]:
    """The choice that keeps the most importance at a cost of at most `budget`.

    Args:
        extra: further cost tables, in the same unit.

    Raises:
        BadInput: even the narrowest widths cost more; the least reachable is told.
    """
    costs = [*problem.costs, *extra]
    domains = [len(sizes) for sizes in problem.kept]
    unit = total(costs, problem.full()) or 1.0
    values: list[Table] = [((at,), -v) for at, v in enumerate(problem.values)]

    def at_price(price: float) -> list[int]:
        """The best choice when the whole network's cost is worth `price` of its importance."""
        return minimise(domains, values + [(names, table * (price / unit)) for names, table in costs])

    low, high = np.log(PRICES)
    best = at_price(float(np.exp(high)))
    if total(costs, best) > budget:
        raise BadInput(
            "no widths are within the budget",
            got=f"a budget of {budget:.6g}",
            wanted=f"at least {total(costs, best):.6g}, what the narrowest widths cost",
            where="stage `structure`, setting `search`",
            todo="Raise the budget, or max_cut, or let more layers be pruned",
        )
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        choice = at_price(float(np.exp(middle)))
        if total(costs, choice) <= budget:
            best, high = choice, middle
        else:
            low = middle
    return _filled(problem, costs, best, budget)


def _filled(problem: Problem, costs: Sequence[Table], choice: list[int], budget: float) -> list[int]:
    """Widen what still fits: prices reach only the corners of the trade-off."""
    while True:
        now, steps = total(costs, choice), []
        for at, sizes in enumerate(problem.kept):
            for up in range(choice[at] + 1, len(sizes)):
                wider = [*choice[:at], up, *choice[at + 1 :]]
                cost = total(costs, wider)
                if cost <= budget:
                    gain = problem.values[at][up] - problem.values[at][choice[at]]
                    steps.append((gain / max(cost - now, 1e-9 * budget), wider))
        if not steps:
            return choice
        choice = max(steps)[1]


def _sizes(space: Space, step: int, max_cut: float) -> np.ndarray:
    """Sizes to choose from, in sets kept: widths that are multiples of `step`, and all."""
    fixed = space.width - len(space.sets) * space.per_set
    least = max(1, int(np.ceil((1 - max_cut) * len(space.sets) - 1e-9)))
    widths = range(step, space.width, step)
    multiples = {(width - fixed) // space.per_set for width in widths if (width - fixed) % space.per_set == 0}
    return np.array(sorted({k for k in multiples if least <= k < len(space.sets)} | {len(space.sets)}))


def _values(pruning: Pruning, sizes: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Importance kept by each choice: Taylor's is in units of the loss, norms count by share."""
    sums, in_units_of_the_loss = [], pruning.settings.pruner == "taylor"
    for space, counts in zip(pruning.spaces, sizes, strict=True):
        largest = np.sort(importances(space, pruning.scores, pruning.coupling))[::-1]
        summed = np.concatenate([[0.0], np.cumsum(largest)])
        sums.append(summed[counts] / (1.0 if in_units_of_the_loss else summed[-1] or 1.0))
    whole = sum(values[-1] for values in sums) or 1.0
    return [values / whole for values in sums]


def _activations(
    layers: Sequence["_Layer"], shapes: Mapping[str, tuple[LayerShape, int]], sizes: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """Output elements by choice, as fractions of all; what no space decides is shared out evenly."""
    elements = [np.zeros(len(k)) for k in sizes]
    whole = 0.0
    for layer in layers:
        shape = shapes[layer.name][0]
        whole += shape.activations * layer.calls
        for at, channels in layer.outs.items():
            elements[at] += channels * sizes[at] * shape.pixels * layer.calls
    rest = 1 - sum(f[-1] for f in elements) / whole
    return [f / whole + rest / len(sizes) for f in elements]


@dataclass(frozen=True)
class _Layer:
    """A layer's widths as functions of the choices.

    ins, outs: space -> channels of the layer in each of its sets; base_in, base_out: channels that stay.
    """

    name: str
    shape: LayerShape
    calls: int
    ins: dict[int, float]
    outs: dict[int, float]
    base_in: int
    base_out: int

    def scopes(self, domains: Sequence[int]) -> list[tuple[int, ...]]:
        """The spaces that decide its cost together; several lists where they are too many for one table."""
        together = tuple(sorted(set(self.ins) | set(self.outs)))
        if not together:
            return []
        if np.prod([domains[v] for v in together], dtype=float) <= LARGEST_JOINT_TABLE:
            return [together]
        return [tuple(sorted({at, *self.outs})) for at in self.ins]

    def at(self, scope: Sequence[int], choice: Sequence[int], sizes: Sequence[np.ndarray]) -> LayerShape:
        """Its shape when the spaces of `scope` are chosen so and all others are whole."""
        counts = {at: sizes[at][c] for at, c in zip(scope, choice, strict=True)}
        whole = len(scope) < len(set(self.ins) | set(self.outs))  # a partial sum: inputs are shared out
        inputs = self.base_in + sum(
            n * (sizes[at][-1] if whole else counts[at]) for at, n in self.ins.items()
        )
        outputs = self.base_out + sum(n * counts[at] for at, n in self.outs.items())
        return with_widths(self.shape, round(inputs), round(outputs))

    def part(self, scope: Sequence[int], choice: Sequence[int], sizes: Sequence[np.ndarray]) -> float:
        """The share of its cost that this scope answers for: 1, or its share of the inputs."""
        if len(scope) == len(set(self.ins) | set(self.outs)):
            return 1.0
        counts = {at: sizes[at][c] for at, c in zip(scope, choice, strict=True)}
        (input_space,) = set(scope) - set(self.outs) or set(scope)
        return (
            self.ins[input_space] * counts[input_space] / sum(n * sizes[at][-1] for at, n in self.ins.items())
        )


def _layer(name: str, called: tuple[LayerShape, int], coupling: Coupling, spaces: Sequence[Space]) -> _Layer:
    """Count the channels of each space among a layer's inputs and outputs."""
    inputs, outputs = coupling.inputs[name], coupling.outputs[name]
    ins = {at: int(np.isin(inputs, s.sets).sum()) for at, s in enumerate(spaces)}
    outs = {at: int(np.isin(outputs, s.sets).sum()) for at, s in enumerate(spaces)}
    base_in, base_out = len(inputs) - sum(ins.values()), len(outputs) - sum(outs.values())
    per_set = [{at: n / len(spaces[at].sets) for at, n in side.items() if n} for side in (ins, outs)]
    return _Layer(name, *called, per_set[0], per_set[1], base_in, base_out)
