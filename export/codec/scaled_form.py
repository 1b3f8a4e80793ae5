"""Tensors that are integers times a scale for each row (output channel): what b-bit rounding leaves.

A codebook cannot hold them, because every row has values of its own; the integers are few. No hint says so:
the rows are tried, every value of them, and only a product that gives every bit pattern back counts. A row
that is no such product is left out and costs its own floats, not the tensor its form.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tersor.export.codec.value_coding import Patterns

MOST_STEPS = 127
"""Largest integer that a row's smallest value other than zero may be."""
MOST_INTEGER = 32767

_PROBES = 6
"""Values of a row that are tried against all steps before the rest of the row is looked at."""
_TOLERANCE = 1e-3
_NEIGHBOURS = (0, 1, -1, 2, -2, 3, -3)
_CHUNK = 1 << 9


@dataclass(frozen=True)
class Scaled:
    """`good`: [dims[0]] bool, the rows that are products; `scales`: [g] float32 and `integers`: [g * rest].

    The integers are patterns (two's complement) of one byte if all lie in -128..127, else of two. A row of
    zeros has scale 0.
    """

    good: NDArray[np.bool_]
    scales: NDArray[np.float32]
    integers: Patterns


def split_scales(values: Patterns, dims: tuple[int, ...]) -> Scaled | None:
    """Return float32 patterns [n] as integers times a scale a row, or None if no row with values is that.

    `join_scales` gives exactly the patterns of the good rows back.
    """
    if len(dims) < 2 or not dims[0] or math.prod(dims) < 2 * dims[0]:
        return None
    rows = values.view("<f4").reshape(dims[0], -1)
    steps = _steps(rows)
    good = np.isfinite(steps)
    if not (good & (steps > 0)).any():
        return None
    largest = np.abs(rows[good]).max(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        counts = np.nan_to_num(np.rint(largest / steps[good]))
    scales, exact = _exact_scales(rows[good], largest, counts)
    exact &= counts <= MOST_INTEGER
    good[good], scales = exact, scales[exact]
    if not scales.any():
        return None
    integers = _integers(rows[good], scales)
    dtype = np.dtype("<i1") if integers.min() >= -128 and integers.max() <= 127 else np.dtype("<i2")
    patterns = integers.astype(dtype).reshape(-1).view(f"<u{dtype.itemsize}")
    same = (join_scales(scales, patterns).reshape(len(scales), -1) == rows[good].view("<u4")).all(1)
    if not same.all():  # -0.0 is no integer
        good[good] = same
        patterns = patterns.reshape(len(same), -1)[same].reshape(-1)
    return Scaled(good, scales[same], patterns) if scales[same].any() else None


def join_scales(scales: NDArray[np.float32], integers: Patterns) -> Patterns:
    """Return the float32 patterns [n] of integers [n] times their row's scale, rounded to nearest even."""
    signed = integers.view(f"<i{integers.itemsize}").astype(np.float32).reshape(len(scales), -1)
    with np.errstate(over="ignore", invalid="ignore"):  # a damaged file's scales may be anything
        signed *= scales[:, None]
    return np.asarray(signed, "<f4").reshape(-1).view("<u4")


def _steps(rows: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return about which step [r] each row's values are multiples of, the largest there is; infinite if none.

    A row's smallest value other than zero is k steps; the first k that makes integers of all values wins.
    A row of zeros has step 0.
    """
    steps = np.full(len(rows), np.inf)
    for start in range(0, len(rows), _CHUNK):
        some = np.abs(rows[start : start + _CHUNK])
        with np.errstate(invalid="ignore"):
            least = np.where(some > 0, some, np.float32(np.inf)).min(1).astype(np.float64)
            most = some.max(1)
        found = np.where(np.isinf(least) & (most == 0), 0.0, np.inf)
        at = np.flatnonzero(np.isfinite(least) & np.isfinite(most))
        row, k = _promising(some[at], least[at])
        for tried in np.unique(k).tolist():  # the smallest k of a row first
            here = row[k == tried]
            here = at[here][np.isinf(found[at[here]])]
            if len(here):
                fits = _fits(some[here], least[here], tried).all(1)
                found[here[fits]] = least[here[fits]] / tried
        steps[start : start + _CHUNK] = found
    return steps


def _promising(
    sizes: NDArray[np.float32], least: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return (row, k) wherever least / k divides a few values of the row: most rows of floats have none."""
    width = sizes.shape[1]
    probes = sizes[:, :: max(1, width // _PROBES)][:, :_PROBES].astype(np.float64) / least[:, None]
    row = np.repeat(np.arange(len(sizes)), MOST_STEPS)
    k = np.tile(np.arange(1, MOST_STEPS + 1), len(sizes))
    probes = np.hstack((sizes.max(1, initial=0)[:, None] / least[:, None], probes))
    for i in range(probes.shape[1]):
        counts = probes[row, i] * k
        fits = np.abs(counts - np.rint(counts)) < _TOLERANCE
        row, k = row[fits], k[fits]
    return row, k


def _fits(sizes: NDArray[np.float32], least: NDArray[np.float64], k: int) -> NDArray[np.bool_]:
    """Return [r, c] whether each value is a multiple of its row's least value over k."""
    counts = sizes * (k / least[:, None])
    return np.abs(counts - np.rint(counts)) < _TOLERANCE


def _exact_scales(
    rows: NDArray[np.float32], largest: NDArray[np.float32], counts: NDArray[np.float64]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return ([r] float32 scales near largest / count, [r] whether their products are the row)."""
    guess = np.divide(largest, counts, out=np.zeros(len(rows)), where=counts > 0).astype(np.float32)
    scales, open_rows = guess.copy(), np.arange(len(rows))
    for offset in _NEIGHBOURS:
        tried = (guess[open_rows].view("<i4") + np.int32(offset)).view("<f4")
        some = rows if len(open_rows) == len(rows) else rows[open_rows]
        integers = _integers(some, tried)
        exact = (integers.astype(np.float32) * tried[:, None] == some).all(1)
        scales[open_rows[exact]] = tried[exact]
        open_rows = open_rows[~exact]
        if not len(open_rows):
            break
    exact = np.ones(len(rows), np.bool_)
    exact[open_rows] = False
    return scales, exact


def _integers(rows: NDArray[np.float32], scales: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return [r, c] rounded quotients, 0 where the scale is 0 or nothing finite comes out."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return np.nan_to_num(np.rint(rows / scales[:, None]), posinf=0.0, neginf=0.0)
