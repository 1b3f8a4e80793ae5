"""Entropy-constrained weight sharing: k-means that knows what a value costs in the packed file.

k-means makes the error small and gives every shared value about the same share of the weights, which is the
worst case for an entropy coder. Entropy-constrained quantization (Chou, Lookabaugh and Gray 1989) minimises
error + price x code length instead: rare values pay for themselves, and small weights may become zero.
"""

import numpy as np

STEPS = 200
"""At most this many rounds; the objective falls in each, and some tens are usual."""


def quantize(values: np.ndarray, centroids: np.ndarray, price: float, zeros: int | None) -> np.ndarray:
    """Give each value the shared value that is cheapest in squared error + price x bits.

    Args:
        values: float32 (n,), n >= 1, finite.
        centroids: (k,) where to start, sorted: those of k-means.
        price: of a bit, in the unit of a squared weight.
        zeros: how many weights beside these are zero already (zero is then a value that needs no place in
            the codebook), or None if zero is a value like others.

    Returns:
        float32 (n,): at most k distinct values, and zero where `zeros` is not None.
    """
    order = np.argsort(values, kind="stable")
    ordered = values[order].astype(np.float64)
    sums = np.concatenate(([0.0], np.cumsum(ordered)))
    points = centroids.astype(np.float64)
    cuts = _cuts(ordered, points, np.zeros(points.size))
    if zeros is not None:  # zero joins with an empty interval, so that the objective starts at k-means's
        place = int(np.searchsorted(points, 0.0))
        points, cuts = np.insert(points, place, 0.0), np.insert(cuts, place, cuts[place])
    for _ in range(STEPS):
        points, counts, cuts = _means(points, cuts, sums, zeros)
        rising = np.argsort(points, kind="stable")  # zero does not move with its interval
        points, counts = points[rising], counts[rising]
        lengths = -np.log2(counts / counts.sum())
        new = _cuts(ordered, points, price * lengths)
        if np.array_equal(new, cuts):
            break
        cuts = new
    points, _, cuts = _means(points, cuts, sums, zeros)
    shared = np.empty(values.shape, np.float32)
    shared[order] = np.repeat(points.astype(np.float32), np.diff(cuts))
    return shared


def _means(
    points: np.ndarray, cuts: np.ndarray, sums: np.ndarray, zeros: int | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points that are used, moved to the means of their intervals (zero stays), their counts, their cuts."""
    counts = np.diff(cuts).astype(np.float64)
    totals = sums[cuts[1:]] - sums[cuts[:-1]]
    if zeros is not None:
        at_zero = points == 0
        counts[at_zero] += zeros
        totals[at_zero] = 0.0
    used = counts > 0
    cut_mask = np.concatenate(([True], used))  # an interval without values ends where it begins
    return totals[used] / counts[used], counts[used], cuts[cut_mask]


def _cuts(ordered: np.ndarray, points: np.ndarray, extra: np.ndarray) -> np.ndarray:
    """Where each point's interval of the sorted values begins and ends, (k + 1,) indices.

    (w - c)^2 + extra is least where the line -2 c w + c^2 + extra is: the lower envelope of k lines whose
    slopes fall. A point whose line never is the lowest gets an empty interval.
    """
    heights = points**2 + extra
    hull: list[int] = []
    starts: list[float] = []
    for j in range(points.size):
        while hull:
            i = hull[-1]
            rise, run = heights[j] - heights[i], 2 * (points[j] - points[i])
            cross = rise / run if run > 0 else np.copysign(np.inf, rise)
            if cross > starts[-1]:
                break
            hull.pop()
            starts.pop()
        if not hull or cross < np.inf:
            starts.append(cross if hull else -np.inf)
            hull.append(j)
    begins = np.searchsorted(ordered, starts, side="right")
    begins[0] = 0
    ends = np.full(points.size + 1, -1, dtype=np.int64)
    ends[hull] = begins
    ends[-1] = ordered.size
    for j in range(points.size - 1, -1, -1):  # a point off the envelope begins where the next one begins
        if ends[j] < 0:
            ends[j] = ends[j + 1]
    return ends
