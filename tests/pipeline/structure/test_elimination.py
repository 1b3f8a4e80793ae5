"""The dynamic programme finds what trying everything finds."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor.pipeline.structure import elimination
from tersor.pipeline.structure.elimination import descend, elimination_order, minimise, total


def random_problem(seed: int, variables: int) -> tuple[list[int], list[elimination.Table]]:
    rng = np.random.default_rng(seed)
    domains = [int(d) for d in rng.integers(1, 4, variables)]
    tables: list[elimination.Table] = []
    for _ in range(2 * variables):
        size = int(rng.integers(1, min(3, variables) + 1))
        scope = tuple(int(v) for v in rng.permutation(variables)[:size])
        tables.append((scope, rng.standard_normal([domains[v] for v in scope])))
    return domains, tables


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6))
def test_minimum_is_that_of_all_combinations(seed: int, variables: int) -> None:
    domains, tables = random_problem(seed, variables)
    least = min(total(tables, values) for values in product(*(range(d) for d in domains)))
    assert total(tables, minimise(domains, tables)) == pytest.approx(least)


def test_a_chain_of_forty_layers_needs_no_table_beyond_two_variables() -> None:
    rng = np.random.default_rng(0)
    tables = [((i, i + 1), rng.random((16, 16))) for i in range(39)]
    domains = [16] * 40
    order = elimination_order(domains, tables)
    assert order is not None
    exact = total(tables, minimise(domains, tables))
    assert exact <= total(tables, descend(domains, tables, [15] * 40)) + 1e-12
    # the plain dynamic programme along the chain
    reached = np.zeros(16)
    for _, table in tables:
        reached = (reached[:, None] + table).min(0)
    assert exact == pytest.approx(reached.min())


def test_too_large_a_table_is_descended_and_no_single_change_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elimination, "LARGEST_TABLE", 20)
    rng = np.random.default_rng(1)
    domains = [4] * 5
    tables: list[elimination.Table] = [(tuple(range(5)), rng.random([4] * 5))]
    values = minimise(domains, tables)
    for v in range(5):
        for x in range(4):
            changed = [*values[:v], x, *values[v + 1 :]]
            assert total(tables, values) <= total(tables, changed)
