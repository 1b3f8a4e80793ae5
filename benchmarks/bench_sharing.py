"""Seconds and squared error of sharing 589,824 weights into 32 values. Not collected by pytest.

    python benchmarks/bench_sharing.py [--theirs]

The optimum is exact: a dynamic programme over the sorted weights, by divide and conquer (an optimal cut never
moves left when a weight is added; Wu 1991). --theirs also runs report R2's way, scikit-learn's KMeans with 25
starts and at most 50 steps, which takes minutes.
"""

import argparse
import time

import numba
import numpy as np
from numpy.typing import NDArray

from tersor.pipeline.weights.sharing import kmeans_1d, nearest

WEIGHTS, VALUES, REPEATS = 589_824, 32, 20

Floats = NDArray[np.float64]


@numba.njit(cache=False)
def next_row(before: Floats, sums: Floats, squares: Floats) -> Floats:
    """Least error of the first i weights with one value more than `before` has, for each i."""
    n = len(before)
    row, cuts = np.full(n, np.inf), np.zeros(n, np.int64)
    row[0] = 0.0
    stack = [(1, n - 1, 0, n - 1)]
    while stack:
        low, high, first, last = stack.pop()
        if low > high:
            continue
        i = (low + high) // 2
        for cut in range(first, min(i, last + 1)):
            total = sums[i] - sums[cut]
            error = before[cut] + squares[i] - squares[cut] - total * total / (i - cut)
            if error < row[i]:
                row[i], cuts[i] = error, cut
        stack.append((low, i - 1, first, cuts[i]))
        stack.append((i + 1, high, cuts[i], last))
    return row


def optimum(weights: Floats, values: int) -> float:
    """The least sum of squared errors with so many values."""
    ordered = np.sort(weights)
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    squares = np.concatenate([[0.0], np.cumsum(ordered**2)])
    row = np.full(len(sums), np.inf)
    row[0] = 0.0
    for _ in range(values):
        row = next_row(row, sums, squares)
    return float(row[-1])


def main() -> None:
    """Print times and errors."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--theirs", action="store_true")
    theirs = parser.parse_args().theirs
    weights = (np.random.default_rng(0).standard_normal(WEIGHTS) * 0.05).astype(np.float32)
    values, seconds = kmeans_1d(weights, VALUES), []
    for _ in range(REPEATS):
        began = time.perf_counter()
        values = kmeans_1d(weights, VALUES)
        nearest(weights, values)
        seconds.append(time.perf_counter() - began)
    exact = weights.astype(np.float64)
    error = float(((exact - nearest(weights, values)) ** 2).sum())
    best = optimum(exact, VALUES)
    print(f"ours: {1e3 * np.median(seconds):.1f} ms, squared error {error:.6f}")
    print(f"optimum: {best:.6f}, ours is {100 * (error / best - 1):.5f} % above it", flush=True)
    if theirs:
        from sklearn.cluster import KMeans

        began = time.perf_counter()
        clustering = KMeans(VALUES, n_init=25, max_iter=50, random_state=0).fit(weights[:, None])
        took = time.perf_counter() - began
        print(f"scikit-learn: {took:.1f} s, {100 * (clustering.inertia_ / best - 1):.5f} % above the optimum")
        print(f"{took / np.median(seconds):,.0f} times as long")


if __name__ == "__main__":
    main()
