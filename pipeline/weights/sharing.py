"""Weight sharing by k-means (Deep Compression, Han et al., arXiv:1510.00149), a codebook a layer.

The zeros of pruned layers stay outside the codebook. In one dimension the optimal clusters are intervals of
the sorted values. The exact optimum over a fine histogram comes from dynamic programming (Wang and Song 2011,
Ckmeans.1d.dp) with divide and conquer over the monotone split points; Lloyd steps on sorted prefix sums then
polish it on the values themselves.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from tersor.errors import BadInput
from tersor.models.layers import by_layer, chosen_layers
from tersor.models.network import Form, Network
from tersor.pipeline.recipe.recipe import Sharing
from tersor.pipeline.weights.rate_distortion import quantize

BINS = 2048
"""Histogram bins of the dynamic programme; on trained weights the polish hides what they round away."""


def share_weights(
    network: Network, settings: Sharing, prices: Mapping[str, float] | None = None
) -> tuple[Network, dict[str, Any]]:
    """Replace the weights of each chosen layer by its centroids.

    Args:
        network: what is shared.
        settings: how many values; a `rate` that is a number is a price in each layer's mean square.
        prices: of a coded bit for each tensor, in squared weights, instead of `rate`.

    Returns:
        The network with forms `shared`, and per layer: values, root mean square error.

    Raises:
        BadInput: a pattern matches no layer, or a weight is NaN or infinite.
    """
    where = f"stage `{settings.name}`"
    layers = chosen_layers(network, settings.layers, settings.exclude, where)
    layer_bits = by_layer(layers, settings.per_layer, where)
    tensors, forms, rows = dict(network.tensors), dict(network.forms), []
    for layer in layers:
        name = f"{layer}.weight"
        bits = layer_bits.get(layer, settings.bits)
        count = settings.values if settings.values and layer not in layer_bits else 2**bits
        weight, pruned = tensors[name], network.form(name).pruned
        if not bool(weight.isfinite().all()):
            raise BadInput("a weight is NaN or infinite", where=f"{where}, tensor {name!r}")
        price = prices[name] if prices is not None else _price(weight, pruned, settings.rate)
        shared = _share(weight, count, pruned, price)
        error = float((shared - weight).double().square().mean().sqrt())
        rows.append({"tensor": name, "values": int(shared.unique().numel()), "rms_error": error})
        tensors[name], forms[name] = shared, Form("shared", pruned=pruned, bits=bits)
    return network.with_tensors(tensors, forms), {"layers": rows}


def _price(weight: torch.Tensor, pruned: bool, rate: float | str) -> float:
    if isinstance(rate, str):
        raise ValueError("rate: auto needs data: call share_at_a_price")
    alive = weight[weight != 0] if pruned else weight
    return rate * float(alive.double().square().mean()) if alive.numel() else 0.0


def _share(weight: torch.Tensor, count: int, pruned: bool, price: float) -> torch.Tensor:
    flat = weight.flatten().numpy()
    alive = flat != 0 if pruned else np.ones(flat.shape, dtype=bool)
    if not alive.any():
        return weight.clone()
    shared = flat.copy()
    if price:
        zeros = flat.size - int(alive.sum()) if pruned else None
        shared[alive] = quantize(flat[alive], kmeans_1d(flat[alive], count), price, zeros)
    else:
        shared[alive] = nearest(flat[alive], kmeans_1d(flat[alive], count))
    return torch.from_numpy(shared).reshape(weight.shape)


def nearest(values: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """The centroid nearest to each value, float32; `centroids` sorted; a value halfway goes down."""
    borders = (centroids[1:].astype(np.float64) + centroids[:-1]) / 2
    return centroids[np.searchsorted(borders, values, side="left")]


def kmeans_1d(values: np.ndarray, count: int, *, bins: int = BINS) -> np.ndarray:
    """Near-optimal centroids of one-dimensional values; deterministic.

    Args:
        values: float32 (n,), n >= 1, finite.
        count: how many centroids at most.
        bins: resolution of the dynamic programme; exact when there are no more distinct values.

    Returns:
        float32 (k,), sorted, k <= count: the distinct values themselves when there are no more.
    """
    ordered = np.sort(values)
    distinct = ordered[np.concatenate(([True], ordered[1:] != ordered[:-1]))]
    if distinct.size <= count:
        return distinct
    points, weights = _histogram(ordered, distinct, bins)
    centroids = _optimal_on(points, weights, count)
    return _polish(ordered, centroids)


def _histogram(ordered: np.ndarray, distinct: np.ndarray, bins: int) -> tuple[np.ndarray, np.ndarray]:
    """At most `bins` weighted points (means of equal-width bins), or every distinct value."""
    if distinct.size <= bins:
        points, weights = np.unique(ordered, return_counts=True)
        return points.astype(np.float64), weights.astype(np.float64)
    edges = np.linspace(ordered[0], ordered[-1], bins + 1)
    slot = np.clip(np.searchsorted(edges, ordered, side="right") - 1, 0, bins - 1)
    weights = np.bincount(slot, minlength=bins).astype(np.float64)
    sums = np.bincount(slot, weights=ordered.astype(np.float64), minlength=bins)
    full = weights > 0
    return sums[full] / weights[full], weights[full]


def _optimal_on(points: np.ndarray, weights: np.ndarray, count: int) -> np.ndarray:
    """Exact k-means of sorted weighted points: cost[j] = min over i of cost_before[i] + sse(i, j)."""
    w = np.concatenate(([0.0], np.cumsum(weights)))
    s = np.concatenate(([0.0], np.cumsum(weights * points)))
    q = np.concatenate(([0.0], np.cumsum(weights * points**2)))
    n = points.size
    ends = np.arange(1, n + 1)
    cost = np.concatenate(([0.0], q[ends] - s[ends] ** 2 / w[ends]))
    choices = []
    for _ in range(count - 1):
        cost, choice = _next_layer(cost, w, s, q)
        choices.append(choice)
    borders = [n]
    for choice in reversed(choices):
        borders.append(int(choice[borders[-1]]))
    cuts = np.unique([0, *borders])
    return (s[cuts[1:]] - s[cuts[:-1]]) / (w[cuts[1:]] - w[cuts[:-1]])


def _next_layer(
    before: np.ndarray, w: np.ndarray, s: np.ndarray, q: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """One more cluster for every prefix; split points grow with the prefix, so each level halves the work.

    All prefixes of one recursion level are solved at once: level by level, the middle prefix of every
    open range looks at the splits between its solved neighbours' (sum of widths <= n + number of ranges).
    """
    n = before.size - 1
    choice = np.zeros(n + 1, dtype=np.int64)
    cost = np.zeros(n + 1)
    solved = np.array([0, n + 1])
    low_of, high_of = np.zeros(n + 2, dtype=np.int64), np.zeros(n + 2, dtype=np.int64)
    high_of[n + 1] = n
    while True:
        middle = (solved[1:] + solved[:-1]) // 2
        new = middle > solved[:-1]
        if not new.any():
            return cost, choice
        j, low = middle[new], low_of[solved[:-1][new]]
        high = np.minimum(high_of[solved[1:][new]], j - 1)
        low = np.minimum(low, high)
        length = high - low + 1
        start = np.concatenate(([0], np.cumsum(length)[:-1]))
        i = np.arange(length.sum()) - np.repeat(start - low, length)
        end = np.repeat(j, length)
        weight = w[end] - w[i]
        total = before[i] + (q[end] - q[i]) - (s[end] - s[i]) ** 2 / weight
        best = np.minimum.reduceat(total, start)
        first = np.flatnonzero(total == np.repeat(best, length))
        owner = np.searchsorted(start, first, side="right") - 1
        at = first[np.searchsorted(owner, np.arange(j.size))]
        cost[j], choice[j] = best, i[at]
        low_of[j] = high_of[j] = i[at]
        solved = np.sort(np.concatenate((solved, j)))


def _polish(ordered: np.ndarray, centroids: np.ndarray, steps: int = 100) -> np.ndarray:
    """Lloyd's steps on sorted values with prefix sums: O(k log n) a step, until nothing moves."""
    sums = np.concatenate(([0.0], np.cumsum(ordered, dtype=np.float64)))
    cuts = np.zeros(0, dtype=np.int64)
    for _ in range(steps):
        borders = np.searchsorted(ordered, (centroids[1:] + centroids[:-1]) / 2, side="right")
        new = np.unique(np.concatenate(([0], borders, [ordered.size])))
        if np.array_equal(new, cuts):
            break
        cuts = new
        centroids = (sums[cuts[1:]] - sums[cuts[:-1]]) / (cuts[1:] - cuts[:-1])
    return np.unique(centroids.astype(np.float32))
