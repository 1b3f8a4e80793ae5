"""Mixed precision: the bits of each layer, so that all weights together stay within a size.

What a layer costs at b bits is the loss of the network with that layer alone at b bits (sensitivity); costs
of several layers are taken to add up. The choice of least total cost under the budget is a multiple-choice
knapsack, solved by dynamic programming over the size.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tersor.errors import BadInput
from tersor.models.layers import by_layer, chosen_layers
from tersor.models.network import Network
from tersor.pipeline.data.load import Data
from tersor.pipeline.recipe.recipe import Linear
from tersor.pipeline.weights.linear import quantize_weights
from tersor.pipeline.weights.sensitivity import Point, auto_amounts
from tersor.progress import Tell

STEPS = 20_000
"""Sizes that the dynamic programme tells apart; each layer's size is rounded up, so the budget holds."""


def quantize_within(
    network: Network, settings: Linear, data: Data, progress: Tell = lambda *_: None
) -> tuple[Network, dict[str, Any]]:
    """The stage `linear` with a `budget`: bits of each layer by its sensitivity on validation images.

    Args:
        network: what is rounded.
        settings: `budget`, bits a weight on average over the chosen layers; `bits`, the most a layer gets;
            `per_layer`, layers whose bits are fixed.
        data: its validation split is used.
        progress: told the fraction done.

    Raises:
        BadInput: the budget is too small for the fewest bits, or as `sensitivity` and `quantize_weights`.
    """
    where = f"stage `{settings.name}`"
    layers = chosen_layers(network, settings.layers, settings.exclude, where)
    fixed = by_layer(layers, settings.per_layer, where)
    free = [layer for layer in layers if layer not in fixed]
    sizes = {layer: network.tensors[f"{layer}.weight"].numel() for layer in layers}
    assert settings.budget is not None
    total = settings.budget * sum(sizes.values())
    left = total - sum(sizes[layer] * bits for layer, bits in fixed.items())
    points: list[Point] = []
    if free:
        points = auto_amounts(
            network,
            data,
            method="bits",
            levels=range(1, settings.bits + 1),
            max_drop=1.0,
            layers=free,
            grid=settings,
            progress=progress,
        )[1]
    chosen = fixed | bits_within(points, sizes, left, where)
    rounded, details = quantize_weights(network, settings.model_copy(update={"per_layer": chosen}))
    mean = sum(sizes[layer] * bits for layer, bits in chosen.items()) / sum(sizes.values())
    budget = {
        "amounts": chosen,
        "bits_per_weight": mean,
        "sensitivity": [vars(point) for point in points],
    }
    return rounded, details | budget


def bits_within(
    points: Sequence[Point], sizes: Mapping[str, int], budget_bits: float, where: str = "budget"
) -> dict[str, int]:
    """The bits of each layer with the least summed loss among all choices within the budget.

    Args:
        points: of method `bits`; a layer's loss at fewer bits counts as no less than at more, so that
            noise buys nothing.
        sizes: layer -> number of weights.
        budget_bits: of all layers of `points` together.
        where: for the message.

    Raises:
        BadInput: the fewest bits of every layer do not fit.
    """
    layers = list(dict.fromkeys(point.layer for point in points))
    options = [_options([p for p in points if p.layer == layer]) for layer in layers]
    least = sum(sizes[layer] * bits[-1] for layer, (bits, _) in zip(layers, options))
    if least > budget_bits:
        count = sum(sizes[layer] for layer in layers)
        raise BadInput(
            "the budget is too small",
            got=f"{max(budget_bits, 0) / max(count, 1):.3g} bits a weight for {', '.join(layers[:4])}"
            + (" ..." if len(layers) > 4 else ""),
            wanted=f"at least {least / max(count, 1):.3g}",
            where=where,
            todo="Raise `budget`, or lower the bits in `per_layer`",
        )
    unit = max(1.0, (budget_bits - least) / STEPS)
    room = int((budget_bits - least) // unit)
    best, picks = np.zeros(room + 1), list[np.ndarray]()
    for layer, (bits, cost) in zip(layers, options):
        now, pick = np.full(room + 1, np.inf), np.zeros(room + 1, np.int64)
        for index, (bit_width, loss) in enumerate(zip(bits, cost)):
            size = int(np.ceil(sizes[layer] * (bit_width - bits[-1]) / unit))
            if size > room:
                continue
            tried = np.concatenate([np.full(size, np.inf), best[: room + 1 - size] + loss])
            better = tried < now
            now[better], pick[better] = tried[better], index
        best = now
        picks.append(pick)
    chosen: dict[str, int] = {}
    at = int(np.argmin(best))
    for layer, (bits, _), pick in reversed(list(zip(layers, options, picks))):
        chosen[layer] = bits[pick[at]]
        at -= int(np.ceil(sizes[layer] * (chosen[layer] - bits[-1]) / unit))
    return {layer: chosen[layer] for layer in layers}


def _options(points: Sequence[Point]) -> tuple[list[int], list[float]]:
    """Bits from most to fewest, and the loss at each, never falling."""
    ordered = sorted(points, key=lambda point: -point.level)
    losses = np.maximum.accumulate([point.loss for point in ordered])
    return [int(point.level) for point in ordered], losses.tolist()
