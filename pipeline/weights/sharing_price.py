"""Where the bits of shared weights go: the price of a bit in each layer, and how high it may be.

Minimising loss + price x bits over all layers gives every layer the same price in units of the loss. With the
layer's Fisher information h an error costs h/2 (w' - w)^2, so in squared weights its price is inversely
proportional to h (Shoham and Gersho 1988 for the allocation).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from tersor.models.layers import chosen_layers
from tersor.models.network import Network
from tersor.pipeline.accuracy.evaluate import Images, evaluate
from tersor.pipeline.data.load import Data
from tersor.pipeline.recipe.recipe import Sharing
from tersor.pipeline.weights.fisher import fisher
from tersor.pipeline.weights.sharing import share_weights
from tersor.progress import Tell

LOWEST, HIGHEST, STEPS = 2.0**-9, 2.0, 8


def share_at_a_price(
    network: Network, settings: Sharing, data: Data, *, seed: int, progress: Tell = lambda *_: None
) -> tuple[Network, dict[str, Any]]:
    """Share weights with `pays: network` or `rate: auto`.

    Args:
        network: what is shared.
        settings: `rate` a number, or "auto": the highest rate found by bisection that costs at most
            `max_drop` of validation accuracy against `network`, without any tuning.
        data: importance is estimated on training images, accuracy on the validation split.
        seed: of the importance's labels.
        progress: told the fraction done.
    """
    units = _units(network, settings, data, seed, progress)
    if settings.rate != "auto":
        return share_weights(network, settings, {name: settings.rate * u for name, u in units.items()})
    images = Images.of(data.validation, data.preprocessing)
    floor = evaluate(network.module(), images).accuracy_fraction - settings.max_drop
    low, high, points = LOWEST, HIGHEST, list[dict[str, float]]()
    for step in range(STEPS):
        rate = LOWEST if not step else (low * high) ** 0.5
        shared, _ = share_weights(network, settings, {name: rate * u for name, u in units.items()})
        accuracy = evaluate(shared.module(), images).accuracy_fraction
        points.append(
            {"rate": rate, "validation_accuracy_fraction": accuracy, "ideal_bytes": ideal_bytes(shared)}
        )
        progress((step + 1) / STEPS, f"rate {rate:.3g}: validation {100 * accuracy:.2f} %")
        if accuracy < floor and not step:
            break  # even the lowest price costs too much: nothing to search
        low, high = (rate, high) if accuracy >= floor else (low, rate)
    chosen = low
    shared, details = share_weights(network, settings, {name: chosen * u for name, u in units.items()})
    return shared, {
        **details,
        "rate": chosen,
        "rates": points,
        "held": points[0]["validation_accuracy_fraction"] >= floor,
    }


def _units(network: Network, settings: Sharing, data: Data, seed: int, progress: Tell) -> Mapping[str, float]:
    """What a bit costs in each tensor at rate 1, in squared weights."""
    layers = chosen_layers(network, settings.layers, settings.exclude, f"stage `{settings.name}`")
    squares, counts = {}, {}
    for name in (f"{layer}.weight" for layer in layers):
        alive = network.tensors[name][network.tensors[name] != 0].double()
        counts[name] = alive.numel()
        squares[name] = float(alive.square().mean()) if alive.numel() else 0.0
    if settings.pays == "layer":
        return squares
    limit = 2048
    images = Images.of(data.train.first(limit), data.preprocessing)
    information = fisher(network, images, seed=seed, limit=limit, progress=progress)
    # At rate 1 the mean error that a bit is worth equals the mean over all weights of h w^2.
    total = sum(counts.values())
    mean = sum(counts[n] * information[n] * squares[n] for n in squares) / max(total, 1)
    return {n: mean / information[n] if information[n] > 0 else squares[n] for n in squares}


def ideal_bytes(network: Network) -> float:
    """Bytes of all weights of rank 2 and more if every value cost its share's code length; no tables."""
    bits = 0.0
    for tensor in network.tensors.values():
        if tensor.dim() >= 2:
            counts = np.unique(tensor.numpy(), return_counts=True)[1]
            bits -= float((counts * np.log2(counts / counts.sum())).sum())
    return bits / 8
