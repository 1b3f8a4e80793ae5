"""Elimination, the optimiser of widths: the least sum of tables over discrete variables.

Non-serial dynamic programming (Bertele and Brioschi 1972), also called variable or bucket elimination. For a
chain of layers this is the plain dynamic programme over their widths; residual streams only make its tables
a dimension larger.
"""

from collections.abc import Mapping, Sequence

import numpy as np

Table = tuple[tuple[int, ...], np.ndarray]
"""Variables, and the cost of each combination of their values; one axis a variable, in that order."""
LARGEST_TABLE = 4_000_000
"""Entries; beyond this the search goes on one variable at a time."""


def minimise(domains: Sequence[int], tables: Sequence[Table]) -> list[int]:
    """The value of every variable, 0 <= value < domains[i], that makes the sum of all tables smallest.

    Exact, unless variables hang together so closely that a table would be larger than LARGEST_TABLE:
    then each is improved in turn until none improves, from all largest and from all middle values.
    """
    order = elimination_order(domains, tables)
    if order is None:
        middle = [d // 2 for d in domains]
        minima = [descend(domains, tables, start) for start in ([d - 1 for d in domains], middle)]
        return min(minima, key=lambda values: total(tables, values))
    return _eliminate(domains, tables, order)


def total(tables: Sequence[Table], values: Sequence[int]) -> float:
    """The sum of all tables at these values."""
    return float(sum(table[tuple(values[v] for v in names)] for names, table in tables))


def elimination_order(domains: Sequence[int], tables: Sequence[Table]) -> list[int] | None:
    """Variables, each time the one that makes the smallest table; None where one would be too large."""
    scopes = [set(names) for names, _ in tables]
    left, order = set(range(len(domains))), []
    while left:
        joined = {v: set().union(*(s for s in scopes if v in s), {v}) for v in left}
        best = min(left, key=lambda v: (np.prod([domains[u] for u in joined[v]], dtype=float), v))
        if np.prod([domains[u] for u in joined[best]], dtype=float) > LARGEST_TABLE:
            return None
        scopes = [s for s in scopes if best not in s] + [joined[best] - {best}]
        left.discard(best)
        order.append(best)
    return order


def descend(domains: Sequence[int], tables: Sequence[Table], start: Sequence[int]) -> list[int]:
    """Improve one variable at a time until no single change helps."""
    values, touching = list(start), {v: [t for t in tables if v in t[0]] for v in range(len(domains))}
    improved = True
    while improved:
        improved = False
        for v in range(len(domains)):
            costs = [total(touching[v], [*values[:v], x, *values[v + 1 :]]) for x in range(domains[v])]
            best = int(np.argmin(costs))
            if costs[best] < costs[values[v]]:
                values[v], improved = best, True
    return values


def _eliminate(domains: Sequence[int], tables: Sequence[Table], order: Sequence[int]) -> list[int]:
    live, decided = list(tables), list[tuple[int, tuple[int, ...], np.ndarray]]()
    for v in order:
        mine = [t for t in live if v in t[0]]
        live = [t for t in live if v not in t[0]]
        names = (*sorted({u for scope, _ in mine for u in scope} - {v}), v)
        summed = np.zeros([domains[u] for u in names])
        for scope, table in mine:
            summed = summed + _spread(scope, table, names)
        decided.append((v, names[:-1], summed.argmin(-1)))
        if names[:-1]:
            live.append((names[:-1], summed.min(-1)))
    values: dict[int, int] = {}
    for v, scope, best in reversed(decided):
        values[v] = int(best[tuple(values[u] for u in scope)])
    return [values[v] for v in range(len(domains))]


def _spread(scope: Sequence[int], table: np.ndarray, names: Sequence[int]) -> np.ndarray:
    """A table with its axes in the order of `names`, length 1 where a name is not in its scope."""
    present: Mapping[int, int] = {u: axis for axis, u in enumerate(scope)}
    ordered = table.transpose([present[u] for u in names if u in present])
    return ordered.reshape([table.shape[present[u]] if u in present else 1 for u in names])
