"""Tensors that are integers times a scale for each row (output channel): what b-bit rounding leaves.

A codebook cannot hold them, because every row has values of its own; the integers are few. No hint says so:
the rows are tried, and only a product that gives every bit pattern back counts.
"""

import math

import numpy as np
from numpy.typing import NDArray

from tersor.export.codec.value_coding import Patterns

MOST_STEPS = 127
"""Largest integer that a row's smallest value other than zero may be."""
MOST_INTEGER = 32767

_SAMPLE_ROWS, _SAMPLE_VALUES = 4, 24
_TOLERANCE = 1e-3
_NEIGHBOURS = (0, 1, -1, 2, -2, 3, -3)


def split_scales(values: Patterns, dims: tuple[int, ...]) -> tuple[NDArray[np.float32], Patterns] | None:
    """Return float32 patterns [n] as ([dims[0]] scales, [n] integers), or None if that is not what they are.

    The integers are patterns (two's complement) of one byte if all lie in -128..127, else of two. A row of
    zeros has scale 0. `join_scales` gives exactly these patterns back, or the answer is None.
    """
    if len(dims) < 2 or not dims[0] or math.prod(dims) < 2 * dims[0]:
        return None
    rows = values.view("<f4").reshape(dims[0], -1)
    spread = rows[:: max(1, len(rows) // _SAMPLE_ROWS)]
    if _steps(spread) is None:  # four rows settle it for trained floats
        return None
    steps = _steps(rows)
    if steps is None:
        return None
    largest = np.abs(rows).max(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        counts = np.nan_to_num(np.rint(largest / steps))
    if counts.max() > MOST_INTEGER:
        return None
    scales = _exact_scales(rows, largest, counts)
    if scales is None:
        return None
    integers = _integers(rows, scales)
    dtype = np.dtype("<i1") if integers.min() >= -128 and integers.max() <= 127 else np.dtype("<i2")
    patterns = integers.astype(dtype).reshape(-1).view(f"<u{dtype.itemsize}")
    return (scales, patterns) if np.array_equal(join_scales(scales, patterns), values) else None


def join_scales(scales: NDArray[np.float32], integers: Patterns) -> Patterns:
    """Return the float32 patterns [n] of integers [n] times their row's scale, rounded to nearest even."""
    signed = integers.view(f"<i{integers.itemsize}").astype(np.float32).reshape(len(scales), -1)
    with np.errstate(over="ignore", invalid="ignore"):  # a damaged file's scales may be anything
        return np.asarray(signed * scales[:, None], "<f4").reshape(-1).view("<u4")


def _steps(rows: NDArray[np.float32]) -> NDArray[np.float64] | None:
    """Return about which step [r] each row's values are multiples of, the largest there is, if all have one.

    A row's smallest value other than zero is k steps; the first k that makes integers of the values that
    were looked at wins.
    """
    sizes = np.abs(rows.astype(np.float64))
    if not np.isfinite(sizes).all():
        return None
    least = np.where(sizes > 0, sizes, np.inf).min(1)
    least[np.isinf(least)] = 0.0
    picked = sizes[:, :: max(1, sizes.shape[1] // _SAMPLE_VALUES)]
    steps, open_rows = np.zeros(len(rows)), np.flatnonzero(least > 0)
    for k in range(1, MOST_STEPS + 1):
        if not len(open_rows):
            break
        counts = picked[open_rows] * (k / least[open_rows, None])
        fits = (np.abs(counts - np.rint(counts)) < _TOLERANCE).all(1)
        steps[open_rows[fits]] = least[open_rows[fits]] / k
        open_rows = open_rows[~fits]
    return None if len(open_rows) else steps


def _exact_scales(
    rows: NDArray[np.float32], largest: NDArray[np.float32], counts: NDArray[np.float64]
) -> NDArray[np.float32] | None:
    """Return the float32 scale [r] of each row: the one near largest / count whose products are the row."""
    guess = np.divide(largest, counts, out=np.zeros(len(rows)), where=counts > 0).astype(np.float32)
    scales, open_rows = guess.copy(), np.arange(len(rows))
    for offset in _NEIGHBOURS:
        tried = (guess[open_rows].view("<i4") + np.int32(offset)).view("<f4")
        integers = _integers(rows[open_rows], tried)
        exact = (integers.astype(np.float32) * tried[:, None] == rows[open_rows]).all(1)
        scales[open_rows[exact]] = tried[exact]
        open_rows = open_rows[~exact]
        if not len(open_rows):
            return scales
    return None


def _integers(rows: NDArray[np.float32], scales: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return [r, c] rounded quotients, 0 where the scale is 0 or nothing finite comes out."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return np.nan_to_num(np.rint(rows / scales[:, None].astype(np.float64)), posinf=0.0, neginf=0.0)
