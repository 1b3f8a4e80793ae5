"""Sensitivity: the accuracy of each layer compressed alone, without retraining; what to choose from that.

One layer at a time is pruned (R1's sweep), rounded to b bits, or shared at b bits, and the network is
evaluated on images it was not trained on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from tersor.errors import BadInput
from tersor.models.cost import Cost, cost
from tersor.models.layers import chosen_layers
from tersor.models.network import Network
from tersor.pipeline.accuracy.evaluate import Evaluation, Images, evaluate
from tersor.pipeline.accuracy.one_layer_at_a_time import evaluate_each
from tersor.pipeline.data.load import Data, Split, stratified_order
from tersor.pipeline.recipe.recipe import Linear, Sharing, Sparsity
from tersor.pipeline.weights.linear import quantize_weights
from tersor.pipeline.weights.sharing import share_weights
from tersor.pipeline.weights.sparsity import prune_weights
from tersor.progress import Tell

Method = Literal["sparsity", "bits", "sharing"]
"""sparsity: fraction of the layer's weights set to zero, smallest first (stage `sparsity`, method `level`).
bits: uniform grid of so many bits (stage `linear`). sharing: 2^bits shared values (stage `sharing`)."""

MOST_BITS: Mapping[str, int] = {"bits": 16, "sharing": 8}
GRID = Linear(stage="linear")
ALL_LAYERS = "all layers"
"""What `Point.layer` says in a global sweep."""

R1_LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@dataclass(frozen=True)
class Point:
    """The network with one layer compressed to one level, everything else as it was.

    layer: its name, or `ALL_LAYERS`.
    level: fraction pruned (0 to 1), or bits.
    accuracy_fraction, top5_accuracy_fraction: of all images, 0 to 1.
    loss: mean cross-entropy in nats.
    nonzero_weights: of all convolutions and linear layers of the network.
    effective_macs: multiply-adds of one image whose weight is not zero, whole network.
    """

    method: Method
    layer: str
    level: float
    accuracy_fraction: float
    top5_accuracy_fraction: float
    loss: float
    nonzero_weights: int
    effective_macs: int


def sensitivity(
    network: Network,
    images: Images,
    *,
    method: Method,
    levels: Sequence[float],
    layers: Sequence[str] | None = None,
    grid: Linear = GRID,
    reuse: bool = True,
    batch_size: int = 512,
    progress: Tell = lambda *_: None,
) -> list[Point]:
    """Compress one layer at a time to each level and evaluate, without retraining.

    Args:
        network: not changed.
        images: what accuracy is taken on; the network runs on their device.
        method: see `Method`.
        levels: fractions 0 to 1 (sparsity), whole numbers 1 to 16 (bits) or 1 to 8 (sharing).
        layers: patterns; default: all convolutions and linear layers.
        grid: (bits) what the grids are like; its bits are not looked at.
        reuse: compute what comes before the touched layer once. False, and a network whose forward pass
            cannot be split (`progress` says why): every point from scratch. Same numbers either way.
        batch_size: images at once.
        progress: told the fraction done and a few words.

    Returns:
        Layer by layer in the order of the definition, levels in the order given, each once.

    The compressed weights of all levels are held at once (levels x weights x 4 bytes); of activations
    only those of one batch.

    Raises:
        BadInput: no such layer, a level out of range, no images, a weight that is NaN or infinite.
    """
    levels = _checked(network, images, method, levels, batch_size)
    chosen = chosen_layers(network, layers or (), (), "sensitivity")
    networks = {level: compressed(network, method, level, chosen, grid=grid) for level in levels}
    weights = {layer: {at: networks[at].tensors[f"{layer}.weight"] for at in levels} for layer in chosen}
    evaluations = evaluate_each(
        network, weights, images, reuse=reuse, batch_size=batch_size, progress=progress
    )
    before = cost(network)
    return [
        _point(method, layer, level, evaluations[layer, level], _touched(before, layer, weight))
        for layer, by_level in weights.items()
        for level, weight in by_level.items()
    ]


def global_sensitivity(
    network: Network,
    images: Images,
    *,
    method: Method,
    levels: Sequence[float] = R1_LEVELS,
    layers: Sequence[str] | None = None,
    grid: Linear = GRID,
    batch_size: int = 512,
    progress: Tell = lambda *_: None,
) -> list[Point]:
    """Compress all layers at once, each to the same level, and evaluate: R1's table of the whole network.

    Arguments, levels and errors as `sensitivity`; nothing can be reused, for the first layer changes too.

    Returns:
        One point a level, its layer `ALL_LAYERS`.
    """
    levels = _checked(network, images, method, levels, batch_size)
    chosen = chosen_layers(network, layers or (), (), "sensitivity")
    points = list[Point]()
    for level in levels:
        progress(len(points) / len(levels), f"{ALL_LAYERS}, level {level:g}")
        after = compressed(network, method, level, chosen, grid=grid)
        evaluation = evaluate(after.module().to(images.inputs.device), images, batch_size=batch_size)
        points.append(_point(method, ALL_LAYERS, level, evaluation, cost(after)))
    progress(1.0, f"{len(points)} points")
    return points


def compressed(
    network: Network, method: Method, level: float, layers: Sequence[str], *, grid: Linear = GRID
) -> Network:
    """The network with each of `layers` at one level, made by the very stage the method stands for.

    Raises:
        BadInput: no such layer, or a weight that is NaN or infinite (bits and sharing).
    """
    named = list(layers)
    if method == "sparsity":
        # By per_layer, for `amount` itself stops short of 1.
        amounts = dict.fromkeys(named, float(level))
        pruning = Sparsity(stage="sparsity", method="level", amount=0.0, layers=named, per_layer=amounts)
        return prune_weights(network, pruning)[0]
    if method == "bits":
        now = {"bits": int(level), "layers": named, "exclude": [], "per_layer": {}}
        return quantize_weights(network, grid.model_copy(update=now))[0]
    return share_weights(network, Sharing(stage="sharing", bits=int(level), layers=named))[0]


def choose(points: Sequence[Point], *, max_drop: float, baseline: float) -> dict[str, float]:
    """For each layer the hardest level up to which accuracy stays within `max_drop` of the baseline.

    Args:
        points: of one method.
        max_drop: how much accuracy, a fraction of 1, a layer alone may cost.
        baseline: accuracy of the untouched network, a fraction.

    Returns:
        Layer -> level, for a stage's `per_layer`; bits as whole numbers. Levels are walked from the mildest
        on, and the first that costs too much ends the walk: a harder one that does better by chance is not
        trusted. Where even the mildest costs too much: 0.0 (sparsity), 16 (bits), 8 (sharing).

    Raises:
        BadInput: `max_drop` is not 0 to 1, or the points are of several methods.
    """
    if not 0 <= max_drop <= 1:
        raise BadInput("max_drop is out of range", got=max_drop, wanted="a fraction, 0 to 1")
    methods = sorted({point.method for point in points})
    if len(methods) > 1:
        raise BadInput("the points are of several methods", got=", ".join(methods), wanted="one")
    # A drop of exactly max_drop is within it, whichever way its fractions were rounded.
    least = baseline - max_drop - 1e-9
    chosen: dict[str, float] = {}
    for layer in dict.fromkeys(point.layer for point in points):
        layer_points = sorted((p for p in points if p.layer == layer), key=_hardness)
        chosen[layer] = 0.0 if layer_points[0].method == "sparsity" else MOST_BITS[layer_points[0].method]
        for point in layer_points:
            if not point.accuracy_fraction >= least:
                break
            chosen[layer] = point.level if point.method == "sparsity" else int(point.level)
    return chosen


def auto_amounts(
    network: Network,
    data: Data,
    *,
    method: Method,
    levels: Sequence[float],
    max_drop: float,
    layers: Sequence[str] | None = None,
    grid: Linear = GRID,
    limit_images: int = 2000,
    progress: Tell = lambda *_: None,
) -> tuple[dict[str, float], list[Point]]:
    """Each layer's own level, chosen on the validation split; train and test are not read.

    Args:
        network: not changed.
        data: its validation split is used, at most `limit_images` of it, every class in its share.
        max_drop: how much accuracy, a fraction of 1, a layer alone may cost. Layers add up: the network
            with all of them compressed loses more, which is for fine-tuning to mend.

    Other arguments as `sensitivity`.

    Returns:
        What `choose` chose, and all points.

    Raises:
        BadInput: as `sensitivity` and `choose`.
    """
    if limit_images < 1:
        raise BadInput("limit_images is out of range", got=limit_images, wanted="at least 1")
    images = Images.of(limited(data.validation, limit_images), data.preprocessing)
    points = sensitivity(
        network,
        images,
        method=method,
        levels=levels,
        layers=layers,
        grid=grid,
        progress=progress,
    )
    baseline = evaluate(network.module(), images).accuracy_fraction
    return choose(points, max_drop=max_drop, baseline=baseline), points


def _hardness(point: Point) -> float:
    return point.level if point.method == "sparsity" else -point.level


def limited(split: Split, limit: int) -> Split:
    """The first images of an order that is the same every time and gives each class its share."""
    if len(split) <= limit:
        return split
    order = np.sort(stratified_order(split.labels, np.random.default_rng(0))[:limit])
    return Split(split.images[order], split.labels[order])


def _point(method: Method, layer: str, level: float, evaluation: Evaluation, counted: Cost) -> Point:
    return Point(
        method,
        layer,
        level,
        evaluation.accuracy_fraction,
        evaluation.top5_accuracy_fraction,
        evaluation.loss,
        counted.nonzero_weights,
        counted.effective_macs,
    )


def _touched(before: Cost, layer: str, weight: torch.Tensor) -> Cost:
    """The cost with another weight in one layer; counted without another forward pass."""
    alive = int(weight.count_nonzero())
    rows = (replace(row, nonzero_weights=alive) if row.name == layer else row for row in before.layers)
    return replace(before, layers=tuple(rows))


def _checked(
    network: Network, images: Images, method: str, levels: Sequence[float], batch_size: int
) -> list[float]:
    """The levels, each once.

    Raises:
        BadInput: an unknown method, no levels or one out of range, no images, images of another shape.
    """
    where = f"sensitivity against {method}"
    if method != "sparsity" and method not in MOST_BITS:
        raise BadInput("unknown method", got=repr(method), wanted=f"sparsity, {', '.join(MOST_BITS)}")
    if len(levels) == 0:
        raise BadInput("there are no levels", wanted="at least one", where=where)
    wrong = next((at for at in levels if not _in_range(method, at)), None)
    if wrong is not None:
        wanted = "fractions, 0 to 1" if method == "sparsity" else f"whole numbers, 1 to {MOST_BITS[method]}"
        todo = None
        if method == "sparsity" and 2 <= wrong <= 100:  # percent, not a slip beyond 1
            todo = f"Did you mean {wrong / 100:g}?"
        raise BadInput("a level is out of range", got=wrong, wanted=wanted, where=where, todo=todo)
    if batch_size < 1 or not len(images):
        got = f"{len(images)} images, batch_size {batch_size}"
        raise BadInput("there is nothing to evaluate on", got=got, wanted="at least 1 each", where=where)
    shape = tuple(images.inputs.shape[1:])
    if shape != network.input_shape:
        raise BadInput(
            "the images do not fit the network", got=shape, wanted=network.input_shape, where=where
        )
    return list(dict.fromkeys(levels))


def _in_range(method: str, level: float) -> bool:
    if isinstance(level, bool):
        return False
    return 0 <= level <= 1 if method == "sparsity" else level in range(1, MOST_BITS[method] + 1)
