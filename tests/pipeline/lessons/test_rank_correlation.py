"""Rank correlation agrees with SciPy's, and chance is told from order."""

import math

import numpy as np
import pytest
from scipy import stats

from tersor.pipeline.lessons.rank_correlation import chance, ranks, spearman


def test_equal_values_share_the_mean_of_their_ranks() -> None:
    assert ranks([30, 10, 20, 20]).tolist() == [4.0, 1.0, 2.5, 2.5]


@pytest.mark.parametrize("ties", [False, True])
def test_it_is_scipys(ties: bool) -> None:
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(2, 40))
    if ties:
        one, other = one.round(), other.round()
    assert spearman(one, other) == pytest.approx(stats.spearmanr(one, other).statistic, abs=1e-12)


def test_only_the_order_counts() -> None:
    values = np.array([0.1, 3.0, 2.0, 5.0])
    assert spearman(values, np.exp(values)) == pytest.approx(1.0)
    assert spearman(values, -(values**3)) == pytest.approx(-1.0)


def test_all_equal_has_no_order() -> None:
    assert math.isnan(spearman([1, 1, 1], [1, 2, 3]))
    assert math.isnan(chance([1, 1, 1], [1, 2, 3]))


def test_chance_of_a_perfect_order_of_five_is_two_in_120() -> None:
    assert chance(range(5), range(5), draws=100_000) == pytest.approx(2 / 120, rel=0.1)


def test_chance_does_as_well_as_no_order_most_of_the_time() -> None:
    rng = np.random.default_rng(1)
    found = [chance(*rng.normal(size=(2, 20)), draws=500) for _ in range(200)]
    assert 0.02 <= np.mean(np.array(found) < 0.05) <= 0.1
