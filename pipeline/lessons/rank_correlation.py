"""Spearman's rank correlation: how far one order agrees with another, and how easily chance does as well."""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def ranks(values: ArrayLike) -> NDArray[np.float64]:
    """Ranks from 1 on, float64 (n,); equal values share the mean of their ranks."""
    _, inverse, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse.ravel()]


def spearman(one: ArrayLike, other: ArrayLike) -> float:
    """Correlation of the ranks of two lists of equal length, -1 to 1; NaN where one is all equal."""
    a, b = (r - r.mean() for r in (ranks(one), ranks(other)))
    spread = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / spread if spread else float("nan")


def chance(one: ArrayLike, other: ArrayLike, *, draws: int = 10_000, seed: int = 0) -> float:
    """Share of random orders whose correlation is at least as far from 0 (permutation test, two-sided).

    The order found counts as one of the draws, so the result is never 0. NaN where `spearman` is.
    """
    rho = spearman(one, other)
    if np.isnan(rho):
        return rho
    a, b = (r - r.mean() for r in (ranks(one), ranks(other)))
    shuffled = np.random.default_rng(seed).permuted(np.tile(b, (draws, 1)), axis=1)
    rhos = shuffled @ a / np.sqrt((a @ a) * (b @ b))
    return float(((np.abs(rhos) >= abs(rho) - 1e-12).sum() + 1) / (draws + 1))
