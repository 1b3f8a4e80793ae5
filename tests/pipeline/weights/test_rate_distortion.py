"""Entropy-constrained sharing: never worse than k-means in its objective; at price zero it is k-means."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor.pipeline.weights.rate_distortion import quantize
from tersor.pipeline.weights.sharing import kmeans_1d, nearest

values_strategy = st.lists(st.floats(-4, 4, width=32).filter(lambda v: v != 0), min_size=1, max_size=60).map(
    lambda v: np.array(v, np.float32)
)


def objective(values: np.ndarray, shared: np.ndarray, price: float, zeros: int | None) -> float:
    """Squared error + price x bits of an ideal code for the shared values, zeros included."""
    counts = np.unique(np.append(shared, np.zeros(zeros or 0, np.float32)), return_counts=True)[1]
    bits = -(counts * np.log2(counts / counts.sum())).sum()
    return float(np.square(values.astype(np.float64) - shared).sum() + price * bits)


def laplacian(count: int = 20_000) -> np.ndarray:
    return np.random.default_rng(0).laplace(size=count).astype(np.float32)


@given(values_strategy, st.integers(1, 8), st.floats(0, 2), st.sampled_from([None, 0, 5, 500]))
@settings(max_examples=300)
def test_it_is_never_worse_than_kmeans(values: np.ndarray, k: int, price: float, zeros: int | None) -> None:
    start = kmeans_1d(values, k)
    shared = quantize(values, start, price, zeros)
    before = objective(values, nearest(values, start), price, zeros)
    assert objective(values, shared, price, zeros) <= before * (1 + 1e-6) + 1e-6
    assert len(np.unique(shared[shared != 0] if zeros is not None else shared)) <= k


@given(values_strategy, st.integers(1, 8), st.floats(0, 2), st.sampled_from([None, 5]))
def test_larger_values_get_larger_shared_values(
    values: np.ndarray, k: int, price: float, zeros: int | None
) -> None:
    shared = quantize(values, kmeans_1d(values, k), price, zeros)
    assert (np.diff(shared[np.argsort(values, kind="stable")]) >= 0).all()


def test_without_a_price_it_is_kmeans() -> None:
    values = laplacian()
    start = kmeans_1d(values, 16)
    np.testing.assert_allclose(quantize(values, start, 0.0, None), nearest(values, start), atol=1e-6)


@pytest.mark.parametrize(("zeros", "price", "gain"), [(None, 0.12, 0.7), (100_000, 0.01, 0.15)])
def test_at_the_same_bits_the_error_is_far_below_that_of_kmeans(
    zeros: int | None, price: float, gain: float
) -> None:
    values = laplacian()
    few = nearest(values, kmeans_1d(values, 7))
    priced = quantize(values, kmeans_1d(values, 32), price, zeros)
    bits = [objective(shared, shared, 1.0, zeros) for shared in (few, priced)]
    errors = [np.square(values - shared).sum() for shared in (few, priced)]
    assert bits[1] < 1.03 * bits[0]
    assert errors[1] < gain * errors[0]


def test_it_is_fast_and_the_same_every_time() -> None:
    values = laplacian(500_000)
    start = kmeans_1d(values, 32)
    np.testing.assert_array_equal(quantize(values, start, 0.05, 9), quantize(values, start, 0.05, 9))
